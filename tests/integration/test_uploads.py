"""Files of a gigabyte on their way to Open WebUI: the gateway hands them on as they come, up to the limit."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest
from gateway_box import connect
from kit import Box

pytestmark = pytest.mark.lab

# What `gateway_max_upload` is when it is not set.
LARGEST = 1024**3
# KiB that the gateway may need for it: buffers, and what Go gives back only after a while.
ROOM = 32 * 1024
BOUNDARY = "boundary-of-the-tests"
HEAD = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=zeros.bin\r\n\r\n".encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="module")
def box(_full: Box) -> Box:
    """The full box; not the fixture `full`, which would give it back the server that its inventory says."""
    return _full


@pytest.fixture(scope="module", params=["caddy", "nginx"])
def server(request: pytest.FixtureRequest, box: Box) -> Iterator[str]:
    """The box with each of the servers, one after the other; with Caddy again in the end."""
    box.settle()
    if request.param != "caddy":
        box.settled = False
        box.changes(box.with_variables("uploads", gateway_server=request.param))
    assert box.succeeds(f"systemctl is-active {request.param}")
    yield request.param
    box.settle()


@pytest.fixture(scope="module")
def administrator(box: Box) -> dict[str, str]:
    """Headers of Open WebUI's administrator, who signs in once: it takes 15 logins in three minutes and no more."""
    box.settle()
    return box.signed_in()


def upload(box: Box, administrator: dict[str, str], size: int, *, chunked: bool) -> tuple[int, bytes]:
    """Send a form with a file, `size` bytes in all, to Open WebUI; status and body of the answer, which may come
    before all was sent."""
    lines = [
        "POST /api/v1/files/?process=false HTTP/1.1",
        f"Host: {box.address}",
        f"Authorization: {administrator['Authorization']}",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}",
        "Connection: close",
    ]

    def pieces() -> Iterator[bytes]:
        yield HEAD
        left = size - len(HEAD) - len(TAIL)
        while left:
            piece = bytes(min(left, 1024**2))
            left -= len(piece)
            yield piece
        yield TAIL

    with connect(box) as sender:
        sender.settimeout(120)
        with suppress(OSError):
            sender.sendall("\r\n".join([*lines, "", ""]).encode())
            for piece in pieces():
                sender.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                sender.sendall(b"0\r\n\r\n")
        answer = b""
        with suppress(ConnectionError, ssl.SSLError):
            while piece := sender.recv(65536):
                answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_gigabyte_is_handed_on_and_does_not_stay_in_memory(
    box: Box, server: str, administrator: dict[str, str], chunked: bool
) -> None:
    """As much as is allowed, to the byte; Open WebUI has all of it in the end."""
    box.forget_peak(server)
    before = box.memory(server, "VmRSS")
    status, body = upload(box, administrator, LARGEST, chunked=chunked)
    assert status == 200, body
    assert box.memory(server, "VmHWM") - before < ROOM
    file = json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])
    assert file["meta"]["size"] == LARGEST - len(HEAD) - len(TAIL)
    assert box.http("DELETE", f"api/v1/files/{file['id']}", headers=administrator).status_code == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_more_than_that_is_refused(box: Box, server: str, administrator: dict[str, str], chunked: bool) -> None:
    """One byte more, told before or found while it comes."""
    box.forget_peak(server)
    before = box.memory(server, "VmRSS")
    status, _ = upload(box, administrator, LARGEST + 1, chunked=chunked)
    assert status == 413
    assert box.memory(server, "VmHWM") - before < ROOM
    assert box.http("GET", "health").status_code == 200
