"""Alembic migrations; `orchestrator.store.schema.migrate` runs them."""
