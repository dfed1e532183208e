"""The tests; a package, so that import-linter and `python -m tests.chaos` see it."""
