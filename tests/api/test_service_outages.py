"""Valkey, Redis and PostgreSQL are stopped under the running service and come back; nothing of it is started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import httpx2 as httpx
import pytest
from databases import PORTS, VALKEY, Databases
from running import STREAM, Running
from stub_engine import StubEngine
from waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.parametrize("kind", ["full"])]

# The demand is a second on a quiet machine.
QUICKLY = 4.0


@pytest.fixture(autouse=True)
def _both_answer(databases: Databases) -> Iterator[None]:
    """Whatever happens, other tests find both."""
    yield
    for name in (*PORTS, "postgresql"):
        if databases.machine._exec(["systemctl", "is-active", "--quiet", name])[0]:
            databases.start(name)


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and code."""
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code != 200 else ""


def test_valkey_or_redis(own: Callable[..., Running], engine: StubEngine, databases: Databases, server: str) -> None:
    """No request passes uncounted; what is under way comes to its end, and its tokens are counted when it is back."""
    service = own(redis=databases.redis(server))
    processes = service.processes()
    made = service.key(limits={"tokens_per_day": 1000})
    engine.behave(tokens=20, pace=0.2)
    with (
        httpx.Client(base_url=service.url, headers=made.headers, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json=STREAM) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        databases.stop(server)
        # Both workers, so some requests.
        for _ in range(6):
            begun = time.monotonic()
            assert code(service.post(made)) == (503, "limiter_unavailable")
            assert time.monotonic() - begun < QUICKLY
        assert httpx.get(f"{service.url}/api/v1/ready", timeout=60).status_code == 503
        assert httpx.get(f"{service.url}/api/v1/health", timeout=60).status_code == 200
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert len(engine.records) == 1
    engine.behave()
    until(lambda: service.count("outcome = 'ok' AND tokens_out = 20") == 1)
    refused = service.count("code = 'limiter_unavailable'")
    assert refused == 6
    databases.start(server)
    took = until(lambda: all(service.post(made).status_code == 200 for _ in range(4)), why=service.text)
    assert took < 10
    until(lambda: service.taken() == 0)
    # What ended meanwhile was told to Valkey afterwards: twenty out, three in, and the requests since then.
    key = f"{service.settings['redis_prefix']}key:{made.id}:budget"
    good = service.count(f"key_id = '{made.id}' AND outcome = 'ok'")
    with service.redis() as redis:
        until(lambda: int(redis.hget(key, "day_tokens") or 0) >= 23 + (good - 1) * 8)  # type: ignore[arg-type]
    assert service.processes() == processes


def test_valkey_that_is_frozen(own: Callable[..., Running], engine: StubEngine, databases: Databases) -> None:
    """A server that takes connections and says nothing is as good as none."""
    service = own()
    made = service.key()
    assert service.post(made).status_code == 200
    databases.sh(f"pkill -STOP -x {VALKEY}")
    try:
        for _ in range(4):
            begun = time.monotonic()
            assert code(service.post(made)) == (503, "limiter_unavailable")
            assert time.monotonic() - begun < QUICKLY
    finally:
        databases.sh(f"pkill -CONT -x {VALKEY}")
    until(lambda: all(service.post(made).status_code == 200 for _ in range(4)))
    until(lambda: service.taken() == 0)


def test_valkey_that_forgets(own: Callable[..., Running], engine: StubEngine) -> None:
    """After a restart without its data, requests in progress are counted again: no more than the limit begin."""
    service = own(in_flight=2, lease_seconds=3.0)
    made = service.key()
    engine.behave(wait=60.0)
    held = [service.send(made) for _ in range(2)]
    until(lambda: engine.running == 2)
    with service.redis() as redis:
        redis.flushall()
        redis.script_flush()
    until(lambda: service.taken() == 2)
    assert code(service.post(made)) == (429, "chat_concurrency_limit")
    for connection in held:
        connection.close()
    until(lambda: service.taken() == 0)


def test_postgresql(own: Callable[..., Running], engine: StubEngine, databases: Databases) -> None:
    """Keys that are known go on; others get 503; usage is kept on the disk, and is in the database once, afterwards."""
    service = own(key_cache_seconds=1.0, key_stale_seconds=60.0)
    processes = service.processes()
    made, never = service.key(), service.key()
    for _ in range(12):
        # Each worker has to know it.
        assert service.post(made).status_code == 200
    until(lambda: service.count() == 12)
    databases.stop("postgresql")
    time.sleep(1.5)
    known = unknown = 0
    for _ in range(30):
        begun = time.monotonic()
        status = code(service.post(made))
        assert time.monotonic() - begun < QUICKLY
        assert status in ((200, ""), (503, "store_unavailable"))
        known += status[0] == 200
        status = code(service.post(never))
        assert status == (503, "store_unavailable")
        unknown += 1
    assert known >= 25
    assert service.admin.get("/admin/keys").status_code == 503
    spilled = service.folder / "spill"
    until(lambda: sum(file.read_bytes().count(b"\n") for file in spilled.iterdir()) >= known)
    databases.start("postgresql")
    took = until(lambda: all(service.post(never).status_code == 200 for _ in range(4)), why=service.text)
    assert took < 15
    until(lambda: service.count(f"key_id = '{made.id}' AND outcome = 'ok'") == 12 + known)
    until(lambda: not list(spilled.iterdir()))
    # Once each, the refused ones too, though nobody knew whose they were.
    until(lambda: service.count("code = 'store_unavailable'") == unknown + 30 - known)
    good = [record for record in engine.records if record.end == "done"]
    until(lambda: service.count("outcome = 'ok'") == len(good))
    assert service.rows("count(*) - count(distinct request_id)")[0] == ["0"]
    assert service.processes() == processes


def test_postgresql_that_stays_away(own: Callable[..., Running], engine: StubEngine, databases: Databases) -> None:
    """A key is believed only for so long; and a full spill refuses before anything is lost."""
    service = own(key_cache_seconds=0.5, key_stale_seconds=600, spill_bytes=4096, workers=1)
    made = service.key()
    assert service.post(made).status_code == 200
    databases.stop("postgresql")
    seen = set()

    def full() -> bool:
        seen.add(code(service.post(made)))
        return (503, "usage_unavailable") in seen

    until(full)
    assert seen <= {(200, ""), (503, "usage_unavailable")}
    passed = len(engine.records)
    for _ in range(3):
        assert code(service.post(made)) == (503, "usage_unavailable")
    assert len(engine.records) == passed
    databases.start("postgresql")
    until(lambda: service.post(made).status_code == 200)
    until(lambda: service.count("outcome = 'ok'") == len(engine.records))
    assert service.metric("boxwright_api_usage_dropped_total") == 0


def test_a_key_is_stale(own: Callable[..., Running], engine: StubEngine, databases: Databases) -> None:
    service = own(key_cache_seconds=0.2, key_stale_seconds=3, workers=1)
    made = service.key()
    assert service.post(made).status_code == 200
    databases.stop("postgresql")
    took = until(lambda: code(service.post(made)) == (503, "store_unavailable"))
    assert took < 15
    assert code(service.post(made)) == (503, "store_unavailable")
    databases.start("postgresql")
    until(lambda: service.post(made).status_code == 200)


def test_killed_while_postgresql_is_away(own: Callable[..., Running], engine: StubEngine, databases: Databases) -> None:
    """What is on the disk is in the database after the next start, also when all processes were killed."""
    service = own(key_stale_seconds=600, workers=1, usage_flush_ms=50)
    made = service.key()
    assert service.post(made).status_code == 200
    until(lambda: service.count() == 1)
    databases.stop("postgresql")
    for _ in range(10):
        assert service.post(made).status_code == 200
    spilled = service.folder / "spill"
    until(
        lambda: sum(file.read_bytes().count(b"\n") for file in spilled.iterdir()) >= 10,
        why=service.text,
    )
    for pid in service.processes():
        os.kill(pid, signal.SIGKILL)
    assert service.process is not None
    service.process.wait()
    databases.start("postgresql")
    service.start()
    until(lambda: service.count("outcome = 'ok'") == 11)
    until(lambda: not list(spilled.iterdir()))
    assert service.rows("count(*) - count(distinct request_id)")[0] == ["0"]


def test_it_starts_without_them(own: Callable[..., Running], engine: StubEngine, databases: Databases) -> None:
    """Started before its databases, it is not ready; it is when they are there."""
    service = own()
    made = service.key()
    assert service.stop() == 0
    databases.stop("postgresql")
    databases.stop(VALKEY)
    with service.log.open("ab") as log:
        service.process = service._start(stdout=log, stderr=log)

    def answers() -> bool:
        try:
            return service.client.get("/api/v1/health").status_code == 200
        except httpx.TransportError:
            return False

    until(answers, why=service.text)
    ready = service.client.get("/api/v1/ready")
    assert (ready.status_code, ready.json()["store"], ready.json()["limiter"]) == (503, False, False)
    databases.start(VALKEY)
    databases.start("postgresql")
    until(lambda: all(service.post(made).status_code == 200 for _ in range(6)), why=service.text)
    until(lambda: service.client.get("/api/v1/ready").status_code == 200)
