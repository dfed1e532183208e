"""What five no-op steps cost: bare Celery, ``celery.chain`` and this product, in one run."""
