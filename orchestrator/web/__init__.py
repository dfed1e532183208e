"""The HTTP API: starts, shows and answers sagas for programs that do not speak Celery."""
