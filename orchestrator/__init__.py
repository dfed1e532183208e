"""The saga orchestrator: definitions, engine, coordinator, store, transport and command line."""
