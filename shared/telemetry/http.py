"""Traces of HTTP requests, for any ASGI or WSGI application; wrap the application as a whole.

    app = AsgiTracing(app)                                # FastAPI, Starlette, Django (asgi.py)
    app.wsgi_app = WsgiTracing(app.wsgi_app)              # Flask
    application = WsgiTracing(get_wsgi_application())     # Django (wsgi.py)

A request becomes one SERVER span in the caller's trace. The answer carries ``x-trace-id`` and
``x-request-id``, and every log line written on the way carries both. What is started or sent inside
the request, a saga or a Celery task, continues its trace.

No web framework is imported, and none is needed.
"""

from shared.telemetry.http_asgi import AsgiTracing
from shared.telemetry.http_exchange import current_request_id
from shared.telemetry.http_options import HttpOptions, http_options
from shared.telemetry.http_wsgi import WsgiTracing

__all__ = ["AsgiTracing", "HttpOptions", "WsgiTracing", "current_request_id", "http_options"]
