"""Five small services with real ledgers: what a participant looks like, and what tests rely on."""
