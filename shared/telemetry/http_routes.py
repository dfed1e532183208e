"""The path template that a framework has matched: ``/orders/{order_id}``, never ``/orders/17``.

Found in what frameworks leave behind, so that none has to be imported. What is not certain is None:
a span without a route is better than a thousand names.
"""

import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

_APPS_MAX: Final = 16
"""How many middlewares are looked behind for the framework's own application."""


def asgi_route(scope: Mapping[str, Any], outer: Any, root_path: str) -> str | None:
    """Route of FastAPI or Starlette.

    Args:
        scope: As the application has left it.
        outer: The outermost application.
        root_path: ``root_path`` of the scope before the application saw it.
    """
    route = scope.get("route") or _route_of_endpoint(scope)
    if route is None:
        return None
    mounted = scope.get("root_path", "") != root_path
    prefix = _mounts(getattr(outer, "routes", ()), scope, root_path) if mounted else ""
    if hasattr(route, "routes"):  # a mount, behind which nothing was matched
        return prefix or None
    # FastAPI keeps the path of an included router beside the route, which does not know it.
    included = scope.get("fastapi", {}).get("effective_route_context")
    path = getattr(included, "path", None) or getattr(route, "path", None)
    return f"{prefix}{path}" if isinstance(path, str) else None


def _route_of_endpoint(scope: Mapping[str, Any]) -> Any:
    """FastAPI's own pages (``/docs``) are routes that it does not put into the scope."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return None
    routes = getattr(scope.get("app"), "routes", ())
    return next((one for one in routes if getattr(one, "endpoint", None) is endpoint), None)


def _mounts(routes: Any, scope: Mapping[str, Any], root_path: str) -> str:
    """Templates of the mounts that a request went through: the scope has their values only."""
    prefix = ""
    at: MutableMapping[str, Any] = {
        **{key: scope[key] for key in ("type", "path", "headers") if key in scope},
        "method": scope.get("method", "GET"),
        "root_path": root_path,
    }
    while routes:
        for route in routes:
            if hasattr(route, "routes") and hasattr(route, "path"):
                _, child = route.matches(dict(at))
                if child:
                    prefix += route.path
                    at.update(child)
                    routes = route.routes
                    break
        else:
            return prefix
    return prefix


def wsgi_route(environ: Mapping[str, Any]) -> str | None:
    """Route of Flask, while its request is at work."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    path = getattr(rule, "rule", None)
    return f"{environ.get('SCRIPT_NAME', '')}{path}" if isinstance(path, str) else None


def flask_route(app: Any) -> Callable[[Mapping[str, Any]], str | None] | None:
    """How to ask Flask once more, for an exception that it lets through; None for another app."""
    url_map = getattr(getattr(app, "__self__", None), "url_map", None)
    if url_map is None:
        return None

    def find(environ: Mapping[str, Any]) -> str | None:
        try:
            rule, _ = url_map.bind_to_environ(environ).match(return_rule=True)
        except Exception:  # noqa: BLE001 - no route, a redirect, or another werkzeug
            return None
        return f"{environ.get('SCRIPT_NAME', '')}{rule.rule}"

    return find


def django_route(app: Any) -> Callable[[str], str | None] | None:
    """How to ask Django for the route of a path; None when the application is not Django's.

    Args:
        app: An application, or a middleware that has one as its ``app`` or ``application``.
    """
    base = sys.modules.get("django.core.handlers.base")
    for _ in range(_APPS_MAX):
        if base is None or app is None:
            return None
        if isinstance(app, base.BaseHandler):
            return _ask_django
        app = getattr(app, "application", None) or getattr(app, "app", None)
    return None


def _ask_django(path_info: str) -> str | None:
    from django.urls import Resolver404, resolve

    try:
        found: str = resolve(path_info).route
    except Resolver404:
        return None
    return f"/{found.removeprefix('^')}"
