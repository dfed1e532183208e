"""Real servers as fixtures: Redis, PostgreSQL and RabbitMQ, with start, stop, kill and restart."""
