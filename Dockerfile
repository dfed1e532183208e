# One image for the orchestrator and for the example participants; compose.yaml names the command.
FROM python:3.11-slim

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY shared shared
COPY orchestrator orchestrator
COPY workers workers
RUN pip install --no-cache-dir -c constraints.txt . \
    && useradd --create-home saga \
    && install -d -o saga -g saga /var/lib/saga

USER saga
ENV SAGA_HOME=/var/lib/saga PYTHONUNBUFFERED=1
CMD ["celery", "-A", "orchestrator", "worker"]
