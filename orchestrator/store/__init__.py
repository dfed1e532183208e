"""Adapters of `orchestrator.ports.Store`: SQLite and PostgreSQL, and the in-memory reference."""
