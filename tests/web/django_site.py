"""A Django site in one module, for tests: settings, views and URLs."""

from collections.abc import Iterator
from typing import Any

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import include, path, re_path

log = structlog.stdlib.get_logger("tests.web.django")


def order(request: HttpRequest, order_id: int) -> HttpResponse:
    """Log, and answer with the request id that the application sees."""
    log.info("in a view")
    return HttpResponse(request.headers["x-request-id"])


def broken(request: HttpRequest) -> HttpResponse:
    """Fail."""
    raise LookupError("no such order")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Answer in parts."""

    def parts() -> Iterator[bytes]:
        log.info("in a part")
        yield b"a"
        yield b"b"

    return StreamingHttpResponse(parts())


urlpatterns: list[Any] = [
    path("shop/", include([path("orders/<int:order_id>/", order)])),
    re_path(r"^old/(?P<order_id>[0-9]+)$", order),
    path("broken/", broken),
    path("stream/", stream),
]


def configure() -> None:
    """Set Django up, once in a process."""
    if not settings.configured:
        settings.configure(
            ROOT_URLCONF=__name__,
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="only for tests",
            DEBUG=False,
            LOGGING_CONFIG=None,
            USE_TZ=True,
        )
        import django

        django.setup()
