"""Adapters of `orchestrator.ports.Transport`: Celery messages over a broker, and in memory."""
