"""Limits of the gateway, driven past: requests in flight, requests in a window, bodies, slow senders, dead engines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx2
import pytest
from engine_double import EngineDouble
from gateway_box import CHAT, TOKEN, Crowd, Gateway, Http2, connect, gateway_box, question, this_machine
from kit import LIGHT, Lab, eventually

pytestmark = pytest.mark.lab

IN_FLIGHT = 10
WAIT = 0.25
LARGEST = 32 * 1024**2
PER_WINDOW = 20
# The stock Caddy looks at the count of an engine and raises it in two steps, so now and then one more than IN_FLIGHT
# passes. It waits at the second limit, that of connections, as long as it takes, instead of being refused; the engine
# sees none of it.
SURPLUS = 2
# How often each burst is repeated where the counts are exact; a hundred and more when that is to be measured.
BURSTS = int(os.environ.get("BOXWRIGHT_TESTS_BURSTS", "3"))


@pytest.fixture(scope="module")
def engines(lab: Lab) -> Iterator[tuple[EngineDouble, ...]]:
    address = this_machine(gateway_box(lab))
    with (
        EngineDouble(address, name="only") as only,
        EngineDouble(address, name="first") as first,
        EngineDouble(address, name="second") as second,
    ):
        yield only, first, second


@pytest.fixture(scope="module")
def engine(engines: tuple[EngineDouble, ...]) -> EngineDouble:
    return engines[0]


@pytest.fixture(scope="module")
def gateway(lab: Lab, engines: tuple[EngineDouble, ...]) -> Gateway:
    """One engine below /v1, two below /pair."""
    only, first, second = engines
    return Gateway(
        gateway_box(lab),
        "limits",
        gateway_engines=[only.upstream],
        gateway_routes=[{"path": "/pair", "upstreams": [first.upstream, second.upstream]}],
        gateway_in_flight=IN_FLIGHT,
        gateway_wait=int(WAIT * 1000),
        gateway_max_body=LARGEST,
        gateway_header_timeout=2,
    )


def use(gateway: Gateway, *, exact: bool) -> Gateway:
    """The same door, by the custom program that counts exactly, or by the stock one."""
    if gateway.variables.get("gateway_exact_limits", False) != exact:
        if exact:
            gateway.box.lab.run("boxwright", "caddy", "build", timeout=1800).expect()
        gateway.apply(gateway_exact_limits=exact)
    return gateway


@pytest.fixture(scope="module", params=["stock", "exact"])
def program(request: pytest.FixtureRequest) -> str:
    """Of the module, so that all tests with one of them come together."""
    return str(request.param)


@pytest.fixture
def either(gateway: Gateway, program: str) -> Gateway:
    """The gateway, once by each of the two programs."""
    return use(gateway, exact=program == "exact")


@pytest.fixture
def exact(gateway: Gateway) -> Gateway:
    return use(gateway, exact=True)


# A token for each test that counts: each has a budget of its own.
CLIENTS = {
    name: f"token-of-{name}-0123456789"
    for name in ("busy", "quiet", "reloaded", "leaving_over_http1", "leaving_over_http2", "line", "one", "two", "three")
}


@pytest.fixture(scope="module", autouse=True)
def _counting(lab: Lab, engines: tuple[EngineDouble, ...]) -> Iterator[Future[Gateway]]:
    """A box that counts requests, made while the other tests run; only there further requests wait for a minute."""

    def make() -> Gateway:
        lab.run("boxwright", "caddy", "build", timeout=1800).expect()
        box = lab.boxes.get("counting") or lab.up("counting", {**LIGHT, "inference_engine": "none"})
        gateway = Gateway(
            box,
            "counting",
            gateway_engines=[engines[0].upstream],
            gateway_tokens=CLIENTS,
            gateway_requests=PER_WINDOW,
            gateway_window=3600,
            gateway_in_flight=IN_FLIGHT,
            gateway_wait=60000,
        )
        # Nothing is counted yet, also when the box was kept from an earlier session.
        box.sh("systemctl restart caddy")
        return gateway

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(make)


@pytest.fixture
def counting(_counting: Future[Gateway]) -> Gateway:
    return _counting.result()


def told(gateway: Gateway, what: str) -> str:
    """What the gateway says of itself; asked again when nothing came: docker exec loses it now and then under load."""
    return str(eventually("the gateway says something", lambda: gateway.box.sh(f"curl -sS {what}")))


def admitted(gateway: Gateway) -> int:
    """Requests that the gateway has let through to engines and that are not answered yet, as it tells itself."""
    said = told(gateway, "--unix-socket /run/caddy/admin.sock http://caddy/reverse_proxy/upstreams")
    return sum(engine["num_requests"] for engine in json.loads(said))


def at_the_gateway(gateway: Gateway) -> int:
    """Requests that the gateway has and that are not answered yet, also those that wait for their turn."""
    lines = told(gateway, "http://127.0.0.1:9180/metrics").splitlines()
    counts = [line for line in lines if line.startswith("caddy_http_requests_in_flight{")]
    return max((int(float(line.split()[-1])) for line in counts if 'handler="subroute"' in line), default=0)


def slots(gateway: Gateway, name: str) -> int:
    """A number of our own module for exact limits, as its metrics tell it."""
    lines = told(gateway, "http://127.0.0.1:9180/metrics").splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(f"caddy_slots_{name}"))


def expect_refused(answer: httpx2.Response, code: str) -> None:
    """An answer that clients of the OpenAI API take for what it is: come again later."""
    assert answer.status_code == 429
    assert answer.headers["Content-Type"] == "application/json"
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (code, "rate_limit_error")
    assert int(answer.headers["Retry-After"]) >= 1


# Requests in flight


@pytest.mark.parametrize("clients", [1, 10, 100])
def test_requests_in_flight(either: Gateway, program: str, engine: EngineDouble, clients: int) -> None:
    """As many as declared are at work; the others are refused after the wait, and none of those fails."""
    with Crowd(either, clients) as crowd:
        refused = burst(crowd, either, engine, clients)
    surplus = SURPLUS if program == "stock" else 0
    assert clients - min(clients, IN_FLIGHT) - surplus <= refused <= clients - min(clients, IN_FLIGHT)


@pytest.mark.parametrize("clients", [1, 10, 100])
def test_the_counts_of_bursts_are_exact(exact: Gateway, engine: EngineDouble, clients: int) -> None:
    """With our own module, burst after burst: as many as declared are admitted, and every other one is refused."""
    before = slots(exact, "refused_total")
    with Crowd(exact, clients) as crowd:
        counts = Counter(burst(crowd, exact, engine, clients) for _ in range(BURSTS))
    assert counts == Counter({clients - min(clients, IN_FLIGHT): BURSTS})
    assert slots(exact, "refused_total") - before == BURSTS * (clients - min(clients, IN_FLIGHT))
    eventually("every place is free", lambda: slots(exact, "in_flight") == slots(exact, "waiting") == 0)


def burst(crowd: Crowd, gateway: Gateway, engine: EngineDouble, clients: int, free: int = IN_FLIGHT) -> int:
    """Ask so many times at once, where the engine has `free` places; how many were refused."""
    model = f"{clients} clients"
    answer = engine.answer(model, held=True)
    working, others = min(clients, free), engine.in_flight
    engine.forget()
    asked = [crowd.ask(question(model)) for _ in range(clients)]
    eventually(
        "some work, the others are refused",
        # What has passed and waits at the second limit, the gateway alone knows.
        lambda: _done(asked) >= clients - working - SURPLUS and _done(asked) + admitted(gateway) == clients + others,
    )
    assert engine.in_flight == engine.peak == working + others
    refused = [one.result() for one in asked if one.done()]
    answer.release()
    answers = Counter(one.result().status_code for one in asked)
    for one in refused:
        expect_refused(one, "chat_concurrency_limit")
        assert one.elapsed.total_seconds() >= WAIT
    assert answers == Counter({200: clients - len(refused), 429: len(refused)})
    assert engine.peak == working + others
    return len(refused)


def test_the_counts_of_bursts_are_exact_over_reloads(exact: Gateway, engine: EngineDouble) -> None:
    """What works when a token is added keeps its place, and no other one gets it."""
    held = engine.answer("held over reloads", held=True)
    engine.forget()
    server = exact.pid
    with Crowd(exact, IN_FLIGHT) as working, Crowd(exact, 100) as crowd:
        asked = [working.ask(question("held over reloads")) for _ in range(IN_FLIGHT)]
        eventually("all are at work", lambda: engine.in_flight == IN_FLIGHT)
        for free in (0, 4, 10):
            held.release(free - (IN_FLIGHT - engine.in_flight))
            eventually("some are done", lambda free=free: engine.in_flight == admitted(exact) == IN_FLIGHT - free)
            exact.new_token()
            assert burst(crowd, exact, engine, 100, free=free) == 100 - free
        assert {one.result().status_code for one in asked} == {200}
    assert exact.pid == server


def _done(asked: list[Future[httpx2.Response]]) -> int:
    return sum(one.done() for one in asked)


def test_requests_in_flight_over_a_reload(either: Gateway, engine: EngineDouble) -> None:
    """A new configuration knows of the requests that the old one let through."""
    gateway = either
    answer = engine.answer("held over a reload", held=True)
    engine.forget()
    with Crowd(gateway, 2 * IN_FLIGHT) as crowd:
        before = [crowd.ask(question("held over a reload")) for _ in range(IN_FLIGHT)]
        eventually("all are at work", lambda: engine.in_flight == IN_FLIGHT)
        server = gateway.pid
        gateway.new_token()
        after = [crowd.ask(question("held over a reload")) for _ in range(IN_FLIGHT)]
        eventually("the others are refused", lambda: _done(after) == IN_FLIGHT)
        for one in after:
            expect_refused(one.result(), "chat_concurrency_limit")
        assert engine.in_flight == engine.peak == IN_FLIGHT
        answer.release()
        assert {one.result().status_code for one in before} == {200}
    assert gateway.pid == server


def test_never_more_in_flight_while_requests_come_and_go(either: Gateway, engine: EngineDouble) -> None:
    """Hundreds of short requests of a hundred clients, and a reload among them."""
    gateway = either
    answer = engine.answer("churn", held=True)
    engine.forget()
    enough = threading.Event()

    def work() -> None:
        while not enough.is_set():
            if engine.in_flight:
                answer.release(1)
            time.sleep(0.002)
        answer.release()

    def ask(client: httpx2.Client) -> Counter[int]:
        found: Counter[int] = Counter()
        while not enough.is_set():
            try:
                found[client.post(CHAT, json=question("churn"), headers={"Connection": "close"}).status_code] += 1
            except (httpx2.RemoteProtocolError, httpx2.NetworkError):
                # A reload closes connections without an answer so far: in the handshake, or with a request under way.
                found[0] += 1
        return found

    with ThreadPoolExecutor(101) as pool, gateway.client() as client:
        worker = pool.submit(work)
        askers = [pool.submit(ask, client) for _ in range(100)]
        try:
            gateway.new_token()
            eventually("hundreds were answered", lambda: len(engine.of("churn")) >= 400)
        finally:
            enough.set()
            worker.result()
        statuses = sum((asker.result() for asker in askers), Counter())
    assert set(statuses) <= {0, 200, 429}
    # Whoever got no answer may ask again: no engine has seen the request.
    assert statuses[200] == len(engine.asked) >= 400
    assert statuses[0] < statuses[200] // 10
    assert engine.peak == IN_FLIGHT


def over_http1(gateway: Gateway, body: dict[str, str], token: str) -> Callable[[], None]:
    connection = connect(gateway.box)
    text = json.dumps(body)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {gateway.box.address}\r\nAuthorization: Bearer {token}\r\n"
    connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
    return connection.close


def over_http2(gateway: Gateway, body: dict[str, str], token: str) -> Callable[[], None]:
    connection = Http2(gateway, token)
    number = connection.begin(body)
    connection.send()

    def leave() -> None:
        connection.cancel(number)
        connection.send()

    return leave


@pytest.mark.parametrize("protocol", [over_http1, over_http2])
def test_a_request_that_waits_gets_the_place_that_comes_free(
    counting: Gateway, engine: EngineDouble, protocol: Callable[[Gateway, dict[str, str], str], Callable[[], None]]
) -> None:
    """A client that leaves while it waits stands in nobody's way."""
    model = f"waiting {protocol.__name__}"
    answer = engine.answer(model, held=True)
    token = CLIENTS[f"leaving_{protocol.__name__}"]
    with Crowd(counting, IN_FLIGHT + 1, token=token) as crowd:
        working = [crowd.ask(question(model)) for _ in range(IN_FLIGHT)]
        eventually("all are at work", lambda: len(engine.of(model)) == IN_FLIGHT)
        leave = protocol(counting, question(model, user="leaver"), token)
        eventually("one more waits", lambda: at_the_gateway(counting) == IN_FLIGHT + 1)
        leave()
        eventually("the gateway is rid of it", lambda: at_the_gateway(counting) == IN_FLIGHT)
        waiting = crowd.ask(question(model, user="patient"))
        eventually("another one waits", lambda: at_the_gateway(counting) == IN_FLIGHT + 1)
        assert not waiting.done()
        answer.release(1)
        eventually("it is at work", lambda: "patient" in [one.json.get("user") for one in engine.of(model)])
        answer.release()
        assert {one.result().status_code for one in [*working, waiting]} == {200}
        leavers = [one for one in engine.of(model) if one.json.get("user") == "leaver"]
        eventually("the engine has no work with the other one", lambda: all(one.over for one in leavers))


def test_who_waits_is_served_in_turn(counting: Gateway, engine: EngineDouble) -> None:
    """In the order of arrival, also over a reload. Who leaves gives its place in the line up at once."""
    answer = engine.answer("line", held=True)
    token = CLIENTS["line"]
    leaving: list[Callable[[], None]] = []
    patient: list[Future[httpx2.Response]] = []
    with Crowd(counting, IN_FLIGHT + 4, token=token) as crowd:
        working = [crowd.ask(question("line")) for _ in range(IN_FLIGHT)]
        eventually("all are at work", lambda: len(engine.of("line")) == IN_FLIGHT)
        for number in range(4):
            leaving.append((over_http1, over_http2)[number % 2](counting, question("line", user="leaver"), token))
            eventually("one more waits", lambda number=number: slots(counting, "waiting") == 2 * number + 1)
            patient.append(crowd.ask(question("line", user=f"patient {number}")))
            eventually("one more waits", lambda number=number: slots(counting, "waiting") == 2 * number + 2)
        for leave in leaving:
            leave()
        eventually("four wait", lambda: slots(counting, "waiting") == 4)
        server = counting.pid
        counting.new_token()
        assert slots(counting, "waiting") == 4
        for number in range(4):
            answer.release(1)
            eventually("the next one works", lambda number=number: len(engine.of("line")) == IN_FLIGHT + number + 1)
            assert engine.in_flight == IN_FLIGHT
        answer.release()
        assert {one.result().status_code for one in [*working, *patient]} == {200}
    users = [one.json.get("user") for one in engine.of("line")]
    assert users == [None] * IN_FLIGHT + [f"patient {number}" for number in range(4)]
    assert counting.pid == server
    eventually("every place is free", lambda: slots(counting, "in_flight") == slots(counting, "waiting") == 0)


# Two engines


def test_the_engine_with_the_fewest_requests_gets_the_next(either: Gateway, engines: tuple[EngineDouble, ...]) -> None:
    gateway = either
    _, first, second = engines
    held = [engine.answer("spread", held=True) for engine in (first, second)]

    def spread() -> tuple[int, int]:
        return first.in_flight, second.in_flight

    asked: list[Future[httpx2.Response]] = []
    with Crowd(gateway, 30) as crowd:

        def ask(count: int) -> None:
            """One after the other, so that none is chosen for by old counts."""
            wanted = sum(spread()) + count
            for left in reversed(range(count)):
                asked.append(crowd.ask(question("spread"), f"/pair{CHAT}"))
                eventually("the request is at work", lambda left=left: sum(spread()) == wanted - left)

        ask(10)
        assert spread() == (5, 5)
        held[0].release(4)
        eventually("four are answered", lambda: _done(asked) == 4 and admitted(gateway) == 6)
        ask(4)
        assert spread() == (5, 5)
        ask(10)
        assert spread() == (10, 10)
        further = crowd.ask(question("spread"), f"/pair{CHAT}").result()
        expect_refused(further, "chat_concurrency_limit")
        for answer in held:
            answer.release()
        assert {one.result().status_code for one in asked} == {200}


def test_two_engines_have_their_own_places(exact: Gateway, engines: tuple[EngineDouble, ...]) -> None:
    """Of a burst, each works on as many as declared; with one of them dead, the other one on no more than before."""
    _, first, second = engines
    path = f"/pair{CHAT}"
    held = [engine.answer("both", held=True) for engine in (first, second)]
    with Crowd(exact, 100) as crowd:
        for working in (2 * IN_FLIGHT, IN_FLIGHT):
            for engine in (first, second):
                engine.forget()
            asked = [crowd.ask(question("both"), path) for _ in range(100)]
            eventually("some work, the others are refused", lambda asked=asked: _done(asked) + admitted(exact) == 100)
            assert (first.in_flight, second.in_flight) == (IN_FLIGHT, working - IN_FLIGHT)
            refused = [one.result() for one in asked if one.done()]
            assert len(refused) == 100 - working
            for one in refused:
                expect_refused(one, "chat_concurrency_limit")
            for answer in held:
                answer.release()
            assert Counter(one.result().status_code for one in asked) == Counter({200: working, 429: 100 - working})
            assert first.peak == IN_FLIGHT
            for answer in held:
                answer.hold()
            second.kill()
            # Its death is noticed by who is sent there, and then goes to the other one.
            assert {crowd.ask(question("quick"), path).result().status_code for _ in range(10)} == {200}
    second.start()


def test_a_dead_engine_is_left_out_and_used_again(either: Gateway, engines: tuple[EngineDouble, ...]) -> None:
    """One is killed under load: only what it was working on fails. Both are gone: an error that does not say busy."""
    gateway = either
    _, first, second = engines
    path = f"/pair{CHAT}"
    for engine in (first, second):
        engine.forget()
        engine.answer("held", held=True)
    enough = threading.Event()

    def ask(client: httpx2.Client) -> list[tuple[float, int]]:
        """When each request was begun, and its status."""
        found = []
        while not enough.is_set():
            began = time.monotonic()
            found.append((began, client.post(path, json=question("quick")).status_code))
        return found

    def both_used() -> bool:
        with gateway.client() as client:
            client.post(path, json=question("quick"))
        return bool(first.of("quick")) and bool(second.of("quick"))

    with gateway.client() as client, ThreadPoolExecutor(8) as pool:
        # One after the other: two at the same moment may both find the same engine idle.
        held = [pool.submit(client.post, path, json=question("held"))]
        eventually("one works", lambda: len(first.of("held")) + len(second.of("held")) == 1)
        held.append(pool.submit(client.post, path, json=question("held")))
        eventually("one works on each", lambda: len(first.of("held")) == len(second.of("held")) == 1)
        askers = [pool.submit(ask, client) for _ in range(6)]
        try:
            eventually("both answer", lambda: len(first.of("quick")) > 50 and len(second.of("quick")) > 50)
            first.kill()
            killed, known = time.monotonic(), len(second.asked)
            eventually("the other one goes on", lambda: len(second.asked) > known + 300)
        finally:
            enough.set()
        found = [one for asker in askers for one in asker.result()]
        second.kill()
        assert {status for _, status in found} <= {200, 502}
        assert {status for began, status in found if began > killed} == {200}
        assert [one.result().status_code for one in held] == [502, 502]
        try:
            gone = [client.post(path, json=question("quick")) for _ in range(3)]
        finally:
            for engine in (first, second):
                engine.forget()
                engine.start()
        for answer in gone:
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "engine_unavailable"
        eventually("both are used again", both_used)


# Bodies and slow senders


@pytest.mark.parametrize("size", [0, 200_000], ids=["small", "large"])
def test_no_request_is_lost_on_a_connection_that_the_engine_closes(
    either: Gateway, engine: EngineDouble, size: int
) -> None:
    """A small one is sent on a kept connection, and again on another; a large one on a connection of its own."""
    gateway = either
    model, lost = f"kept-{size}", engine.lost
    body = question(model, user="x" * size)
    engine.hangs_up = True
    try:
        with gateway.client() as client:
            assert [client.post(CHAT, json=body).status_code for _ in range(20)] == [200] * 20
    finally:
        engine.hangs_up = False
    assert len(engine.of(model)) == 20
    assert (engine.lost > lost) == (not size)


def test_a_body_as_large_as_declared_passes(gateway: Gateway, engine: EngineDouble) -> None:
    body = json.dumps(question("large")).encode().ljust(LARGEST)
    with gateway.client() as client:
        assert client.post(CHAT, content=body).status_code == 200
    assert engine.of("large")[0].body_size == LARGEST


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_larger_body_is_refused(gateway: Gateway, chunked: bool) -> None:
    """One byte too many, told before or found while it comes."""
    body = json.dumps(question("too large")).encode().ljust(LARGEST + 1)
    with gateway.client() as client:
        answer = client.post(CHAT, content=iter([body]) if chunked else body)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_memory_stays_flat_while_a_gigabyte_is_sent(gateway: Gateway, engine: EngineDouble, chunked: bool) -> None:
    """The gateway passes on what it reads, stops reading at the limit, and keeps nothing."""
    size = 1024**3
    piece = bytes(1024**2)
    engine.forget()
    # So that the peak is that of this test.
    gateway.box.forget_peak("caddy")
    before = gateway.box.memory("caddy", "VmRSS")
    with connect(gateway.box) as sender:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {gateway.box.address}\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += "Transfer-Encoding: chunked\r\n\r\n" if chunked else f"Content-Length: {size}\r\n\r\n"
        sender.sendall(head.encode())
        sent = 0
        try:
            while sent < size:
                sender.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                sent += len(piece)
        except OSError:
            pass  # the gateway has closed the connection
    assert sent < LARGEST + 64 * 1024**2
    eventually("the engine is rid of it", lambda: all(one.over for one in engine.asked))
    # The engine was sent the part below the limit, or nothing.
    assert sum(one.body_size for one in engine.asked) <= LARGEST
    assert gateway.box.memory("caddy", "VmHWM") - before < 32 * 1024
    with gateway.client() as client:
        assert client.get("/v1/models").status_code == 200


def test_slow_senders_are_cut_and_keep_nobody_waiting(gateway: Gateway) -> None:
    """Clients that dribble the head of a request, that send half of it, or that do not even begin with TLS."""
    seconds = 2
    began = time.monotonic()
    half: list[socket.socket] = [connect(gateway.box) for _ in range(50)]
    for one in half:
        one.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {gateway.box.address}\r\nX-Slow: ".encode())
    dumb = [socket.create_connection((gateway.box.address, 443), 30) for _ in range(50)]
    dribbling = half[0]
    with gateway.client(timeout=10) as client:

        def cut() -> bool:
            assert client.get("/v1/models").status_code == 200
            try:
                dribbling.sendall(b"x")
            except OSError:
                return True
            return False

        eventually("the client that dribbles is cut", cut)
    assert time.monotonic() - began >= seconds
    for one in [*half, *dumb]:
        one.settimeout(30)
        # Closed, perhaps after the words that it took too long.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while one.recv(4096):
                pass
        one.close()


# Requests in a window


def test_requests_of_each_client_are_counted(counting: Gateway) -> None:
    """Exactly as many as declared pass, however many come at once; who asks less is not disturbed."""
    with Crowd(counting, 50, token=CLIENTS["busy"]) as busy, Crowd(counting, 20, token=CLIENTS["quiet"]) as quiet:
        asked = [busy.ask(question("counted")) for _ in range(50)]
        others = [quiet.ask(question("counted")) for _ in range(PER_WINDOW)]
        answers = [one.result() for one in asked]
        assert {one.result().status_code for one in others} == {200}
    assert Counter(one.status_code for one in answers) == Counter({200: PER_WINDOW, 429: 50 - PER_WINDOW})
    for one in answers:
        if one.status_code == 429:
            expect_refused(one, "rate_limit_exceeded")
            assert int(one.headers["Retry-After"]) <= 3600


def test_a_forged_address_buys_no_requests(counting: Gateway) -> None:
    """Clients without a token are counted by their address, whatever they say it is, and whatever token they guess."""

    def forged(number: int) -> dict[str, str]:
        address = f"192.0.2.{number}"
        headers = {"X-Forwarded-For": address, "X-Real-IP": address, "Forwarded": f"for={address}"}
        return headers | ({"Authorization": f"Bearer guessed-token-number-{number:04}"} if number % 2 else {})

    with Crowd(counting, 50, token=None) as crowd:
        asked = [crowd.ask(question("counted"), headers=forged(number)) for number in range(50)]
        answers = Counter(one.result().status_code for one in asked)
    assert answers == Counter({401: PER_WINDOW, 429: 50 - PER_WINDOW})


def test_counts_go_on_over_a_reload(counting: Gateway) -> None:
    server = counting.pid
    with Crowd(counting, 30, token=CLIENTS["reloaded"]) as crowd:
        before = [crowd.ask(question("counted")) for _ in range(8)]
        assert {one.result().status_code for one in before} == {200}
        counting.new_token()
        after = [crowd.ask(question("counted")) for _ in range(30)]
        answers = Counter(one.result().status_code for one in after)
    assert answers == Counter({200: PER_WINDOW - 8, 429: 30 - (PER_WINDOW - 8)})
    assert counting.pid == server


def test_requests_of_all_clients_together_are_counted(counting: Gateway) -> None:
    """The breaker over all; and when the window has passed, it is open again."""
    counting.apply(gateway_requests=0, gateway_requests_of_all=30, gateway_window=5)
    try:
        with (
            Crowd(counting, 15, token=CLIENTS["one"]) as one,
            Crowd(counting, 15, token=CLIENTS["two"]) as two,
            Crowd(counting, 15, token=CLIENTS["three"]) as three,
        ):
            asked = [crowd.ask(question("counted")) for _ in range(15) for crowd in (one, two, three)]
            answers = [each.result() for each in asked]
            assert Counter(each.status_code for each in answers) == Counter({200: 30, 429: 15})
            for each in answers:
                if each.status_code == 429:
                    expect_refused(each, "rate_limit_exceeded")
            eventually("one more", lambda: one.ask(question("counted")).result().status_code == 200)
    finally:
        counting.apply(gateway_requests=PER_WINDOW, gateway_requests_of_all=0, gateway_window=3600)
