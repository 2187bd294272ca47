"""What strangers send, byte by byte, to the running service; and that nothing secret is to be seen afterwards."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import orjson
import pytest
from running import ASK, CHAT, STREAM, Made, Running
from stub_engine import StubEngine
from waiting import until

END = b"\r\n\r\n"


def ask(running: Running, data: bytes) -> bytes:
    """All that the service answers to these bytes, until it closes or has nothing more to say."""
    with running.socket() as connection:
        connection.settimeout(5)
        with suppress(ConnectionError):
            connection.sendall(data)
        answer = b""
        with suppress(ConnectionError, TimeoutError):
            while part := connection.recv(65536):
                answer += part
                if whole(answer):
                    break
        return answer


def whole(answer: bytes) -> bool:
    """Whether the answer, the last of them, is complete."""
    head, found, body = answer.partition(END)
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(found and length and len(body) >= int(length[1]))


def statuses(answer: bytes) -> list[int]:
    """Of one answer or several."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def head(made: Made | None, *lines: str, path: str = CHAT, method: str = "POST") -> bytes:
    """The first lines of a request."""
    known = [f"Authorization: Bearer {made.key}"] if made else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: box", *known, *lines]).encode("latin-1") + END


def post(made: Made, body: bytes) -> bytes:
    """A request with a body."""
    return head(made, f"Content-Length: {len(body)}") + body


BODIES: dict[str, bytes] = {
    "none": b"",
    "no JSON": b'{"model": "plain", "messages": [',
    "no object": b"[1, 2]",
    "NaN": b'{"model": "plain", "messages": [], "temperature": NaN}',
    "deep": b'{"model": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "no UTF-8": b'{"model": "plain", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "half a surrogate pair": b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}',
    "wrong types": orjson.dumps({"model": ["plain"], "messages": "x"}),
    "wrong member": orjson.dumps(ASK | {"stream": "yes"}),
    "no messages": orjson.dumps(ASK | {"messages": []}),
    "negative max_tokens": orjson.dumps(ASK | {"max_tokens": -1}),
    "huge max_tokens": orjson.dumps(ASK | {"max_tokens": 2**62}),
    "too many answers": orjson.dumps(ASK | {"n": 10**6}),
    "SQL as a model": orjson.dumps(ASK | {"model": "x'; DROP TABLE usage_log; --"}),
    "NUL in a model": orjson.dumps(ASK | {"model": "a\0b"}),
    "a long model": orjson.dumps(ASK | {"model": "m" * 100_000}),
    "a path as a model": orjson.dumps(ASK | {"model": "../../etc/passwd"}),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(running: Running, name: str) -> None:
    made = running.key()
    answer = ask(running, post(made, BODIES[name]))
    assert statuses(answer) in ([400], [404]), answer
    error = orjson.loads(answer.partition(END)[2])["error"]
    assert error["message"]
    assert error["code"]
    until(lambda: running.count(f"key_id = '{made.id}'") == 1)
    assert running.rows("status, outcome, tokens_in, tokens_out", f"key_id = '{made.id}'")[0][1:] == [
        "refused",
        "0",
        "0",
    ]


HEADS: dict[str, Callable[[Made], bytes]] = {
    # Both lengths: whoever believes the other one reads the rest as another request (RFC 9112, 6.3).
    "CL and TE": lambda made: head(made, "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + SMUGGLED,
    "TE and CL": lambda made: head(made, "Transfer-Encoding: chunked", "Content-Length: 400") + b"0\r\n\r\n" + SMUGGLED,
    "two lengths": lambda made: head(made, "Content-Length: 0", f"Content-Length: {len(SMUGGLED)}") + SMUGGLED,
    "length with a sign": lambda made: head(made, "Content-Length: +2") + b"{}",
    "negative length": lambda made: head(made, "Content-Length: -1"),
    "length of letters": lambda made: head(made, "Content-Length: ten"),
    "endless length": lambda made: head(made, f"Content-Length: {10**30}"),
    "TE in disguise": lambda made: (
        head(made, "Transfer-Encoding : chunked", "Content-Length: 5") + b"0\r\n\r\n" + SMUGGLED
    ),
    "TE unknown": lambda made: head(made, "Transfer-Encoding: cow") + b"{}",
    "bad chunk": lambda made: head(made, "Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
    "bare line ends": lambda made: head(made, "X-A: 1\nX-B: 2", "Content-Length: 2") + b"{}",
    "folded header": lambda made: head(made, "X-A: 1\r\n  2", "Content-Length: 2") + b"{}",
    "NUL in a header": lambda made: head(made, "X-A: a\0b", "Content-Length: 2") + b"{}",
    "letters beyond ASCII": lambda made: head(made, "X-A: \xff\xfe", "Content-Length: 2") + b"{}",
    "10,000 headers": lambda made: head(made, *[f"X-{n}: {n}" for n in range(10_000)], "Content-Length: 2") + b"{}",
    "a header of 1 MiB": lambda made: head(made, f"X-A: {'a' * 2**20}", "Content-Length: 2") + b"{}",
    "two keys": lambda made: head(made, "Authorization: Bearer other", "Content-Length: 2") + b"{}",
    "another version": lambda made: b"POST / HTTP/9.9\r\n\r\n",
    "no HTTP": lambda made: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
    "a whole address": lambda made: (
        head(made, "Content-Length: 2", path="http://other.example/v1/chat/completions") + b"{}"
    ),
    "an upgrade": lambda made: head(made, "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 2") + b"{}",
    "CONNECT": lambda made: head(made, path="other.example:443", method="CONNECT"),
    "TRACE": lambda made: head(made, method="TRACE"),
    "dots in the path": lambda made: head(made, path="/v1/../admin/keys", method="GET"),
    "encoded path": lambda made: head(made, path="/%61dmin/keys", method="GET"),
    "two slashes": lambda made: head(made, path="//admin/keys", method="GET"),
    "broken escape": lambda made: head(made, path="/v1/models/%ff%fe%00", method="GET"),
}
SMUGGLED = b"GET /admin/keys HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer guess\r\n\r\n"


@pytest.mark.parametrize("name", HEADS)
def test_heads(running: Running, engine: StubEngine, name: str) -> None:
    """None is an error of ours, none reaches the engine, and none is answered as two requests would be."""
    made = running.key()
    answer = ask(running, HEADS[name](made))
    assert all(400 <= status < 500 for status in statuses(answer)), answer
    assert len(statuses(answer)) <= 1
    assert b"Traceback" not in answer
    assert made.key.encode() not in answer
    assert not engine.records
    assert running.post(made).status_code == 200


def test_two_requests_at_once(running: Running, engine: StubEngine) -> None:
    """Pipelined, as HTTP allows it: both are answered, in their order, and each has its row."""
    made = running.key()
    request = post(made, orjson.dumps(ASK)) + post(made, b"{") + post(made, orjson.dumps(STREAM))
    with running.socket() as connection:
        connection.sendall(request)
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            part = connection.recv(65536)
            assert part, answer
            answer += part
    assert statuses(answer) == [200, 400, 200]
    until(lambda: running.count(f"key_id = '{made.id}'") == 3)
    assert len(engine.records) == 2


def test_large_bodies(running: Running, engine: StubEngine) -> None:
    """One byte too many is refused at once where it is declared, and when it arrives where it is not."""
    made = running.key()
    most = 8 * 1024**2
    declared = ask(running, head(made, f"Content-Length: {most + 1}"))
    assert statuses(declared) == [413]
    assert statuses(ask(running, head(made, "Content-Length: 2000000000") + b"a" * 100_000)) == [413]
    with running.socket() as connection:
        connection.sendall(head(made, "Transfer-Encoding: chunked"))
        sent, chunk = 0, b"100000\r\n" + b"a" * 2**20 + b"\r\n"
        with suppress(ConnectionError):
            # Endless, until it is refused.
            while sent < 100 and not ready(connection):
                connection.sendall(chunk)
                sent += 1
        assert sent < 20
        assert statuses(connection.recv(65536)) == [413]
    assert not engine.records
    for pid in running.processes():
        status = Path(f"/proc/{pid}/status").read_text()
        assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 300 * 1024  # type: ignore[index]


def ready(connection: socket.socket) -> bool:
    """Whether there is an answer."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(30)


def test_slow_bodies_hold_no_place(running: Running, engine: StubEngine) -> None:
    """Twenty clients that never finish what they send take nothing from the others."""
    made = running.key()
    slow = [running.socket() for _ in range(20)]
    try:
        for connection in slow:
            connection.sendall(head(made, "Content-Length: 100") + b"{")
        assert running.post(made).status_code == 200
        assert running.taken() == 0
    finally:
        for connection in slow:
            connection.close()


def test_key_in_the_address(running: Running, engine: StubEngine) -> None:
    made = running.key()
    for path in (f"/v1/models?api_key={made.key}", f"/v1/models?x={made.key}", f"/nothing?key={made.key}"):
        answer = running.client.get(path, headers=made.headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "key_in_query")
        assert made.key not in answer.text
    assert not engine.records


def test_names_with_sql(running: Running) -> None:
    """An administrator's words are words, in every column."""
    evil = "Robert'); DROP TABLE api_key; -- \" \\ %s $1 ? {0}"
    made = running.key(owner=evil)
    assert running.admin.get(f"/admin/keys/{made.id}").json()["owner"] == evil
    assert running.place.sql(f"SELECT owner FROM api_key WHERE id = '{made.id}'") == evil
    answer = running.admin.get("/admin/usage", params={"key_id": "' OR 1=1 --"})
    assert (answer.status_code, answer.json()) == (200, [])
    assert running.admin.get("/admin/keys/' OR 1=1").status_code == 400
    wrong = running.admin.post(f"/admin/keys/{made.id}/revoke", headers={"X-Boxwright-Actor": "a'; DROP TABLE x"})
    assert wrong.json()["error"]["code"] == "invalid_actor"
    assert running.count() >= 0


# What a proxy or a tunnel leaves in a request, and what a browser does that was told a wrong address (DNS rebinding).
FOREIGN = (
    {"X-Forwarded-For": "203.0.113.9"},
    {"X-Forwarded-Host": "box.example"},
    {"Forwarded": "for=203.0.113.9"},
    {"Cf-Connecting-Ip": "203.0.113.9"},
    {"Cf-Ray": "1"},
    {"Via": "1.1 proxy"},
    {"X-Real-Ip": "203.0.113.9"},
    {"Tailscale-User-Login": "someone"},
    {"Host": "box.example"},
    {"Host": "127.0.0.1.box.example"},
    {"Host": "203.0.113.9:8000"},
)


@pytest.mark.parametrize("path", ["/admin/keys", "/admin/usage", "/metrics", "/docs", "/redoc", "/openapi.json"])
def test_only_from_the_box_itself(running: Running, path: str) -> None:
    if path != "/redoc":
        assert running.admin.get(path).status_code == 200
    for headers in FOREIGN:
        answer = running.admin.get(path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), headers
    # The same answer as for what is not there at all.
    assert answer.json() == running.admin.get("/nothing").json()


def test_it_listens_on_loopback_only(running: Running) -> None:
    """As `ss` sees it: of all its processes nothing but the one address."""
    lines = subprocess.run(["ss", "-Hltunp"], capture_output=True, text=True, check=True).stdout.splitlines()
    own = [line for line in lines if any(f"pid={pid}," in line for pid in running.processes())]
    assert {line.split()[4] for line in own} == {f"127.0.0.1:{running.port}"}


def test_nothing_secret_is_seen(kind: str, own: Callable[..., Running], engine: StubEngine) -> None:
    """After good requests, bad ones, a fault of the engine and of a parser: not in the log, the arguments, the
    environment, the figures, the spill, nor in what the database keeps.
    """
    running = own()
    made = running.key()
    rotated = running.admin.post(f"/admin/keys/{made.id}/rotate", json={"overlap_seconds": 60}).json()["key"]
    wrong = f"bw_{made.id}_{'w' * 43}"
    assert running.post(made, {**ASK, "model": "tied"}).status_code == 200
    assert engine.last().headers
    for body in BODIES.values():
        ask(running, post(made, body))
    for made_head in HEADS.values():
        ask(running, made_head(made))
    engine.behave(status=500, error={"message": f"I was given {made.key}", "code": "x", "type": "y"})
    running.post(made)
    engine.behave(break_after=1)
    with suppress(httpx.TransportError):
        running.post(made, STREAM)
    running.client.get(f"/v1/models?api_key={made.key}")
    httpx.get(f"{running.url}/v1/models", headers={"Authorization": f"Bearer {wrong}"})
    httpx.get(f"{running.url}/admin/keys", headers={"Authorization": f"Bearer {running.secrets['admin_secret']}x"})
    # Of a key everything behind `bw_` and its id, which is no secret.
    secrets = {made.key[12:], rotated[12:], "w" * 43, running.secrets["admin_secret"]}
    secrets |= {part.partition(":")[2] for part in running.secrets["peppers"].split(";")}
    secrets |= set(orjson.loads(running.secrets["engine_keys"]).values())
    secrets |= {running.secrets[name] for name in ("database_password", "redis_password") if name in running.secrets}
    seen: dict[str, bytes] = {}
    for pid in running.processes():
        for name in ("cmdline", "environ"):
            seen[f"{name} of {pid}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    seen["figures"] = running.admin.get("/metrics").content
    seen["audit"] = running.admin.get("/admin/audit").content
    until(lambda: running.count("outcome = 'refused'") > 10)
    time.sleep(0.5)
    assert running.stop() == 0
    seen["log"] = running.log.read_bytes()
    seen["database"] = running.place.dump()
    for file in (running.folder / "spill").iterdir():
        seen[file.name] = file.read_bytes()
    assert made.id.encode() in seen["database"]
    assert "model plain is warm" in running.text()
    assert len(seen) >= 6
    for where, data in seen.items():
        assert data, where
        assert [secret for secret in secrets if secret.encode() in data] == [], where
    assert b"Traceback" not in seen["log"], seen["log"]
