"""What the orchestrator and the participants agree on; imports neither side."""
