"""Participants: the SDK (`workers.sdk`) and example services with their own ledgers.

``celery -A workers worker -Q inventory`` runs one of the examples.
"""
