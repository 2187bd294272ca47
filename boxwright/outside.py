"""Asks a box what anyone outside may ask it: an HTTP client for one box, with its certificate checked.

Where the box's name is unknown to this machine's DNS, its inventory address is used under that name. A box whose door
is open to itself alone is reached through an SSH tunnel, which is also the only way for its owner.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from boxwright import paths
from boxwright.connection import Connection
from boxwright.errors import Failed, Problem

TIMEOUT = (15.0, 120.0)  # seconds to connect with TLS, and between two pieces of an answer (a small CPU may think long)


@dataclass(frozen=True)
class Route:
    """Where the box's URL leads: `address` and `port` to connect to when they are not the URL's own; or a tunnel."""

    address: str | None = None
    port: int | None = None
    tunnel: bool = False


def ca_file(box: Any) -> Path | None:
    """The root certificate that box `box` is checked against; None where the public ones do."""
    return paths.ca_file(box.name) if box.gateway.tls == "internal" else None


def route(box: Any, connection: Connection) -> Route:
    """How the URL of `box` is reached from this machine."""
    loopback = not box.gateway.public_addresses
    if loopback and connection.kind == "ssh":
        return Route(str(box.gateway.bind[0]), box.gateway.port, tunnel=True)
    if loopback:
        return Route(str(box.gateway.bind[0]), box.gateway.port)
    name = urlsplit(box.gateway.url).hostname or ""
    if _resolves(name):
        return Route()
    return Route("127.0.0.1" if connection.kind == "local" else connection.address, box.gateway.port)


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


class _Elsewhere(HTTPAdapter):
    """Connects to another address than the URL's; name, Host header and certificate stay those of the URL."""

    def __init__(self, name: str, address: str, port: int) -> None:
        self._name, self._address, self._port = name, address, port
        super().__init__()

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        host |= {"host": self._address, "port": self._port}
        # Passed on to urllib3's HTTPSConnection; requests types only what it sets itself.
        return host, {**pool, "server_hostname": self._name, "assert_hostname": self._name}


class _Bearer(AuthBase):
    """A token in the header Authorization."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Outside:
    """HTTP client for one box, seen from outside. Use as a context manager, or call `close`.

    `url` ends with a slash; `auth` is (user, password) or a bearer token for `/v1`, None where the box wants none, has
    no token yet, or asks for keys of the API service. No proxy and no ~/.netrc of this machine is used.
    """

    def __init__(self, box: Any, connection: Connection) -> None:
        self.box = box
        self.url: str = box.gateway.url
        self.auth: tuple[str, str] | str | None = None
        if box.gateway.asks_for_password:
            self.auth = (box.gateway.user, box.gateway.password.get_secret_value())
        elif box.gateway.auth == "bearer" and box.gateway.tokens:
            self.auth = next(iter(box.gateway.tokens.values())).get_secret_value()
        self.model: str = box.inference.main.name if box.inference.main else ""
        self.session = requests.Session()
        self.session.trust_env = False
        self._open = ExitStack()
        self._open.callback(self.session.close)
        if (certificate := ca_file(box)) is not None:
            if not certificate.is_file():
                raise self._failed(
                    f"the root certificate of the box is not on this machine ({certificate})", "run `boxwright apply`"
                )
            self.session.verify = str(certificate)
        way = route(box, connection)
        if way.address and way.port:
            address, port = way.address, way.port
            if way.tunnel:
                from boxwright.openssh import tunnel

                address, port = "127.0.0.1", self._open.enter_context(tunnel(connection, address, port))
            parts = urlsplit(self.url)
            self.session.headers["Host"] = parts.netloc
            self.session.mount(f"https://{parts.netloc}/", _Elsewhere(parts.hostname or "", address, port))

    def __enter__(self) -> Outside:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and the tunnel."""
        self._open.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        auth: tuple[str, str] | str | bool = True,
        timeout: Any = TIMEOUT,
        **arguments: Any,
    ) -> requests.Response:
        """The answer to `method` on `path` (below the box's URL). `auth` True takes the box's own, False none; text is
        a bearer token.

        Raises Failed when there was no answer at all; an answer of any status is returned.
        """
        chosen = self.auth if auth is True else auth or None
        credentials: Any = None
        if isinstance(chosen, str):
            credentials = _Bearer(chosen)
        elif isinstance(chosen, tuple):
            # As bytes: requests would encode text as Latin-1, while the gateway and everybody else take it for UTF-8.
            credentials = (chosen[0].encode(), chosen[1].encode())
        try:
            return self.session.request(
                method,
                self.url + path.lstrip("/"),
                auth=credentials,
                timeout=timeout,
                allow_redirects=False,
                **arguments,
            )
        except requests.exceptions.SSLError as error:
            raise self._failed(
                f"the certificate of {self.url} was not accepted: {_innermost(error)}",
                "does `gateway_names` hold this name? `boxwright apply` fetches the root certificate anew",
            ) from error
        except requests.RequestException as error:
            raise self._failed(
                f"{self.url} does not answer from this machine: {_innermost(error)}",
                "is `gateway_bind` open to this network, and no firewall in between?",
            ) from error

    def get(self, path: str, **arguments: Any) -> requests.Response:
        """`request` with GET."""
        return self.request("GET", path, **arguments)

    def post(self, path: str, **arguments: Any) -> requests.Response:
        """`request` with POST."""
        return self.request("POST", path, **arguments)

    def check(self) -> None:
        """Raises Failed unless the box answers: with its models, else with the chat page, else with anything. Where a
        token is needed and nobody has one yet, the refusal is the answer; so it is where a key is, which this machine
        never has.
        """
        if self.box.inference.main and self.auth is None and self.box.gateway.auth in ("bearer", "keys"):
            answer = self.get("v1/models", auth=False)
            if answer.status_code != requests.codes.unauthorized:
                raise self._failed(
                    f"GET {answer.url} without a token answered {answer.status_code} {answer.reason}, not 401",
                    "`boxwright verify` says which part does not work",
                )
        elif self.box.inference.main:
            self.models()
        elif self.box.openwebui.enabled:
            self._good(self.get("", auth=False))
        else:
            self.get("", auth=False)

    def models(self) -> list[str]:
        """Names of the models that the box offers. Raises Failed unless the answer is a 200 that lists them."""
        answer = self._good(self.get("v1/models"))
        return [model["id"] for model in answer.json()["data"]]

    def chat(self, text: str, **body: Any) -> str:
        """The model's reply to `text`. Raises Failed unless the answer is a 200."""
        answer = self._good(self.post("v1/chat/completions", json=self._chat_body(text, body)))
        return str(answer.json()["choices"][0]["message"]["content"])

    def stream_chat(self, text: str, **body: Any) -> Iterator[str]:
        """The model's reply to `text` in pieces, each as soon as it arrives. Raises Failed unless a 200 begins it."""
        body = {**body, "stream": True}
        with self._good(self.post("v1/chat/completions", json=self._chat_body(text, body), stream=True)) as answer:
            # Larger reads would wait until they are full where the answer is not sent in chunks.
            for line in answer.iter_lines(chunk_size=1):
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    for choice in json.loads(line[6:])["choices"]:
                        if piece := choice["delta"].get("content"):
                            yield piece

    def _chat_body(self, text: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": text}], **body}

    def _good(self, answer: requests.Response) -> requests.Response:
        if answer.status_code == requests.codes.ok:
            return answer
        raise self._failed(
            f"{answer.request.method} {answer.url} answered {answer.status_code} {answer.reason}",
            "`boxwright verify` says which part does not work" if answer.status_code >= 500 else None,
        )

    def _failed(self, message: str, help_text: str | None) -> Failed:
        return Failed(Problem(code="BW203", message=message, help=help_text, host=self.box.name))


def _innermost(error: BaseException) -> str:
    """What the operating system or TLS said, without the layers of libraries around it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (
        getattr(error, "verify_message", "") or getattr(error, "strerror", None) or str(error) or type(error).__name__
    )
