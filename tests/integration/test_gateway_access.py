"""Who is let in by the gateway, what pages of other origins may do, what is logged, and what a wrong change does.

The engine is a double (engine_double.py): what it was asked shows what came through the door.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from doors import CHAT, LOG, MODELS, Door, door
from gateway_box import gateway_box, spellings, trust
from kit import Lab, eventually
from leaks import leaks, open_to_others, readable_by_others, watched_command_lines

pytestmark = pytest.mark.lab

PAGE = "https://app.example"
OTHER_PAGE = "http://localhost:5173"
# Enough for the questions of these tests.
LARGEST = 64 * 1024
SETTINGS: dict[str, Any] = {
    "gateway_cors_origins": [PAGE, OTHER_PAGE],
    "gateway_in_flight": 2,
    "gateway_wait": 100,
    "gateway_max_body": LARGEST,
    "gateway_routes": [
        {"path": "/token-only", "upstreams": ["{engine}"], "auth": "bearer"},
        {"path": "/password-only", "upstreams": ["{engine}"], "auth": "basic"},
        {"path": "/whole", "upstreams": ["{engine}"], "strip": False, "allow": ["/whole/ping"]},
    ],
}


@pytest.fixture(scope="module")
def _door(lab: Lab) -> Iterator[Door]:
    with door(lab, "access", **SETTINGS) as opened:
        yield opened


@pytest.fixture(scope="module")
def _laptop(_door: Door) -> str:
    return _door.new_token("laptop")


@pytest.fixture
def gate(_door: Door) -> Iterator[Door]:
    """The door, with its settings as in SETTINGS and an engine that works."""
    declared = _door.settings
    _door.engine.forget()
    yield _door
    if _door.settings is not declared:
        _door.declare(**declared)
        _door.apply().expect()


@pytest.fixture
def laptop(_laptop: str) -> str:
    """The token of a client."""
    return _laptop


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# Tokens


def test_a_token_is_admitted_at_once_and_nothing_is_restarted(gate: Door) -> None:
    before = gate.pid
    done = gate.token("add", "once").expect()
    token = done.out.removesuffix("\n")
    assert re.fullmatch(r"bw-[\w-]{43}", token)
    assert gate.with_token(token) == 200
    assert token not in done.err

    assert gate.token("add", "once").code == 2
    other = gate.token("rotate", "once").expect().out.strip()
    assert (gate.with_token(token), gate.with_token(other)) == (401, 200)

    listed = gate.token("list").expect()
    assert "once" in listed.out
    assert not any(text in listed.text for text in (token, other))

    gate.token("revoke", "once").expect()
    assert gate.with_token(other) == 401
    assert gate.pid == before
    # Nothing is left to do for a whole run, which finds the state that the tokens' own run left.
    assert gate.changes() == []
    assert gate.pid == before


def test_a_running_stream_is_not_cut_when_tokens_change(gate: Door, laptop: str) -> None:
    answer = gate.engine.answer("stream")
    question = {"model": "stream", "stream": True, "messages": []}
    headers = {"Authorization": f"Bearer {laptop}"}
    with gate.box.http("POST", CHAT, headers=headers, json=question, stream=True) as response:
        lines = response.iter_lines()
        answer.say("before ")
        assert "before" in next(line for line in lines if line).decode()
        gate.new_token("another")
        # Also for the client whose own token is taken away: what has begun may end.
        gate.new_token("laptop-of-a-guest")
        gate.token("revoke", "laptop-of-a-guest").expect()
        answer.say("after")
        assert "after" in next(line for line in lines if line).decode()
        answer.finish()
        assert [line for line in lines if line][-1] == b"data: [DONE]"


def test_a_revoked_token_ends_no_stream_but_begins_none(gate: Door) -> None:
    token = gate.new_token("leaving")
    answer = gate.engine.answer("leaving")
    question = {"model": "leaving", "stream": True, "messages": []}
    headers = {"Authorization": f"Bearer {token}"}
    with gate.box.http("POST", CHAT, headers=headers, json=question, stream=True) as response:
        lines = response.iter_lines()
        answer.say("one")
        assert next(line for line in lines if line)
        gate.token("revoke", "leaving").expect()
        assert gate.box.http("POST", CHAT, headers=headers, json=question).status_code == 401
        answer.say("two")
        answer.finish()
        assert [line for line in lines if line][-1] == b"data: [DONE]"


def test_a_token_is_seen_nowhere_but_where_it_was_asked_for(gate: Door) -> None:
    """Not in arguments of processes, here or on the box, nor in output, logs, or files that others can read."""
    with watched_command_lines() as lines:
        token = gate.new_token("quiet")
        # The file that holds it must be written again, and everything is asked to be shown.
        gate.box.sh("echo '# by hand' >>/etc/boxwright/caddy/Caddyfile")
        said = [gate.apply("-vvv", "--diff").expect().text]
        command = ("pyinfra", "-y", "-vvv", "--diff", "inventory.py", "deploys/tokens.py")
        said.append(gate.box.run(*command, inventory=gate.inventory).expect().text)
    said += [path.read_text(encoding="utf-8") for path in (gate.box.lab.state / "log").glob("*")]
    said.append(gate.box.sh("journalctl --no-pager --output=verbose"))
    assert any("token rotate quiet" in line or "token add quiet" in line for line in lines)
    for text in ["\n".join(lines), *said]:
        assert leaks(text, {"token": token}) == []
    assert readable_by_others(gate.box, [token], ("/etc", "/var", "/opt", "/home", "/run", "/tmp")) == []
    assert open_to_others(gate.box.lab.state / "secrets") == []


# Who is let in


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_may_be_written_in_any_case(gate: Door, laptop: str, scheme: str) -> None:
    assert gate.status(Authorization=f"{scheme} {laptop}") == 200


def test_what_is_nearly_a_token_is_refused(gate: Door, laptop: str) -> None:
    another_box = f"bw-{secrets.token_urlsafe(32)}"
    wrong = [another_box, laptop[:-1], laptop + "x", laptop.swapcase(), laptop + "=", "*", "laptop", laptop[3:]]
    values = [f"Bearer {token}" for token in wrong]
    values += [
        "Bearer",
        "Bearer ",
        laptop,
        f"Token {laptop}",
        f"Bearer{laptop}",
        f"Bearer {laptop} x",
        f"x Bearer {laptop}",
    ]
    values += [f"Bearer {laptop},Bearer {laptop}", basic("laptop", laptop), basic("", laptop), basic(laptop, "")]
    values += [f"Basic {laptop}", "Basic", "Basic !!!", "Negotiate abc", "Digest username=boxwright", ""]
    for value in values:
        assert gate.status(Authorization=value) == 401, value
    assert gate.engine.asked == []


def test_a_token_in_another_place_is_no_credential(gate: Door, laptop: str) -> None:
    headers = [{"X-Api-Key": laptop}, {"Cookie": f"token={laptop}"}, {"Proxy-Authorization": f"Bearer {laptop}"}]
    headers += [{"X-Forwarded-User": "laptop"}, {"X-Forwarded-For": "127.0.0.1"}, {"X-Real-Ip": "127.0.0.1"}]
    for each in headers:
        assert gate.box.http("GET", MODELS, headers=each).status_code == 401, each
    for path in (f"{MODELS}?token={laptop}", f"{MODELS}?api_key={laptop}", f"{MODELS}?access_token={laptop}"):
        assert gate.status(path) == 401
    assert gate.engine.asked == []


def test_user_and_password_and_tokens_work_side_by_side(gate: Door, laptop: str) -> None:
    user, password = gate.box.credentials
    assert gate.status(Authorization=basic(user, password)) == 200
    assert gate.with_token(laptop) == 200
    for value in (basic(user, laptop), basic(user, password + "x"), basic("laptop", password), f"Bearer {password}"):
        assert gate.status(Authorization=value) == 401, value


@pytest.mark.parametrize(
    ("path", "token", "password", "challenge"),
    [
        (MODELS, 200, 200, "Basic"),
        ("token-only/v1/models", 200, 401, "Bearer"),
        ("password-only/v1/models", 401, 200, "Basic"),
    ],
)
def test_every_route_has_its_way_to_prove_who_one_is(
    gate: Door, laptop: str, path: str, token: int, password: int, challenge: str
) -> None:
    assert gate.with_token(laptop, path) == token
    assert gate.status(path, Authorization=basic(*gate.box.credentials)) == password
    refused = gate.box.http("GET", path)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith(f"{challenge} realm=")
    assert refused.headers["Content-Type"] == "application/json"
    assert refused.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(("auth", "token", "password"), [("bearer", 200, 401), ("basic", 401, 200)])
def test_one_of_both_alone(gate: Door, laptop: str, auth: str, token: int, password: int) -> None:
    before = gate.pid
    gate.declare(**{**gate.settings, "gateway_auth": auth})
    gate.apply().expect()
    assert gate.with_token(laptop) == token
    assert gate.status(Authorization=basic(*gate.box.credentials)) == password
    assert gate.status() == 401
    assert gate.pid == before


def test_without_authentication_the_door_is_open_to_the_box_alone(gate: Door) -> None:
    gate.declare(**{**gate.settings, "gateway_auth": "none"})
    refused = gate.apply()
    assert (refused.code, "BW023" in refused.text) == (2, True)
    gate.declare(**{**gate.settings, "gateway_bind": ["127.0.0.1"]})
    gate.apply().expect()
    address = gate.box.address
    inside = f"curl -sk -o /dev/null -w '%{{http_code}}' --connect-to {address}:443:127.0.0.1:443 https://{address}/"
    assert gate.box.sh(inside + MODELS) == "200"
    with pytest.raises(OSError, match="refused"):
        http.client.HTTPSConnection(address, timeout=10).request("GET", "/")


# What comes through


def test_the_engine_sees_no_credentials(gate: Door, laptop: str) -> None:
    values = [f"Bearer {laptop}", basic(*gate.box.credentials)]
    for value in values:
        headers = {"Authorization": value, "Cookie": "session=crumbs", "X-Mine": "kept"}
        assert gate.box.http("GET", MODELS, headers=headers).status_code == 200
        assert gate.box.http("GET", "whole/ping", headers=headers).status_code == 200
    assert [asked.target for asked in gate.engine.asked] == ["/v1/models", "/whole/ping"] * 2
    for asked in gate.engine.asked:
        assert asked.header("authorization") is None
        assert asked.header("cookie") is None
        assert asked.header("x-mine") == "kept"
        assert b"crumbs" not in asked.head
        assert asked.header("host") == gate.engine.upstream


# llama.cpp, Ollama, vLLM and LM Studio answer on these.
ADMINISTRATIVE = ["v1", "v1/", "v1/load_lora_adapter", "v1/internal/model/load", "v1/chat", "v1/modelsx", "v1/api/pull"]


@pytest.mark.parametrize("path", [*ADMINISTRATIVE, "token-only/slots", "token-only/api/delete", "whole/v1/models"])
def test_other_paths_of_an_engine_are_offered_to_nobody(gate: Door, laptop: str, path: str) -> None:
    """Who has no credentials learns not even that."""
    assert gate.status(path) == 401
    refused = gate.box.http("POST", path, headers={"Authorization": f"Bearer {laptop}"}, json={})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "unknown_path"
    assert gate.engine.asked == []


@pytest.mark.parametrize("path", ["", "metrics", "health", "slots", "api/tags", "v1x/models", "token-onlyx", "config/"])
def test_nothing_is_beside_the_declared_routes(gate: Door, laptop: str, path: str) -> None:
    assert gate.with_token(laptop, path) == 404
    assert gate.engine.asked == []


# CORS


def cors(response: Any) -> dict[str, list[str]]:
    """The CORS headers of an answer, each with all its values."""
    found: dict[str, list[str]] = {}
    for name, value in response.raw.headers.items():
        if name.lower().startswith("access-control-"):
            found.setdefault(name.lower(), []).append(value)
    return found


@pytest.fixture
def answers(gate: Door, laptop: str) -> Iterator[dict[int, Any]]:
    """How to get each status that the gateway answers, as functions of the headers of a request."""
    allowed = {"Authorization": f"Bearer {laptop}"}

    def full(headers: dict[str, str]) -> Any:
        """With as many requests at work as there may be."""
        held = gate.engine.answer("held", held=True)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(2):
                pool.submit(gate.box.http, "POST", CHAT, headers=allowed, json={"model": "held", "messages": []})
            eventually("two requests are at work", lambda: gate.engine.in_flight == 2)
            try:
                return gate.box.http("GET", MODELS, headers=allowed | headers)
            finally:
                held.release()

    def gone(headers: dict[str, str]) -> Any:
        gate.engine.kill()
        try:
            return gate.box.http("GET", MODELS, headers=allowed | headers)
        finally:
            gate.engine.start()

    def too_large(headers: dict[str, str]) -> Any:
        return gate.box.http("POST", CHAT, headers=allowed | headers, data=b"x" * (LARGEST + 1))

    return {
        200: lambda headers: gate.box.http("GET", MODELS, headers=allowed | headers),
        401: lambda headers: gate.box.http("GET", MODELS, headers=headers),
        404: lambda headers: gate.box.http("GET", "v1/slots", headers=allowed | headers),
        413: too_large,
        429: full,
        502: gone,
    }


STATUSES = [200, 401, 404, 413, 429, 502]


@pytest.mark.parametrize("origin", [PAGE, OTHER_PAGE])
@pytest.mark.parametrize("status", STATUSES)
def test_a_declared_page_can_read_every_answer(answers: dict[int, Any], status: int, origin: str) -> None:
    """Each header comes with exactly one value, although the engine sends its own."""
    response = answers[status]({"Origin": origin})
    assert response.status_code == status
    assert cors(response) == {
        "access-control-allow-origin": [origin],
        "access-control-allow-credentials": ["true"],
        "access-control-expose-headers": ["Retry-After"],
    }
    assert response.headers["Vary"] == "Origin"
    if status != 200:
        assert response.json()["error"]["message"]


# None of them is declared, though some look like it.
UNDECLARED = [
    "https://evil.example",
    "null",
    "http://app.example",
    "https://app.example.evil.example",
    "https://evilapp.example",
    "https://app.example:8443",
    "https://APP.example",
    "*",
    f"{PAGE}, {OTHER_PAGE}",
]


@pytest.mark.parametrize("status", STATUSES)
def test_no_other_page_can_read_any_answer(answers: dict[int, Any], status: int) -> None:
    for headers in ({"Origin": UNDECLARED[0]}, {}):
        response = answers[status](headers)
        assert response.status_code == status
        assert cors(response) == {}, "also not the engine's own"
        # What lies in between keeps answers to different pages apart.
        assert response.headers["Vary"] == "Origin"


def test_origins_that_look_like_a_declared_one(gate: Door, laptop: str) -> None:
    for origin in UNDECLARED:
        response = gate.box.http("GET", MODELS, headers={"Authorization": f"Bearer {laptop}", "Origin": origin})
        assert (response.status_code, cors(response)) == (200, {}), origin


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.mark.parametrize("path", [CHAT, "token-only/v1/models", "password-only/v1/models"])
@pytest.mark.parametrize("origin", [PAGE, OTHER_PAGE])
def test_a_preflight_is_answered_without_credentials(gate: Door, path: str, origin: str) -> None:
    response = gate.box.http("OPTIONS", path, headers={**PREFLIGHT, "Origin": origin})
    assert (response.status_code, response.content) == (204, b"")
    found = cors(response)
    assert found["access-control-allow-origin"] == [origin]
    assert found["access-control-allow-credentials"] == ["true"]
    assert found["access-control-allow-headers"] == ["authorization,content-type"]
    assert {"GET", "POST", "OPTIONS"} <= set(re.split(r",\s*", found["access-control-allow-methods"][0]))
    assert int(found["access-control-max-age"][0]) > 0
    assert all(len(values) == 1 for values in found.values())
    assert gate.engine.asked == []


@pytest.mark.parametrize("headers", [{"Origin": UNDECLARED[0], **PREFLIGHT}, {"Origin": PAGE}, PREFLIGHT, {}])
def test_what_is_no_preflight_of_a_declared_page_needs_credentials(gate: Door, headers: dict[str, str]) -> None:
    response = gate.box.http("OPTIONS", CHAT, headers=headers)
    assert response.status_code == 401
    assert "access-control-allow-methods" not in cors(response)
    assert gate.engine.asked == []


# The access log


def entries(gate: Door, mark: str, count: int = 1) -> list[dict[str, Any]]:
    """The entries with `mark` in their address, as soon as there are `count`."""

    def found() -> list[dict[str, Any]]:
        chosen = [entry for entry in gate.log() if mark in entry["request"]["uri"]]
        return chosen if len(chosen) >= count else []

    return list(eventually(f"{count} entries in the log", found, 20))


def test_the_log_tells_who_asked_and_how_long_it_took(gate: Door, laptop: str) -> None:
    mark = secrets.token_hex(4)
    gate.with_token(laptop, f"{MODELS}?{mark}=1")
    gate.status(f"{MODELS}?{mark}=2", Authorization=basic(*gate.box.credentials))
    gate.status(f"{MODELS}?{mark}=3")
    gate.status(f"{MODELS}?{mark}=4", Authorization=basic("somebody", "wrong"))
    found = {entry["request"]["uri"][-1]: entry for entry in entries(gate, mark, 4)}
    assert [found[number]["status"] for number in "1234"] == [200, 200, 401, 401]
    assert [found[number]["client"] for number in "1234"] == ["laptop", gate.box.credentials[0], "", ""]
    for number in "12":
        assert 0 < float(found[number]["first_byte_ms"]) < 60000
        assert found[number]["duration"] > 0
        assert found[number]["request"]["remote_ip"] == found[number]["request"]["client_ip"] == gate.engine.address


def test_names_that_look_like_numbers_stay_names_and_a_token_is_no_pattern(gate: Door) -> None:
    """Caddy would read such a token as a regular expression, which many tokens match, and such a name as a number."""
    token = "~" + "." * 40
    gate.declare(**{**gate.settings, "gateway_tokens": {"007": token, "inf": "x" * 20, "true": "y" * 20}})
    gate.apply().expect()
    mark = secrets.token_hex(4)
    assert gate.with_token("a" * 41) == 401
    assert gate.with_token(token, f"{MODELS}?{mark}=007") == 200
    assert gate.with_token("x" * 20, f"{MODELS}?{mark}=inf") == 200
    assert gate.with_token("y" * 20, f"{MODELS}?{mark}=true") == 200
    for entry in entries(gate, mark, 3):
        assert entry["client"] == entry["request"]["uri"].rpartition("=")[2]


def test_no_secret_is_in_the_log_or_the_journal(gate: Door, laptop: str, answers: dict[int, Any]) -> None:
    mark, secret = secrets.token_hex(4), f"hush{secrets.token_hex(12)}"
    since = gate.box.sh("date +%s").strip()
    user, password = gate.box.credentials
    parameters = ["key", "api_key", "apikey", "api-key", "token", "access_token", "id_token", "code", "password"]
    query = "&".join(f"{name}={secret}" for name in parameters) + f"&%61pi_key={secret}&API_KEY={secret}&{mark}=1"
    carried = {
        "X-Api-Key": secret,
        "Api-Key": secret,
        "Cookie": f"session={secret}",
        "Proxy-Authorization": f"Bearer {secret}",
        "Referer": f"https://app.example/?key={secret}",
        "Sec-WebSocket-Protocol": f"openai-insecure-api-key.{secret}",
    }
    credentials = [f"Bearer {laptop}", basic(user, password), f"Bearer {secret}", basic(user, secret)]
    for value in credentials:
        gate.box.http("GET", f"{MODELS}?{query}", headers={**carried, "Authorization": value})
        gate.box.http("GET", f"not-there?{query}", headers={**carried, "Authorization": value})
    # What goes wrong is told in the journal too: an engine that dies in the middle of an answer, one that is gone.
    answer = gate.engine.answer("dying")
    answer.say("one")
    headers = {**carried, "Authorization": credentials[0]}
    question = {"model": "dying", "stream": True, "messages": []}
    with gate.box.http("POST", f"{CHAT}?{query}", headers=headers, json=question, stream=True) as response:
        lines = response.iter_lines()
        assert next(lines)
        gate.engine.kill()
        with pytest.raises(requests.RequestException):
            list(lines)
    try:
        headers = {**carried, "Authorization": credentials[0]}
        assert gate.box.http("GET", f"{MODELS}?{query}", headers=headers).status_code == 502
    finally:
        gate.engine.start()
    for status in STATUSES:
        answers[status](carried)
    found = entries(gate, mark, 9)
    assert all(
        entry["request"]["uri"].endswith(f"&{mark}=1") or f"{mark}=1" in entry["request"]["uri"] for entry in found
    )
    texts = {
        "the log": gate.box.sh(f"cat {LOG}"),
        "the journal": gate.box.sh(f"journalctl --sync; journalctl --no-pager --output=cat --since=@{since}"),
    }
    assert "502" in texts["the log"]
    assert "incomplete response" in texts["the journal"]
    hidden = [secret, laptop, password, base64.b64encode(f"{user}:{password}".encode()).decode()]
    for where, text in texts.items():
        for value in hidden:
            assert value not in text, f"{where}: {next(line for line in text.splitlines() if value in line)[:2000]}"


def test_no_spelling_of_a_parameter_brings_a_secret_into_the_log(gate: Door, laptop: str) -> None:
    mark, secret = secrets.token_hex(4), f"hush{secrets.token_hex(12)}"
    queries = spellings(secret)
    connection = http.client.HTTPSConnection(gate.box.address, context=trust(gate.box), timeout=30)
    for number, query in enumerate(queries):
        target = f"/{MODELS}/{mark}-{number}?model=banana&{query}"
        connection.request("GET", target, headers={"Authorization": f"Bearer {laptop}"})
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True), query
    connection.close()
    # Each of them is there, with what is no secret.
    found = entries(gate, mark, len(queries))
    assert len(found) == len(queries)
    assert all("?model=banana&" in entry["request"]["uri"] for entry in found)
    for entry in found:
        assert secret not in json.dumps(entry), entry["request"]["uri"]


def test_the_log_is_for_root_and_the_gateway_alone(gate: Door) -> None:
    assert gate.box.sh(f"stat -c '%U %G %a' {LOG}").strip() == "caddy caddy 640"
    assert not gate.box.succeeds(f"su -s /bin/sh nobody -c 'cat {LOG}'")
    assert gate.box.succeeds(f"su -s /bin/sh caddy -c 'cat {LOG}'")


def test_the_log_is_rotated(gate: Door) -> None:
    keep = 2
    gate.declare(**{**gate.settings, "gateway_log_size": "1MiB", "gateway_log_keep": keep})
    gate.apply().expect()
    # Every entry has the query of its request: 5 MiB of them.
    connection = http.client.HTTPSConnection(gate.box.address, context=trust(gate.box), timeout=30)
    for number in range(170):
        connection.request("GET", f"/{MODELS}?number={number}&{'x' * 30000}")
        assert connection.getresponse().read()
    connection.close()

    def old() -> list[str]:
        return gate.box.sh(f"find {Path(LOG).parent} -name 'access-*' | sort").split()

    def rotated() -> bool:
        return len(old()) == keep and all(name.endswith(".gz") for name in old())

    eventually("old logs are compressed, and no more than are to be kept", rotated, 30)
    assert int(gate.box.sh(f"stat -c %s {LOG}")) <= 1024**2
    modes = gate.box.sh(f"stat -c '%U %a' {LOG} {' '.join(old())}").splitlines()
    assert set(modes) <= {"caddy 640", "caddy 600"}
    for name in old():
        lines = [json.loads(line) for line in gate.box.sh(f"zcat {name}").splitlines()]
        assert len(lines) > 10
        assert {line["status"] for line in lines[-10:]} == {401}


# What is not for others


def test_metrics_are_on_loopback_alone(gate: Door, laptop: str) -> None:
    assert gate.with_token(laptop) == 200
    text = gate.box.sh("curl -s http://127.0.0.1:9180/metrics")
    assert "caddy_http_requests_total" in text
    assert laptop not in text
    listening = gate.box.sh("ss -Hltn 'sport = :9180'").split()
    assert listening[3] == "127.0.0.1:9180"
    with pytest.raises(OSError, match="refused"):
        http.client.HTTPConnection(gate.box.address, 9180, timeout=10).request("GET", "/metrics")
    # Not by the door either.
    assert gate.with_token(laptop, "metrics") == 404


def test_administration_is_for_root_and_the_gateway_alone(gate: Door) -> None:
    ask = "curl -sS --fail --unix-socket /run/caddy/admin.sock http://127.0.0.1/config/admin"
    assert "admin.sock" in gate.box.sh(ask)
    assert not gate.box.succeeds(f"su -s /bin/sh nobody -c '{ask}'")
    assert "2019" not in gate.box.sh("ss -Hltn")


# A wrong change


def test_a_configuration_that_cannot_be_loaded_is_taken_back(gate: Door, laptop: str) -> None:
    """An address that the box does not have: the program takes it for valid, and cannot listen there."""
    good = gate.box.sh("sha256sum /etc/boxwright/caddy/Caddyfile")
    right = gate.settings
    gate.declare(**{**right, "gateway_bind": ["192.0.2.77"]})
    failed = gate.apply("-v")
    assert failed.code == 1
    assert "gateway: running" in failed.text
    assert "192.0.2.77" in failed.text
    assert "the new one was taken back" in failed.text
    assert gate.box.sh("sha256sum /etc/boxwright/caddy/Caddyfile") == good
    assert gate.with_token(laptop) == 200
    # It fails again as long as the settings are wrong, and tokens are not given out meanwhile.
    added = gate.token("add", "too-early")
    assert (added.code, added.out) == (1, "")
    assert "too-early has no token" in added.err
    assert gate.with_token(laptop) == 200

    gate.declare(**right)
    gate.apply().expect()
    assert gate.with_token(laptop) == 200
    assert gate.changes() == []


def test_a_stream_outlives_a_configuration_that_cannot_be_loaded(gate: Door, laptop: str) -> None:
    answer = gate.engine.answer("outlives")
    question = {"model": "outlives", "stream": True, "messages": []}
    headers = {"Authorization": f"Bearer {laptop}"}
    before = gate.pid
    with gate.box.http("POST", CHAT, headers=headers, json=question, stream=True) as response:
        lines = response.iter_lines()
        answer.say("before")
        assert next(line for line in lines if line)
        gate.declare(**{**gate.settings, "gateway_bind": ["192.0.2.77"]})
        assert gate.apply().code == 1
        answer.say("after")
        answer.finish()
        assert [line for line in lines if line][-1] == b"data: [DONE]"
    assert gate.pid == before


def test_a_configuration_that_does_not_answer_is_taken_back(gate: Door, laptop: str) -> None:
    """Somebody else's program has the door's traffic: what is loaded is right, and yet nobody is served."""
    right = gate.settings
    # What asks on the box whether the door answers goes to loopback, where now nothing passes.
    block = "iptables {} INPUT -i lo -p tcp --dport 443 -j REJECT"
    gate.box.sh("command -v iptables >/dev/null || apt-get install -qq iptables >/dev/null 2>&1")
    gate.box.sh(block.format("-I"))
    try:
        gate.declare(**{**right, "gateway_idle_timeout": 301})
        failed = gate.apply()
        assert failed.code == 1
        assert "caddy.service runs, but does not answer" in failed.text
    finally:
        gate.box.sh(block.format("-D"))
    assert "idle 300s" in gate.box.sh("cat /etc/boxwright/caddy/Caddyfile")
    assert gate.with_token(laptop) == 200
    gate.apply().expect()
    assert "idle 301s" in gate.box.sh("cat /etc/boxwright/caddy/Caddyfile")
    assert gate.with_token(laptop) == 200


def test_a_configuration_that_was_changed_by_hand_is_put_back(gate: Door, laptop: str) -> None:
    gate.box.sh("sed -i 's/basic_auth/#basic_auth/; s/ 401/ 200/' /etc/boxwright/caddy/Caddyfile")
    assert "gateway: write the Caddyfile" in gate.changes()
    assert (gate.with_token(laptop), gate.status()) == (200, 401)
    assert gate.changes() == []


# Last: it takes the box away.


def test_a_box_that_is_built_again_accepts_the_same_token(lab: Lab, gate: Door, laptop: str) -> None:
    before = gate.box.container.id
    lab.run("boxwright", "lab", "down", gate.box.name).expect()
    del lab.boxes["gateway"]
    gateway_box(lab)
    assert gate.box.container.id != before
    gate.declare(**gate.settings)
    gate.apply().expect()
    assert gate.with_token(laptop) == 200
    assert gate.status() == 401
