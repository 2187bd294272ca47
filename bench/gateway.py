#!/usr/bin/env python3
"""Measures what the gateway adds: direct, through Caddy, through nginx and through a plain relay, side by side.

Run it on an idle machine: `.venv/bin/python bench/gateway.py > bench/gateway.md`. Everything runs on loopback: an
engine that answers at once, and each server with the very configuration that the role writes, apart from paths and
ports. It needs the custom Caddy (`boxwright caddy build`); nginx is measured where it is installed. About 3 minutes.

Times are taken in turns, a few streams by each way and then again, so that what else the machine does touches all ways
alike. Each client is a process with a blocking socket: asyncio's TLS alone takes longer than a gateway does.
"""

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import random
import re
import resource
import secrets
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from stack import machine  # noqa: E402

from boxwright import caddy_build  # noqa: E402
from boxwright.settings import parse_box  # noqa: E402
from roles.gateway import caddy, nginx  # noqa: E402
from roles.registry import Box  # noqa: E402

TOKEN = "bench-token-0123456789abcdef"  # noqa: S105 -- of this measurement alone
PASSWORD = "bench-password"  # noqa: S105
# Each server has two more ports: that of its door, and that of its metrics.
ENGINE, RELAY, ENGINE_TLS, DOORS = 19081, 19082, 19083, 19443
EVENTS, PAUSE = 25, 0.02
CLIENTS, ROUNDS, STREAMS = 10, 20, 5
MODEL = {"name": "local-llm", "url": "https://models.example/tiny.gguf", "sha256": "ab" * 32, "size": 1000}


@dataclass(frozen=True)
class Way:
    """One way to the engine: `port` on loopback, with TLS or without; `pid` is the server's process."""

    name: str
    port: int
    tls: bool
    pid: int | None = None


def request(path: str, auth: str = f"Bearer {TOKEN}", body: bytes = b"{}") -> bytes:
    """An HTTP/1.1 request, kept alive."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    return (head + (f"Authorization: {auth}\r\n" if auth else "") + "\r\n").encode() + body


# The engine: `/v1/completions` streams events at a pace, `/v1/responses` answers one and is silent.


async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers one connection until it is closed."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if length:
                await reader.readexactly(int(length[1]))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            idle = b"/v1/responses" in head.split(b"\r\n", 1)[0]
            for number in range(1 if idle else EVENTS):
                event = f"data: {number}\n\n".encode()
                writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                await writer.drain()
                await asyncio.sleep(PAUSE)
            if idle:
                await reader.read(1)
                break
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    writer.close()


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A plain pass-through: copies bytes both ways, and looks at none."""
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", ENGINE)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))


async def serve(folder: Path) -> None:
    """Engine, with TLS and without, and relay, until killed. The certificate lies in `folder`."""
    encrypted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    encrypted.load_cert_chain(*certificate(folder))
    servers = [
        await asyncio.start_server(engine, "127.0.0.1", ENGINE, backlog=4096),
        await asyncio.start_server(engine, "127.0.0.1", ENGINE_TLS, backlog=4096, ssl=encrypted),
        await asyncio.start_server(relay, "127.0.0.1", RELAY, backlog=4096),
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


# The client


def trust() -> ssl.SSLContext:
    """Encrypts, and does not ask who answers: the certificate is of this run alone."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def connect(way: Way) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the engine by `way`."""
    return await asyncio.open_connection("127.0.0.1", way.port, ssl=trust() if way.tls else None)


def stream(way: Way, times: int) -> tuple[list[float], list[float]]:
    """One client that asks `times` times on one connection: milliseconds to the first event, and between events."""
    first: list[float] = []
    between: list[float] = []
    with socket.create_connection(("127.0.0.1", way.port)) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = trust().wrap_socket(plain, server_hostname="localhost") if way.tls else plain
        answer = connection.makefile("rb")
        for number in range(times):
            # Clients do not ask in step with each other.
            time.sleep(random.uniform(0, EVENTS * PAUSE))  # noqa: S311 -- no secret
            begun = time.perf_counter()
            connection.sendall(request("/v1/completions"))
            arrived: list[float] = []
            status = answer.readline()
            assert b" 200 " in status, status  # noqa: S101
            while (line := answer.readline()) != b"0\r\n":
                if line.startswith(b"data: "):
                    arrived.append(time.perf_counter())
            answer.readline()
            if number > 1:  # the first of each connection opens another one behind the gateway
                first.append((arrived[0] - begun) * 1000)
                between += [(after - before) * 1000 for before, after in itertools.pairwise(arrived)]
        # One that is closed without notice could leave a TLS server with words to say.
        answer.close()
        connection.close()
    return first, between


def memory(pid: int) -> float:
    """Resident memory of `pid` and its children in MiB."""
    total = 0
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    for each in pids:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{each}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024


async def idle(way: Way, count: int = 1000) -> tuple[float, float]:
    """Resident MiB of the server before, and while it holds `count` silent streams."""
    assert way.pid is not None  # noqa: S101
    before = memory(way.pid)
    held = []
    for _ in range(count // 50):
        some = await asyncio.gather(*(connect(way) for _ in range(50)))
        for reader, writer in some:
            writer.write(request("/v1/responses"))
            while not (await reader.readline()).startswith(b"data: "):
                pass
        held += some
    after = memory(way.pid)
    for _, writer in held:
        writer.transport.abort()
    return before, after


async def rate(way: Way, auth: Callable[[], str], status: bytes, batch: int, seconds: float = 5) -> float:
    """Answers with `status` in a second, to 8 clients that each send `batch` requests at a time."""
    done = 0
    begun = time.perf_counter()

    async def one() -> None:
        nonlocal done
        asked = 0
        reader, writer = await connect(way)
        while time.perf_counter() - begun < seconds:
            if asked >= 50_000:
                # nginx closes a connection after `keepalive_requests`, which are 100,000.
                writer.close()
                asked = 0
                reader, writer = await connect(way)
            writer.write(b"".join(request("/v1/nothing", auth(), b"") for _ in range(batch)))
            for _ in range(batch):
                head = await reader.readuntil(b"\r\n\r\n")
                assert status in head[:15], head  # noqa: S101
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if length:
                    await reader.readexactly(int(length[1]))
                done += 1
            asked += batch
        writer.close()

    await asyncio.gather(*(one() for _ in range(8)))
    return done / (time.perf_counter() - begun)


# The servers


def box(server: str, door: int, exact: bool = False) -> Box:
    """The settings of a box whose engine is ours, with room for a thousand streams."""
    variables: dict[str, Any] = {
        "gateway_server": server,
        "gateway_names": ["localhost"],
        "gateway_port": door,
        "gateway_metrics_port": door + 1,
        "gateway_in_flight": 2000,
        "gateway_exact_limits": exact,
        "gateway_tokens": {"bench": TOKEN},
        "gateway_password": PASSWORD,
        "llamacpp_port": ENGINE,
        "inference_models": [MODEL],
        "docker_enabled": False,
        "openwebui_enabled": False,
    }
    return parse_box(Box, "bench", (), variables, None, None)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A new certificate and its key, of the kind that Caddy makes."""
    chain, key = folder / "bench.crt", folder / "bench.key"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", *kind, "-keyout", str(key), "-out", str(chain)]
    subprocess.run(command, check=True, capture_output=True)
    return chain, key


def start_caddy(folder: Path, door: int, exact: bool = False) -> subprocess.Popen[bytes]:
    """Caddy with the role's configuration, its files in `folder`; with `exact` counting by our own module."""
    text = caddy.caddyfile(box("caddy", door, exact))
    for path in ("/run/caddy", "/var/lib/caddy", "/var/log/caddy", "/etc/boxwright/caddy"):
        (folder / path.strip("/")).mkdir(parents=True)
        text = text.replace(path, f"{folder}{path}")
    config = folder / "Caddyfile"
    config.write_text(text)
    program = str(caddy_build.binary(caddy_build.own_architecture()))
    with (folder / "caddy.log").open("wb") as log:
        return subprocess.Popen(
            [program, "run", "--config", str(config), "--adapter", "caddyfile"],
            env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def start_exact(folder: Path, door: int) -> subprocess.Popen[bytes]:
    """Caddy with `gateway_exact_limits`."""
    return start_caddy(folder, door, exact=True)


def start_nginx(folder: Path, door: int) -> subprocess.Popen[bytes]:
    """nginx with the role's configuration, its files in `folder`."""
    settings = box("nginx", door)
    text = nginx.configuration(settings)
    for path in ("/run/nginx", nginx.STATE, nginx.LOGS, nginx.FOLDER):
        (folder / path.strip("/")).mkdir(parents=True)
        text = text.replace(path, f"{folder}{path}")
    for path, content in nginx.secret_files(settings).items():
        (folder / path.strip("/")).write_text(content)
    for made, wanted in zip(certificate(folder), (nginx.CERTIFICATE, nginx.CERTIFICATE_KEY), strict=True):
        made.replace(folder / wanted.strip("/"))
    config = folder / "nginx.conf"
    config.write_text(("user root;\n" if os.geteuid() == 0 else "") + text)
    with (folder / "nginx.log").open("wb") as log:
        return subprocess.Popen(
            ["nginx", "-c", str(config), "-g", f"pid {folder}/nginx.pid;"], stdout=log, stderr=subprocess.STDOUT
        )


async def ready(port: int) -> None:
    """Return when something listens on `port` of loopback."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


SERVERS: dict[str, Callable[[Path, int], subprocess.Popen[bytes]]] = {"Caddy": start_caddy, "Caddy, exact": start_exact}
if shutil.which("nginx"):
    SERVERS["nginx"] = start_nginx


def percentiles(values: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=100)[98]


def joined(lists: list[list[Any]]) -> list[Any]:
    """One list of several."""
    return list(itertools.chain.from_iterable(lists))


@dataclass
class Times:
    """What was measured by one way, in milliseconds: to the first event in each round, and between events."""

    way: Way
    first: list[list[float]] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def row(self, base: "Times") -> str:
        """A line of the table: what this way adds to `base`; to the median also in the best and the worst round."""
        (a, b), (c, d) = percentiles(joined(self.first)), percentiles(self.between)
        (e, f), (_, h) = percentiles(joined(base.first)), percentiles(base.between)
        medians = [[statistics.median(each) for each in times.first] for times in (self, base)]
        added = [own - other for own, other in zip(*medians, strict=True)]
        return (
            f"| {self.way.name} | {a:.2f} | {a - e:+.2f} | {min(added):+.2f} to {max(added):+.2f} "
            f"| {b:.2f} | {b - f:+.2f} | {c:.2f} | {d:.2f} | {d - h:+.2f} |"
        )


async def measured(ways: list[Way], pool: ProcessPoolExecutor) -> list[Times]:
    """`ROUNDS` rounds by all `ways`, each with `CLIENTS` at the same time, after one that does not count."""
    found = [Times(way) for way in ways]
    loop = asyncio.get_running_loop()
    for number in range(ROUNDS + 1):
        for times in found:
            asked = (loop.run_in_executor(pool, stream, times.way, STREAMS) for _ in range(CLIENTS))
            got = await asyncio.gather(*asked)
            if number:
                times.first.append([each for first, _ in got for each in first])
                times.between += [each for _, between in got for each in between]
    return found


async def credentials(way: Way) -> list[str]:
    """How many answers a second `way` gives to right and wrong credentials, as lines of a table."""
    rates = []
    for what, auth, status in (
        ("bearer, wrong", "Bearer wrong-wrong-wrong-wrong", b" 401"),
        ("no credentials", "", b" 401"),
        ("basic, the same wrong one", basic("wrong"), b" 401"),
        ("basic, always another wrong one", "", b" 401"),
        ("basic, right (path not offered)", basic(PASSWORD), b" 404"),
    ):
        other = what.endswith("another wrong one")
        # Where each password is hashed, a batch would take minutes.
        batch = 1 if other or (auth.startswith("Basic") and way.name == "nginx") else 20
        given = (lambda: basic(secrets.token_hex(8))) if other else (lambda auth=auth: auth)
        found = await rate(way, given, status, batch)
        rates.append(f"| {way.name} | {what} | {found:.0f} |")
    return rates


async def compare(pool: ProcessPoolExecutor) -> None:
    """Measure everything and print it."""
    for port in (ENGINE, ENGINE_TLS, RELAY):
        await ready(port)
    ways = [Way("direct", ENGINE, False), Way("direct, TLS", ENGINE_TLS, True), Way("plain relay", RELAY, False)]
    held: list[str] = []
    with tempfile.TemporaryDirectory(prefix="boxwright-bench-") as folder, contextlib.ExitStack() as running:
        for number, (name, start) in enumerate(SERVERS.items()):
            place = Path(folder) / name.replace(", ", "-")
            place.mkdir()
            door = DOORS + 2 * number
            process = start(place, door)
            running.callback(process.wait, timeout=60)
            running.callback(process.terminate)
            await ready(door)
            ways.append(Way(name, door, True, process.pid))
        times = await measured(ways, pool)
        servers = [way for way in ways if way.pid]
        for way in servers:
            before, after = await idle(way)
            held.append(f"| {way.name} | {before:.0f} | {after:.0f} |")
        rates = [await credentials(way) for way in servers if way.name != "Caddy, exact"]
    print(f"{machine()}\n")
    print(
        f"{len(joined(times[0].first))} streams each, {CLIENTS} at a time, an event every {PAUSE * 1000:.0f} ms, in "
        f"{ROUNDS} rounds that take turns. Both servers speak TLS; *exact* is `gateway_exact_limits`.\n"
    )
    print("| way | first event p50 (ms) | added | in one round | p99 | added | between events p50 (ms) | p99 | added |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(each.row(times[0]) for each in times))
    print("\n| server | resident MiB at rest | with 1,000 silent streams |\n| --- | ---: | ---: |")
    print("\n".join(held))
    print("\n| server | credentials | answers a second |\n| --- | --- | ---: |")
    print("\n".join(joined(rates)))


def basic(password: str) -> str:
    """The header of user and password."""
    import base64

    return "Basic " + base64.b64encode(f"boxwright:{password}".encode()).decode()


def main() -> None:
    """Run the servers in a process of their own, and measure."""
    if sys.argv[1:2] == ["serve"]:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(Path(sys.argv[2])))
        return
    if not caddy_build.available(caddy_build.own_architecture()):
        sys.exit("build the custom Caddy first: boxwright caddy build")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, hard), hard))
    with (
        tempfile.TemporaryDirectory(prefix="boxwright-bench-") as folder,
        ProcessPoolExecutor(CLIENTS, multiprocessing.get_context("spawn")) as pool,
    ):
        servers = subprocess.Popen([sys.executable, __file__, "serve", folder])
        try:
            asyncio.run(compare(pool))
        finally:
            servers.terminate()
            servers.wait(timeout=30)


if __name__ == "__main__":
    main()
