"""The plain app as a participant: one line."""

from tests.workers.plain_app import app
from workers.sdk import Reject, install

__all__ = ["app"]

install(app)


@app.task(name="plain.says_no")
def says_no() -> None:
    """Raise the SDK's own exception; registered after `install`."""
    raise Reject("OutOfStock", "none left")
