"""Runs the migrations on the connection that `orchestrator.store.schema.migrate` gives."""

from alembic import context

from orchestrator.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    target_metadata=METADATA,
)
with context.begin_transaction():
    context.run_migrations()
