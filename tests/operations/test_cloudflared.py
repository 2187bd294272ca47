"""Where a tunnel leads, asked of a web server that answers as the real cloudflared 2026.8.2 did; on this machine."""

from __future__ import annotations

import http.server
import json
import threading

import pytest
from harness import run

from boxwright.operations import cloudflared

GATEWAY = ("https://127.0.0.1:443", "https://localhost:443", "http_status:404")
# What a rule looks like there beside its service; shortened.
ORIGIN = {"connectTimeout": 10, "caPool": "", "noTLSVerify": False, "ipRules": None, "access": {"teamName": ""}}


def told(*services: str, version: int = 1) -> bytes:
    """The answer of `/config`."""
    rules = [
        {"hostname": "", "path": None, "service": one, "Handlers": None, "originRequest": ORIGIN} for one in services
    ]
    config = {"ingress": rules, "warp-routing": {}, "originRequest": ORIGIN}
    return json.dumps({"version": version, "config": config}, separators=(",", ":")).encode()


@pytest.fixture
def program(monkeypatch):
    """A running one: `answers` are given in turn, the last again and again."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        answers: tuple[bytes, ...] = ()
        asked = 0

        def do_GET(self) -> None:
            kind = type(self)
            body = kind.answers[min(kind.asked, len(kind.answers) - 1)]
            kind.asked += 1
            self.send_response(200 if body else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.port = server.server_port
    yield Handler
    server.shutdown()
    server.server_close()


def leads(program, *answers: bytes, elsewhere: bool = False, port: int = 0):
    program.answers, program.asked = answers, 0
    return run(lambda: cloudflared.leads_to(port or program.port, GATEWAY, elsewhere=elsewhere))


def test_rules_that_lead_to_the_gateway_change_nothing(program):
    result = leads(program, told("https://localhost:443", "http_status:404"))
    assert (result.ok, result.changed) == (True, [False])
    assert len(result.asked) == 1


@pytest.mark.parametrize("other", ["ssh://localhost:22", "http://127.0.0.1:11434", "https://127.0.0.1:4430", "bastion"])
def test_a_rule_past_the_gateway_fails_the_step_and_is_named(program, other):
    result = leads(program, told("https://localhost:443", other, "http_status:404"), elsewhere=True)
    assert not result.ok
    assert f"lead past the gateway, to: {other}\n" in result.printed
    assert "each to https://127.0.0.1:443" in result.printed


def test_rules_that_were_put_right_meanwhile_pass(program):
    bad, good = told("ssh://localhost:22", "http_status:404"), told("https://localhost:443", "http_status:404")
    assert leads(program, bad, good, elsewhere=True).ok


def test_rules_at_cloudflare_are_waited_for(program):
    """Until they arrive, what is on the box is told, with version -1."""
    local = told("http_status:404", version=-1)
    bad = told("ssh://localhost:22", "http_status:404")
    # Of a program that has run before, it is only known what it tells now.
    result = leads(program, b"", local, elsewhere=True)
    assert not result.ok
    assert "the rules of the tunnel cannot be read" in result.printed
    program.answers, program.asked = (local, local, bad), 0
    done = run(lambda: cloudflared.leads_to(program.port, ("https://127.0.0.1:443",), elsewhere=True))
    assert not done.ok
    assert "ssh://localhost:22" in done.printed
    assert program.asked == 3


def test_one_that_does_not_run_yet_is_asked_when_it_does(program):
    """At the first run nothing listens when the run is planned; then it does not answer either, and that is said."""
    result = leads(program, told("http_status:404"), port=1)
    assert not result.ok
    assert "the rules of the tunnel cannot be read" in result.printed


def test_readiness_is_what_the_program_says(program):
    command = cloudflared.ready(20241)
    assert command[0] == "/usr/bin/curl"
    assert "--fail" in command
    assert command[-1] == "http://127.0.0.1:20241/ready"
