"""A box whose gateway has engine doubles behind it, and clients of that gateway."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import httpx2
from kit import LIGHT, Box, Lab

# Tokens for boxes that live as long as the tests. Nothing else has them.
TOKEN = "token-of-the-tests-0123456789"
OTHER_TOKEN = "token-of-somebody-else-0123456789"
TOKENS = {"tests": TOKEN, "somebody": OTHER_TOKEN}
CHAT = "/v1/chat/completions"


def spellings(secret: str) -> list[str]:
    """Queries in which somebody may write `secret` under a name that is not to be logged."""
    names = ("API_KEY", "Api_Key", "ApiKey", "API-KEY", "KEY", "Token", "Access_Token", "ID_TOKEN", "Code", "PassWord")
    encoded = (
        "api%5Fkey",
        "api%5fKEY",
        "%61pi_key",
        "%41PI_KEY",
        "%6b%65%79",
        "tok%65n",
        "%2561pi_key",
        "%zzkey",
        "key%00",
    )
    found = [f"{name}={secret}" for name in (*names, *encoded)]
    before = ("a=1&", "a=1;", "a=1&&", "a=b?", "=&", "&", ";", "a&", "a%3D1&", "a=%26&")
    found += [f"{each}Api_Key={secret}" for each in before]
    after = ("&b=2", ";b=2", "&api_key=x", "&", "=", "%26", "#", "?b=2", "+b", "%0a")
    found += [f"TOKEN={secret}{each}" for each in after]
    # What comes behind a sign that only some programs take for the end.
    return [*found, f"key=a;{secret}", f"KEY=a?{secret}", f"key=a={secret}", f"key=%26{secret}", f"a%3Bkey=1;{secret}"]


def gateway_box(lab: Lab) -> Box:
    """The box of these tests: nothing but the gateway, not yet converged."""
    return lab.boxes.get("gateway") or lab.up("gateway", {**LIGHT, "inference_engine": "none"})


def this_machine(box: Box) -> str:
    """The address by which a box reaches this machine, where the doubles listen: its way out of the lab's network."""
    return box.sh("ip -4 route show default").split()[2]


def question(model: str, **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "Say something."}], **more}


def trust(box: Box) -> ssl.SSLContext:
    """TLS with the box's own certificate authority and no other."""
    return ssl.create_default_context(cafile=str(box.ca))


def connect(box: Box, *protocols: str) -> ssl.SSLSocket:
    """A TLS connection to the door, for what no client would do."""
    context = trust(box)
    context.set_alpn_protocols(list(protocols or ("http/1.1",)))
    return context.wrap_socket(socket.create_connection((box.address, 443), 30), server_hostname=box.address)


class Gateway:
    """The gateway of a box, converged with some variables, and its clients on this machine."""

    def __init__(self, box: Box, label: str, **variables: Any) -> None:
        self.box, self.label = box, label
        self.variables: dict[str, Any] = {"gateway_tokens": TOKENS, **variables}
        self.inventory = box.with_variables(label, **self.variables)
        self.apply()

    def apply(self, **variables: Any) -> list[str]:
        """Converge with some variables set otherwise from now on; what was changed."""
        self.variables.update(variables)
        self.inventory = self.box.with_variables(self.label, **self.variables)
        # The shared inventory of the box says something else.
        self.box.settled = False
        return self.box.changes(self.inventory)

    def token(self, *arguments: str) -> str:
        """`boxwright token ...`; what it prints on standard output."""
        return self.box.run("boxwright", "token", *arguments, inventory=self.inventory).expect().out.strip()

    def new_token(self) -> str:
        """A token with a name that nobody had: a new configuration, loaded without a restart."""
        return self.token("add", f"new-{secrets.token_hex(4)}")

    @property
    def pid(self) -> int:
        """Number of the server's process; another one after a restart."""
        return self.box.pid("caddy")

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"https://{self.box.address}"

    def client(self, *, http2: bool = False, token: str | None = TOKEN, timeout: float = 120) -> httpx2.Client:
        """A client for many requests at once: over HTTP/1.1 each has a connection of its own."""
        return httpx2.Client(
            base_url=self.url,
            verify=trust(self.box),
            http1=not http2,
            http2=http2,
            trust_env=False,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout,
            limits=httpx2.Limits(max_connections=None),
        )


class Crowd:
    """Many clients, each with a thread and a connection of its own."""

    def __init__(self, gateway: Gateway, size: int, token: str | None = TOKEN) -> None:
        self._pool = ThreadPoolExecutor(size)
        self._client = gateway.client(token=token)

    def ask(self, body: dict[str, Any], path: str = CHAT, **arguments: Any) -> Future[httpx2.Response]:
        """Begin a request; the answer comes by `result()`."""
        return self._pool.submit(self._client.post, path, json=body, **arguments)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._pool.shutdown(wait=error is None, cancel_futures=True)


class Http2:
    """An HTTP/2 connection whose frames are sent when the test says so: many requests in one packet, one cancelled."""

    def __init__(self, gateway: Gateway, token: str = TOKEN) -> None:
        self._socket = connect(gateway.box, "h2")
        assert self._socket.selected_alpn_protocol() == "h2"
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._state.initiate_connection()
        self._authority, self._token = gateway.box.address, token
        # By number of the stream.
        self.headers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()

    def begin(self, body: dict[str, Any], *, missing: int = 0) -> int:
        """Prepare a request, without its last `missing` bytes; the number of its stream."""
        data = json.dumps(body).encode() + b" " * missing
        number = self._state.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":path", CHAT),
            (":scheme", "https"),
            (":authority", self._authority),
            ("authorization", f"Bearer {self._token}"),
            ("content-type", "application/json"),
            ("content-length", str(len(data))),
        ]
        self._state.send_headers(number, headers)
        self._state.send_data(number, data[: len(data) - missing], end_stream=not missing)
        return number

    def cancel(self, number: int) -> None:
        """Give one request up, as a browser does when its page no longer wants it. The connection stays."""
        self._state.reset_stream(number, h2.errors.ErrorCodes.CANCEL)

    def send(self) -> None:
        """Send what was prepared, all at once."""
        self._socket.sendall(self._state.data_to_send())

    def read(self) -> None:
        """Take in what has come, and wait for something when nothing has."""
        for event in self._state.receive_data(self._socket.recv(65536)):
            if isinstance(event, h2.events.ResponseReceived):
                self.headers[event.stream_id] = {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self._state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            else:
                assert not isinstance(event, h2.events.ConnectionTerminated), event
        self.send()

    def __enter__(self) -> Http2:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
