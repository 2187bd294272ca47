"""A page on another origin in a real browser: what CORS is for.

The page is served on this machine, and its scripts ask the box as a developer's own page would: with fetch, a token in
a header, and a streamed answer. The browser is Debian's Chromium; it decides what a page may read.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from doors import Door, door
from kit import Lab
from playwright.sync_api import Browser, Error, Page, sync_playwright

pytestmark = pytest.mark.lab

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# What the page says of one request: the status and every piece of the answer, or the error that the browser made of it.
ASK = """
async ([url, options]) => {
    const answer = {pieces: [], headers: {}};
    try {
        const response = await fetch(url, options);
        answer.status = response.status;
        answer.type = response.type;
        for (const [name, value] of response.headers) answer.headers[name] = value;
        const reader = response.body.getReader(), decoder = new TextDecoder();
        for (;;) {
            const {done, value} = await reader.read();
            if (done) break;
            answer.pieces.push(decoder.decode(value, {stream: true}));
            // Tells the test that a piece is here; the test lets the engine go on.
            if (window.arrived) await window.arrived(answer.pieces.length);
        }
    } catch (error) { answer.error = `${error.name}: ${error.message}`; }
    return answer;
}
"""


class Quiet(http.server.BaseHTTPRequestHandler):
    """An empty page at every path."""

    def do_GET(self) -> None:
        body = b"<!doctype html><title>A page</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def origins() -> Iterator[tuple[str, str]]:
    """Two origins of this machine with a page each; the first one is declared on the box."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield (f"http://localhost:{servers[0].server_port}", f"http://localhost:{servers[1].server_port}")
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def gate(lab: Lab, origins: tuple[str, str]) -> Iterator[Door]:
    """The door, for pages of the first origin."""
    with door(lab, "browser", gateway_cors_origins=[origins[0]]) as opened:
        yield opened


@pytest.fixture(scope="module")
def token(gate: Door) -> str:
    """The token that the page was given."""
    return gate.new_token("page")


def issuer_key(gate: Door) -> str:
    """The SHA-256 of the public key that signed the box's certificate, once OpenSSL has checked it with the root that
    a run has fetched."""
    address = gate.box.address
    ask = ["openssl", "s_client", "-connect", f"{address}:443", "-showcerts", "-CAfile", str(gate.box.ca)]
    ask += ["-verify_return_error", "-verify_ip", address]
    shown = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    issuer = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", shown, re.DOTALL)[1]
    read = ["openssl", "x509", "-pubkey", "-noout"]
    pem = subprocess.run(read, input=issuer, capture_output=True, text=True, check=True).stdout
    der = base64.b64decode("".join(pem.splitlines()[1:-1]))
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """The browser, for as long as it is needed."""
    program = shutil.which("chromium")
    assert program, "install Debian's package chromium, as .ci/run does"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, headless=True, args=[*FLAGS, *flags])
        yield started
        started.close()


def test_a_browser_that_does_not_know_the_authority_opens_no_page(gate: Door) -> None:
    """So in the tests below the browser knows with whom it speaks. Before them: one browser at a time."""
    with chromium() as stranger, pytest.raises(Error, match="ERR_CERT_AUTHORITY_INVALID"):
        stranger.new_page().goto(f"https://{gate.box.address}/")


@pytest.fixture(scope="module")
def browser(gate: Door) -> Iterator[Browser]:
    """Chromium, which accepts what the box's own authority has signed, and no other unknown certificate."""
    with chromium(f"--ignore-certificate-errors-spki-list={issuer_key(gate)}") as started:
        yield started


@pytest.fixture
def pages(browser: Browser, origins: tuple[str, str], gate: Door) -> Iterator[tuple[Page, Page]]:
    """A page on each origin, in a fresh profile."""
    gate.engine.forget()
    context = browser.new_context()
    found = []
    for origin in origins:
        page = context.new_page()
        page.goto(f"{origin}/")
        found.append(page)
    yield (found[0], found[1])
    context.close()


def ask(page: Page, gate: Door, path: str, token: str = "", body: str = "", **options: Any) -> dict[str, Any]:
    """What a page gets from the box."""
    headers = {"Content-Type": "application/json"} if body else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    more = {"method": "POST", "body": body} if body else {}
    wanted = {"headers": headers, "credentials": "include", **more, **options}
    answer: dict[str, Any] = page.evaluate(ASK, [f"https://{gate.box.address}{path}", wanted])
    return answer


CHAT = "/v1/chat/completions"


def test_a_declared_page_reads_a_streamed_answer_piece_by_piece(
    pages: tuple[Page, Page], gate: Door, token: str
) -> None:
    """Each piece is on the page before the engine has the next one."""
    page = pages[0]
    answer = gate.engine.answer("page")
    words = ["one ", "two ", "three "]

    def arrived(count: int) -> None:
        if count < len(words):
            answer.say(words[count])
        else:
            answer.finish()

    page.expose_function("arrived", arrived)
    answer.say(words[0])
    got = ask(page, gate, CHAT, token, '{"model": "page", "stream": true, "messages": []}')
    assert "error" not in got, got
    assert (got["status"], got["type"]) == (200, "cors")
    # Three words, and the end of the stream.
    assert len(got["pieces"]) >= 4
    for word, piece in zip(words, got["pieces"], strict=False):
        assert word in piece
    assert got["pieces"][-1].endswith("data: [DONE]\n\n")
    # The browser asked first, and that question never came to the engine.
    assert [asked.method for asked in gate.engine.asked] == ["POST"]
    assert gate.engine.asked[0].header("authorization") is None


def test_another_page_is_refused_by_the_browser(pages: tuple[Page, Page], gate: Door, token: str) -> None:
    """The preflight already fails, so that the engine is not even asked."""
    for path, body in ((CHAT, '{"model": "x", "messages": []}'), ("/v1/models", "")):
        got = ask(pages[1], gate, path, token, body)
        assert got == {"pieces": [], "headers": {}, "error": "TypeError: Failed to fetch"}
    assert gate.engine.asked == []
    # The same page, the same request, were it declared.
    assert ask(pages[0], gate, "/v1/models", token)["status"] == 200


def test_a_declared_page_can_read_why_it_is_refused(pages: tuple[Page, Page], gate: Door, token: str) -> None:
    wrong = ask(pages[0], gate, "/v1/models", "a-token-that-nobody-has")
    assert wrong["status"] == 401
    assert "invalid_api_key" in wrong["pieces"][0]
    assert ask(pages[0], gate, "/v1/slots", token)["status"] == 404
    gate.engine.kill()
    try:
        gone = ask(pages[0], gate, "/v1/models", token)
    finally:
        gate.engine.start()
    assert gone["status"] == 502
    assert "engine_unavailable" in gone["pieces"][0]


def test_a_page_can_read_when_to_ask_again(pages: tuple[Page, Page], gate: Door, token: str) -> None:
    """Retry-After is no header that pages may read unless the server says so."""
    inventory = gate.settings
    gate.declare(**{**inventory, "gateway_in_flight": 1, "gateway_wait": 50})
    gate.apply().expect()
    held = gate.engine.answer("held", held=True)
    waiting = threading.Thread(
        target=gate.box.http,
        args=("POST", CHAT.lstrip("/")),
        kwargs={"headers": {"Authorization": f"Bearer {token}"}, "json": {"model": "held", "messages": []}},
    )
    waiting.start()
    try:
        got = {"status": 200}
        while got["status"] == 200:  # until the other request has come to the engine
            got = ask(pages[0], gate, "/v1/models", token)
    finally:
        held.release()
        waiting.join()
        gate.declare(**inventory)
        gate.apply().expect()
    assert got["status"] == 429
    assert got["headers"]["retry-after"] == "1"


def test_the_browser_sends_no_password_that_it_was_not_asked_for(pages: tuple[Page, Page], gate: Door) -> None:
    """A page has no credentials of the box but those that it sends itself: a page elsewhere cannot use a person's."""
    assert ask(pages[0], gate, "/v1/models")["status"] == 401
    assert gate.engine.asked == []
