"""The press: a worker for the steps of `large`, one of which is a task that knows of no saga."""

import json
from typing import Any

from celery import signals

from shared.celery_app import make_app
from shared.settings import settings
from workers.sdk import Participant, Reject, StepContext, install

app = make_app("tests.faults.large_app", service="press", settings=settings)
participant = Participant(app, lambda: f"sqlite:///{settings().home.absolute()}/press.db")
install(app)


@signals.worker_init.connect(weak=False)
def create_tables(**_: object) -> None:
    """When a worker starts, and not in a test that imports this."""
    participant.create_tables()


@participant.action("press.render")
def render(context: StepContext, text: str) -> dict[str, Any]:
    """Make a large file of a large text."""
    return {"pdf": {"cover": text[:5], "body": text.upper()}, "pages": len(text) // 1_000}


@participant.compensation("press.shred")
def shred(context: StepContext, text: str, undo: dict[str, Any]) -> None:
    """Check that it is that text and that file; write down how large they are."""
    assert undo["pdf"]["body"] == text.upper()
    told = {"text": len(text), "undo": len(json.dumps(undo))}
    (settings().home / f"shredded-{context.saga_id}").write_text(json.dumps(told))


@app.task(name="press.bind")
def bind(pdf: dict[str, Any]) -> int:
    """An ordinary task."""
    return len(pdf["body"])


@participant.action("press.ship")
def ship(context: StepContext, region: str, cover: str) -> str:
    """Nothing goes to the moon."""
    if region == "moon":
        raise Reject("NoRocket")
    return f"{cover} to {region}"
