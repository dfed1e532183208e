"""Processes killed at random under load: ``python -m tests.chaos``."""
