"""What both servers of the gateway share: where requests go, and what clients are told for errors."""

import json
from dataclasses import dataclass
from typing import Any

from roles.gateway.settings import OPEN_WEBUI, Health
from roles.registry import Box

# Parameters of a query that may hold a secret; their values are not logged.
HIDDEN = ("key", "api_key", "apikey", "api-key", "token", "access_token", "id_token", "code", "state", "password")


@dataclass(frozen=True)
class Shown:
    """What a client is told for an error: `caught` in the gateway becomes `status`, in the form of the OpenAI API."""

    caught: int
    status: int
    body: str
    retry: int = 0


def error_body(message: str, kind: str, code: str | None) -> str:
    """An error in the form of the OpenAI API."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def errors(box: Box) -> tuple[Shown, ...]:
    """The errors that have a code of their own. The bodies are the same for both servers."""
    limit = box.gateway.max_body.human_readable()
    return (
        Shown(401, 401, error_body("Missing or wrong credentials.", "invalid_request_error", "invalid_api_key")),
        Shown(404, 404, error_body("This path is not offered.", "invalid_request_error", "unknown_path")),
        Shown(
            413, 413, error_body(f"The request is larger than {limit}.", "invalid_request_error", "request_too_large")
        ),
        Shown(429, 429, error_body("Too many requests; try again later.", "rate_limit_error", "rate_limit_exceeded")),
        Shown(
            503,
            429,
            error_body("The model is busy; try again shortly.", "rate_limit_error", "chat_concurrency_limit"),
            1,
        ),
        Shown(502, 502, error_body("The model does not answer.", "server_error", "engine_unavailable")),
        Shown(504, 504, error_body("The model does not answer.", "server_error", "engine_unavailable")),
    )


@dataclass(frozen=True)
class Way:
    """A path that leads to engines. `strip` is what is taken away of a path before the engine gets it; `main` are those
    below /v1 that Open WebUI asks, and `door` those that the door has. `key` is what the engine wants as
    `Authorization: Bearer`, empty where it asks nobody; with `passes` it is the client's own that is handed on.
    """

    name: str
    path: str
    upstreams: tuple[str, ...]
    strip: str
    allow: tuple[str, ...]
    auth: str
    in_flight: int
    health: Health
    main: bool = False
    key: str = ""
    door: bool = True
    passes: bool = False


# The API service lets no more through than the engines take, lets who is too many wait, and tells them: the gateway
# does not do it once more. It is what nginx's workers have connections for.
_API_IN_FLIGHT = 1000


def _to_the_service(box: Box) -> Way:
    """`/v1` as the API service answers it, which asks for a key itself. Nothing else of it is reached by the door."""
    local = (f"127.0.0.1:{box.api.port}",)
    health = Health(path="/api/v1/health")
    return Way("service", "/v1", local, "", box.gateway.paths, "none", _API_IN_FLIGHT, health, passes=True)


def ways(box: Box) -> tuple[Way, ...]:
    """Every path to engines, a longer one before the one that it begins with."""
    gateway, running = box.gateway, box.inference.running
    # With keys the engines themselves are behind the service, and for Open WebUI alone.
    keys = gateway.asks_for_keys
    auth = "none" if keys else gateway.auth
    found = []

    def key_of(name: str) -> str:
        key = box.engine(name).key
        return key.get_secret_value() if key else ""

    def engine(name: str, main: bool) -> None:
        settings, prefix = box.engine(name), "" if main else f"/{name}"
        allow = gateway.paths if main else settings.paths
        health = Health(path=settings.health_path, body=settings.health_body)
        label = "v1" if main else f"engine_{name}"
        key = key_of(name)
        for number, (path, port) in enumerate(settings.elsewhere(box).items(), 1):
            local = (f"127.0.0.1:{port}",)
            allowed = tuple(one for one in allow if one == path)
            if allowed:
                more = (prefix, allowed, auth, gateway.in_flight, health, main, key, not keys)
                found.append(Way(f"{label}_{number}", prefix + path, local, *more))
        if not main and "port" in settings.ports(box):
            local = (f"127.0.0.1:{settings.ports(box)['port']}",)
            found.append(Way(label, prefix, local, prefix, allow, auth, gateway.in_flight, health, key=key))

    if running:
        engine(running[0], main=True)
    local = (f"127.0.0.1:{box.engine(running[0]).ports(box)['port']}",) if running else ()
    if engines := (*local, *gateway.engines):
        health = gateway.health_of(box)
        key = key_of(running[0]) if running else ""
        more = ("", gateway.paths, auth, gateway.in_flight, health)
        found.append(Way("v1", "/v1", engines, *more, main=True, key=key, door=not keys))
    if keys:
        found.append(_to_the_service(box))
    for name in () if keys else running[1:]:
        engine(name, main=False)
    for route in gateway.routes:
        name = "route_" + route.path.strip("/").replace("-", "_")
        own = route.auth or ("any" if gateway.auth == "keys" else gateway.auth)
        in_flight, strip = route.in_flight or gateway.in_flight, route.path if route.strip else ""
        found.append(Way(name, route.path, route.upstreams, strip, route.allow, own, in_flight, route.health))
    return tuple(found)


def shared_values(box: Box) -> dict[str, Any]:
    """What the templates of both servers say alike. `internal` is the listener for Open WebUI, None without one."""
    gateway, found = box.gateway, ways(box)
    internal = None
    if box.openwebui.enabled and any(way.main for way in found):
        internal = {
            "address": box.openwebui.box_address(box),
            "names": tuple(dict.fromkeys((box.openwebui.box_address(box), box.openwebui.engine_host(box)))),
            "port": gateway.internal_port,
            "from": box.openwebui.asks_from(box),
            "client": OPEN_WEBUI,
        }
    return {
        "names": [f"[{name}]" if ":" in name else name for name in gateway.names],
        "strict_transport": gateway.strict_transport,
        "metrics_port": gateway.metrics_port,
        "header_timeout": gateway.header_timeout,
        "idle_timeout": gateway.idle_timeout,
        "trusted_proxies": list(gateway.believed_proxies(box)),
        "max_body": int(gateway.max_body),
        "max_upload": int(gateway.max_upload),
        "webui": box.openwebui.url(box) if box.openwebui.enabled else "",
        "internal": internal,
        "fallback_error": error_body("The gateway cannot handle this request.", "invalid_request_error", None),
    }


def answers(box: Box) -> tuple[str, ...]:
    """A command on the box that succeeds when the door answers, whatever it says; without a certificate that may still
    be on its way, when the program itself does.
    """
    gateway = box.gateway
    if gateway.tls in ("acme", "tailscale"):
        more: tuple[str, ...] = ()
        url = f"http://127.0.0.1:{gateway.metrics_port}/metrics"
    else:
        name = f"[{gateway.names[0]}]" if ":" in gateway.names[0] else gateway.names[0]
        own = gateway.address_on_box
        address = f"[{own}]" if ":" in own else own
        url = f"https://{name}:{gateway.port}/v1/models"
        more = ("--insecure", "--connect-to", f"{name}:{gateway.port}:{address}:{gateway.port}")
    asked = ("/usr/bin/curl", "--silent", "--show-error", "--noproxy", "*", "--output", "/dev/null", "--max-time", "10")
    return (*asked, "--retry", "5", "--retry-delay", "1", "--retry-all-errors", *more, url)
