"""The gateway as nginx, on a box of its own: the same door with the same checks, and the way to Caddy and back.

What came through is told by doubles of engines on this machine, what the box is like by docker exec.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import requests
from engine_double import EngineDouble
from gateway_box import OTHER_TOKEN, TOKEN, Crowd, Gateway, connect, question, spellings, this_machine
from kit import LIGHT, Box, Lab, eventually
from scanner import expect_none, findings
from snapshots import made_of
from streams import expect_many_held, expect_survived, silent_streams
from test_removal import added, removed

pytestmark = pytest.mark.lab

ORIGIN = "https://app.example"
PLACES = 3
# The engine behind /v1 is the real one; what must be seen from behind is asked of doubles on further paths.
MODELS, CHAT = "/one/v1/models", "/one/v1/chat/completions"
QUIET = "/quiet/v1/chat/completions"


@pytest.fixture(scope="module")
def box(lab: Lab) -> Box:
    return lab.up("nginx", LIGHT)


@pytest.fixture(scope="module")
def bare(box: Box) -> set[str]:
    """What the box is made of before the first run, and without what a run before this session left."""
    if box.lab.kept:
        removed(box, "--purge")
    return made_of(box)


@pytest.fixture(scope="module")
def engines(bare: set[str], box: Box) -> Iterator[tuple[EngineDouble, EngineDouble]]:
    address = this_machine(box)
    with EngineDouble(address, name="one") as one, EngineDouble(address, name="two") as two:
        yield one, two


@pytest.fixture(scope="module")
def quiet(box: Box, bare: set[str]) -> Iterator[EngineDouble]:
    """An engine that no test disturbs."""
    with EngineDouble(this_machine(box), name="quiet") as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(box: Box, engines: tuple[EngineDouble, EngineDouble], quiet: EngineDouble) -> Gateway:
    one, two = engines
    return Gateway(
        box,
        "nginx",
        gateway_server="nginx",
        gateway_max_body="1MiB",
        gateway_cors_origins=[ORIGIN],
        gateway_routes=[
            {"path": "/one", "upstreams": [one.upstream], "in_flight": PLACES},
            {"path": "/both", "upstreams": [one.upstream, two.upstream], "in_flight": 2},
            {"path": "/nobody", "upstreams": ["127.0.0.1:9"]},
            {"path": "/tokens", "upstreams": [two.upstream], "auth": "bearer"},
            {"path": "/quiet", "upstreams": [quiet.upstream], "in_flight": 2000},
        ],
        # Much shorter than the silence of streams: it counts between requests, and never in one.
        gateway_idle_timeout=3,
    )


@pytest.fixture(scope="module", autouse=True)
def silent(gateway: Gateway, quiet: EngineDouble) -> Iterator[dict[tuple[str, bool], Future[list[str]]]]:
    """Streams that are silent while the other tests run."""
    with silent_streams(gateway, quiet, QUIET) as streams:
        yield streams


def ask(gateway: Gateway, method: str, path: str, token: str | None = TOKEN, **arguments: object) -> requests.Response:
    """A request with a path to the letter, on a connection of its own."""
    headers = dict(arguments.pop("headers", {}))  # type: ignore[call-overload]
    if token:
        headers["Authorization"] = f"Bearer {token}"
    prepared = requests.Request(method, gateway.url, headers=headers, **arguments).prepare()  # type: ignore[arg-type]
    prepared.url = gateway.url + path  # requests would tidy it
    with requests.Session() as session:
        session.trust_env = False
        return session.send(prepared, verify=str(gateway.box.ca), timeout=60, allow_redirects=False)


def code(answer: requests.Response) -> str:
    """The code of an error in the form of the OpenAI API."""
    found: str = answer.json()["error"]["code"]
    return found


def test_a_second_run_changes_nothing_and_every_check_holds(gateway: Gateway) -> None:
    assert gateway.box.changes(gateway.inventory) == []
    said = gateway.box.run("boxwright", "verify", inventory=gateway.inventory).expect().text
    assert ", 0 failed" in said
    assert "nginx has no administration interface" in said


def test_only_the_right_credentials_open_the_door(gateway: Gateway, engines: tuple[EngineDouble, EngineDouble]) -> None:
    one, _ = engines
    one.forget()
    wrong = [None, TOKEN.upper(), TOKEN[:-1], f"{TOKEN}x", f"x{TOKEN}", f"{TOKEN} {TOKEN}", ".*", f"{TOKEN},"]
    for token in wrong:
        answer = ask(gateway, "GET", MODELS, token)
        assert (answer.status_code, code(answer)) == (401, "invalid_api_key"), token
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="private model"'
    user, password = gateway.box.credentials
    for pair in ((user, "wrong"), (user.upper(), password), ("", password)):
        assert ask(gateway, "GET", MODELS, None, auth=pair).status_code == 401
    assert one.asked == []

    assert ask(gateway, "GET", MODELS, OTHER_TOKEN).status_code == 200
    assert ask(gateway, "GET", MODELS, None, auth=(user, password)).status_code == 200
    assert ask(gateway, "GET", MODELS, None, headers={"Authorization": f"bEARER  {TOKEN}"}).status_code == 200
    assert [asked.header("authorization") for asked in one.asked] == [None] * 3
    # A route that wants tokens wants nothing else.
    refused = ask(gateway, "GET", "/tokens/v1/models", None, auth=(user, password))
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, 'Bearer realm="private model"')
    assert ask(gateway, "GET", "/tokens/v1/models").headers["X-Engine"] == "two"


@pytest.mark.parametrize(
    ("path", "reached"),
    [
        ("//one/v1/models", "/v1/models"),
        ("/one//v1//models", "/v1/models"),
        ("/x/../one/v1/models", "/v1/models"),
        ("/one%2Fv1%2Fmodels", "/v1/models"),
        ("/%6fne/v1/models", "/v1/models"),
        ("/tokens/../one/v1/models", "/v1/models"),
        ("/one/v1/models/a%20b%3Fc%25", "/v1/models/a%20b%3Fc%25"),
        ("/one/v1/models/..%2f..%2fslots", None),
        ("/one/v1/../slots", None),
        ("/one/v1/models%0d%0aX:%20y", None),
        ("/one/v1/models%0a", None),
        ("/one/v1/models%00", None),
        ("/one/v1/slots", None),
        ("/one", None),
        ("/ONE/v1/models", None),
        ("/onev1/models", None),
    ],
)
def test_no_spelling_of_a_path_goes_around_the_door(
    gateway: Gateway, engines: tuple[EngineDouble, EngineDouble], path: str, reached: str | None
) -> None:
    for engine in engines:
        engine.forget()
    assert ask(gateway, "GET", path, None).status_code in (400, 401, 404)
    assert [asked.target for engine in engines for asked in engine.asked] == []
    ask(gateway, "GET", path)
    # The engine gets the path as the door understood it, not as it was spelled.
    assert [asked.target for engine in engines for asked in engine.asked] == ([reached] if reached else [])


def test_a_declared_origin_is_told_so_once_in_every_answer(gateway: Gateway) -> None:
    """Also in errors, and although the engine sends headers of its own."""
    origin = {"Origin": ORIGIN}
    big = {"data": b" " * (1024**2 + 1)}
    answers = {
        200: ask(gateway, "GET", MODELS, headers=origin),
        401: ask(gateway, "GET", MODELS, None, headers=origin),
        404: ask(gateway, "GET", "/one/v1/slots", headers=origin),
        413: ask(gateway, "POST", CHAT, headers=origin, **big),
        502: ask(gateway, "GET", "/nobody/v1/models", headers=origin),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN, status
        assert answer.headers["Access-Control-Allow-Credentials"] == "true", status
        assert answer.headers["Content-Type"].startswith("application/json"), status
    assert code(answers[413]) == "request_too_large"

    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = ask(gateway, "OPTIONS", CHAT, None, headers={**origin, **wanted})
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]

    for other in (f"{ORIGIN}.evil", "https://appxexample", ORIGIN.upper()):
        refused = ask(gateway, "OPTIONS", CHAT, None, headers={"Origin": other, **wanted})
        assert refused.status_code == 401
        answer = ask(gateway, "GET", MODELS, headers={"Origin": other})
        assert not [name for name in answer.headers if name.startswith("Access-Control-Allow")], other


def test_further_requests_are_refused_at_once_and_strangers_take_no_place(
    gateway: Gateway, engines: tuple[EngineDouble, EngineDouble]
) -> None:
    one, _ = engines
    held = one.answer("places", held=True)
    one.forget()
    # Without credentials, and with a body that never ends: these must not count.
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {gateway.box.address}\r\nContent-Length: 1000\r\n\r\nabc".encode()
    strangers = [connect(gateway.box) for _ in range(2 * PLACES)]
    try:
        for stranger in strangers:
            stranger.sendall(head)
            assert stranger.recv(12) == b"HTTP/1.1 401"
        with Crowd(gateway, 4 * PLACES) as crowd:
            asked = [crowd.ask(question("places"), CHAT, headers={"Origin": ORIGIN}) for _ in range(4 * PLACES)]
            eventually("the others are refused", lambda: sum(each.done() for each in asked) == 3 * PLACES)
            eventually("the places are taken", lambda: one.in_flight == PLACES)
            held.release()
            answers = [each.result() for each in asked]
    finally:
        for stranger in strangers:
            stranger.close()
    assert Counter(answer.status_code for answer in answers) == {200: PLACES, 429: 3 * PLACES}
    assert one.peak == PLACES
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "chat_concurrency_limit"
            assert answer.headers["Retry-After"] == "1"
        assert answer.headers.get_list("Access-Control-Allow-Origin") == [ORIGIN]


def test_of_two_engines_a_dead_one_is_left_out(gateway: Gateway, engines: tuple[EngineDouble, EngineDouble]) -> None:
    one, two = engines
    path = "/both/v1/chat/completions"
    both = {ask(gateway, "POST", path, json=question("any")).headers["X-Engine"] for _ in range(6)}
    assert both == {"one", "two"}
    held = [engine.answer("both", held=True) for engine in engines]
    with Crowd(gateway, 10) as crowd:
        asked = [crowd.ask(question("both"), path) for _ in range(10)]
        eventually("the others are refused", lambda: sum(each.done() for each in asked) == 6)
        eventually("the places are taken", lambda: (one.in_flight, two.in_flight) == (2, 2))
        for answer in held:
            answer.release()
        assert Counter(each.result().status_code for each in asked) == {200: 4, 429: 6}

    two.kill()
    try:
        answers = [ask(gateway, "POST", path, json=question("any")) for _ in range(10)]
        assert {(answer.status_code, answer.headers["X-Engine"]) for answer in answers} == {(200, "one")}
        # The other one is busy, not gone.
        busy = one.answer("busy", held=True)
        with Crowd(gateway, 6) as crowd:
            asked = [crowd.ask(question("busy"), path) for _ in range(6)]
            eventually("the others are refused", lambda: sum(each.done() for each in asked) == 4)
            busy.release()
            refused = [each.result() for each in asked if each.result().status_code != 200]
        assert [each.status_code for each in refused] == [429] * 4
        assert {each.json()["error"]["code"] for each in refused} == {"chat_concurrency_limit"}
        assert {each.headers["Retry-After"] for each in refused} == {"1"}
        one.kill()
        gone = ask(gateway, "POST", path, json=question("any"))
        assert (gone.status_code, code(gone)) == (502, "engine_unavailable")
    finally:
        for engine in engines:
            engine.kill()
            engine.start()
    eventually("both are back", lambda: ask(gateway, "POST", path, json=question("any")).status_code == 200, 30)


def test_tokens_come_and_go_and_a_stream_goes_on(gateway: Gateway, engines: tuple[EngineDouble, EngineDouble]) -> None:
    one, _ = engines
    said = one.answer("stream")
    process = gateway.box.pid("nginx")
    with (
        gateway.client() as client,
        client.stream("POST", CHAT, json=question("stream", stream=True)) as stream,
    ):
        lines = (line for line in stream.iter_lines() if line)
        said.say("first")
        # It is here while the answer goes on.
        assert '"first"' in next(lines)
        token = gateway.token("add", "later")
        assert ask(gateway, "GET", MODELS, token).status_code == 200
        gateway.token("revoke", "later")
        assert ask(gateway, "GET", MODELS, token).status_code == 401
        said.say("second")
        assert '"second"' in next(lines)
        said.finish()
        assert list(lines)[-1] == "data: [DONE]"
    assert gateway.box.pid("nginx") == process
    assert gateway.box.changes(gateway.inventory) == []


def test_when_a_client_leaves_the_engine_stops(gateway: Gateway, engines: tuple[EngineDouble, EngineDouble]) -> None:
    one, _ = engines
    one.answer("endless", endless=0.02)
    with gateway.client() as client, client.stream("POST", CHAT, json=question("endless", stream=True)) as stream:
        next(stream.iter_lines())
    eventually("the engine stops", lambda: one.of("endless")[-1].left, 10)
    one.answer("silent", held=True)
    with connect(gateway.box) as connection:
        body = json.dumps(question("silent"))
        lines = [f"POST {CHAT} HTTP/1.1", f"Host: {gateway.box.address}", f"Authorization: Bearer {TOKEN}"]
        lines += [f"Content-Length: {len(body)}", "", body]
        connection.sendall("\r\n".join(lines).encode())
        eventually("the engine has the request", lambda: one.of("silent"), 10)
    eventually("the engine stops before it said anything", lambda: one.of("silent")[-1].left, 10)


def test_the_access_log_names_the_client_and_holds_no_secret(gateway: Gateway) -> None:
    user, password = gateway.box.credentials
    ask(gateway, "GET", f"{MODELS}?api_key=not-for-the-log", headers={"Cookie": "a=not-for-the-log"})
    ask(gateway, "GET", MODELS, None, auth=(user, password))
    ask(gateway, "GET", MODELS, None, auth=("intruder", password))
    log = gateway.box.sh("cat /var/log/gateway/access.log")
    entries = [json.loads(line) for line in log.splitlines()]
    named = [(entry["client"], entry["status"]) for entry in entries[-3:]]
    assert named == [("tests", 200), (user, 200), ("", 401)]
    assert entries[-3]["request"]["uri"] == f"{MODELS}?REDACTED"
    assert 0 <= entries[-3]["first_byte_ms"] < 60000
    assert entries[-3]["request"]["client_ip"] == this_machine(gateway.box)
    said = log + gateway.box.sh("journalctl --no-pager --unit nginx")
    for secret in (TOKEN, OTHER_TOKEN, password, "not-for-the-log"):
        assert secret not in said


def test_no_spelling_of_a_parameter_brings_a_secret_into_the_log(gateway: Gateway) -> None:
    queries = spellings("not-for-the-log")
    for number, query in enumerate(queries):
        ask(gateway, "GET", f"{MODELS}/spelling-{number}?model=banana&{query}")
    ask(gateway, "GET", f"{MODELS}/spelling?model=banana&monkey=tree")
    log = gateway.box.sh("cat /var/log/gateway/access.log")
    for number, query in enumerate(queries):
        assert f"{MODELS}/spelling-{number}?REDACTED" in log, query
    assert f"{MODELS}/spelling?model=banana&monkey=tree" in log
    assert "not-for-the-log" not in log + gateway.box.sh("journalctl --no-pager --unit nginx")


def test_the_log_is_rotated_and_goes_on(gateway: Gateway) -> None:
    gateway.box.sh("logrotate --force /etc/logrotate.d/boxwright-gateway")
    assert gateway.box.succeeds("test -s /var/log/gateway/access.log.1")
    rotated = gateway.box.sh("wc -l /var/log/gateway/access.log.1")
    ask(gateway, "GET", MODELS)
    eventually("the new log is used", lambda: gateway.box.succeeds("grep -q tests /var/log/gateway/access.log"), 10)
    assert gateway.box.sh("wc -l /var/log/gateway/access.log.1") == rotated


def test_the_certificate_is_renewed_for_a_new_name_and_by_the_same_authority(gateway: Gateway) -> None:
    root = gateway.box.ca.read_text(encoding="utf-8")
    names = [gateway.box.address, "nginx.box.example"]
    changed = gateway.apply(gateway_names=names)
    assert "gateway: certificate of the box" in changed
    command = ["openssl", "s_client", "-connect", f"{gateway.box.address}:443", "-verify_hostname", names[1]]
    command += ["-CAfile", str(gateway.box.ca), "-no-CApath", "-servername", names[1]]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
    assert "Verify return code: 0 (ok)" in said
    assert gateway.box.ca.read_text(encoding="utf-8") == root
    assert "PRIVATE KEY" not in root
    assert gateway.box.sh("stat -c '%U %a' /var/lib/boxwright/authority/root.key") == "root 600\n"
    # Somebody else's key beside it is seen, and repaired.
    gateway.box.sh("openssl ecparam -genkey -name prime256v1 -noout -out /etc/boxwright/nginx/certificate.key")
    assert "gateway: certificate of the box" in gateway.apply()
    assert ask(gateway, "GET", MODELS).status_code == 200
    assert gateway.apply() == []


def test_testssl_knows_no_weakness_of_the_door(gateway: Gateway, tmp_path: Path) -> None:
    """Protocols, ciphers, certificate and the attacks of which testssl.sh knows."""
    name = "nginx.box.example"
    gateway.apply(gateway_names=[gateway.box.address, name])
    # All that it offers is strong; so the client chooses, which knows what its processor does quickly, as Mozilla's
    # recommendations for servers have it (wiki.mozilla.org/Security/Server_Side_TLS).
    expect_none(findings(gateway.box, name, tmp_path), accepted=["cipher_order"])


def test_a_thousand_idle_streams_are_held(gateway: Gateway, quiet: EngineDouble) -> None:
    expect_many_held(gateway, quiet, "nginx", QUIET)


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_a_stream_that_is_silent_for_90_seconds_survives(
    silent: dict[tuple[str, bool], Future[list[str]]], quiet: EngineDouble, http2: bool
) -> None:
    """Between two events, and before the first; over the reloads of the tests above as well. The tests below restart
    nginx, since other files are among those that its unit names."""
    expect_survived(silent, quiet, http2)


def test_a_given_certificate_is_examined_before_it_takes_the_place_of_another(gateway: Gateway, tmp_path: Path) -> None:
    box = gateway.box

    def pair(name: str) -> dict[str, str]:
        """A certificate of its own for the box, and its key."""
        cert, key = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{box.address}"]
        subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], capture_output=True, check=True)
        return {"gateway_certificate": cert.read_text(), "gateway_certificate_key": key.read_text()}

    def served() -> str:
        """Who the certificate of the door says it is."""
        text = ssl.get_server_certificate((box.address, 443))
        command = ["openssl", "x509", "-noout", "-subject", "-nameopt", "RFC2253"]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout.strip()

    first, second = pair("first"), pair("second")
    gateway.apply(gateway_tls="files", **first)
    assert served() == "subject=CN=first"
    process = box.pid("nginx")
    wrong = {**second, "gateway_certificate_key": first["gateway_certificate_key"]}
    mixed = box.with_variables("mixed", **{**gateway.variables, **wrong})
    assert "gateway: write the certificate" in box.apply(inventory=mixed).expect(1).text
    assert gateway.apply() == []
    assert gateway.apply(**second) == ["gateway: write the certificate", "gateway: running"]
    assert served() == "subject=CN=second"
    # That needed no other process.
    assert box.pid("nginx") == process
    gateway.apply(gateway_tls=None, gateway_certificate=None, gateway_certificate_key=None)
    assert not box.succeeds("test -e /etc/boxwright/nginx/given.pem")
    assert ask(gateway, "GET", MODELS).status_code == 200


def test_to_caddy_and_back(gateway: Gateway) -> None:
    """Never two servers; the authority of each is kept."""
    box = gateway.box
    root = box.ca.read_text(encoding="utf-8")
    assert "gateway: stop and remove nginx" in gateway.apply(gateway_server="caddy")
    assert ask(gateway, "GET", MODELS).status_code == 200
    assert not box.succeeds("pgrep -x nginx || systemctl cat nginx.service")
    assert box.pid("caddy")
    assert gateway.apply() == []
    shutil.copy(box.ca, caddys := box.lab.folder / "caddys-root.crt")

    assert "gateway: stop and remove the service" in gateway.apply(gateway_server="nginx")
    assert ask(gateway, "GET", MODELS).status_code == 200
    assert not box.succeeds("pgrep -x caddy || systemctl cat caddy.service")
    assert box.ca.read_text(encoding="utf-8") == root
    assert caddys.read_text(encoding="utf-8") == box.sh("cat /var/lib/caddy/pki/authorities/local/root.crt")
    assert gateway.apply() == []


def test_remove_leaves_nothing(gateway: Gateway, bare: set[str]) -> None:
    box = gateway.box
    names = set(removed(box))
    assert {"gateway: stop and remove nginx", "gateway: remove nginx"} <= names
    assert not box.succeeds("pgrep -x nginx")
    assert box.succeeds("test -s /var/lib/boxwright/authority/root.key -a -s /var/log/gateway/access.log")
    # The next account may get the number that nginx had.
    assert box.sh("find /var/log/gateway /var/lib/boxwright/authority ! -user root") == ""
    assert removed(box) == []
    names = set(removed(box, "--purge"))
    assert {"gateway: remove nginx's certificate authority", "gateway: remove nginx's access log"} <= names
    assert added(made_of(box), bare) == ""
    assert removed(box, "--purge") == []
