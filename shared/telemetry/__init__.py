"""Traces and logs: one package, one vocabulary. `setup` alone imports the OpenTelemetry SDK."""
