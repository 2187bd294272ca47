#!/usr/bin/env python3
"""Measures what the gateway adds: direct, through Caddy, through nginx and through a plain relay, side by side.

Run it on an idle machine: `.venv/bin/python bench/gateway.py > bench/gateway.md`. Everything runs on loopback: an
engine that answers at once, and each server with the very configuration that the role writes, apart from paths and
ports. It needs the custom Caddy (`boxwright caddy build`); nginx is measured where it is installed. About two minutes.
"""

import asyncio
import contextlib
import itertools
import os
import random
import re
import resource
import secrets
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
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
ENGINE, RELAY, DOOR, METRICS = 19081, 19082, 19443, 19180
EVENTS, PAUSE = 25, 0.02
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


async def serve() -> None:
    """Engine and relay, until killed."""
    servers = [
        await asyncio.start_server(engine, "127.0.0.1", ENGINE, backlog=4096),
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


async def stream(way: Way, times: int) -> AsyncIterator[tuple[float, list[float]]]:
    """One client that asks `times` times on one connection: seconds to the first event, and between events."""
    reader, writer = await connect(way)
    for _ in range(times):
        # Clients do not ask in step with each other.
        await asyncio.sleep(random.uniform(0, EVENTS * PAUSE))  # noqa: S311 -- no secret
        begun = time.perf_counter()
        writer.write(request("/v1/completions"))
        arrived: list[float] = []
        status = await reader.readline()
        assert b" 200 " in status, status  # noqa: S101
        while True:
            line = await reader.readline()
            if line.startswith(b"data: "):
                arrived.append(time.perf_counter())
            elif line == b"0\r\n":
                await reader.readline()
                break
        yield arrived[0] - begun, [after - before for before, after in itertools.pairwise(arrived)]
    writer.close()


async def streams(way: Way, clients: int = 10, times: int = 12) -> tuple[list[float], list[float]]:
    """Milliseconds to the first event and between events, of `clients` at the same time."""
    first: list[float] = []
    between: list[float] = []

    async def one() -> None:
        number = 0
        async for begin, gaps in stream(way, times):
            number += 1
            if number > 2:  # the first of each connection opens another one behind the gateway
                first.append(begin * 1000)
                between.extend(gap * 1000 for gap in gaps)

    await asyncio.gather(*(one() for _ in range(clients)))
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
        reader, writer = await connect(way)
        while time.perf_counter() - begun < seconds:
            writer.write(b"".join(request("/v1/nothing", auth(), b"") for _ in range(batch)))
            for _ in range(batch):
                head = await reader.readuntil(b"\r\n\r\n")
                assert status in head[:15], head  # noqa: S101
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if length:
                    await reader.readexactly(int(length[1]))
                done += 1
        writer.close()

    await asyncio.gather(*(one() for _ in range(8)))
    return done / (time.perf_counter() - begun)


# The servers


def box(server: str) -> Box:
    """The settings of a box whose engine is ours, with room for a thousand streams."""
    variables: dict[str, Any] = {
        "gateway_server": server,
        "gateway_names": ["localhost"],
        "gateway_port": DOOR,
        "gateway_metrics_port": METRICS,
        "gateway_in_flight": 2000,
        "gateway_tokens": {"bench": TOKEN},
        "gateway_password": PASSWORD,
        "llamacpp_port": ENGINE,
        "inference_models": [MODEL],
        "docker_enabled": False,
        "openwebui_enabled": False,
    }
    return parse_box(Box, "bench", (), variables, None, None)


def start_caddy(folder: Path) -> subprocess.Popen[bytes]:
    """Caddy with the role's configuration, its files in `folder`."""
    text = caddy.caddyfile(box("caddy"))
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


def start_nginx(folder: Path) -> subprocess.Popen[bytes]:
    """nginx with the role's configuration, its files in `folder`."""
    settings = box("nginx")
    text = nginx.configuration(settings)
    for path in ("/run/nginx", nginx.STATE, nginx.LOGS, nginx.FOLDER):
        (folder / path.strip("/")).mkdir(parents=True)
        text = text.replace(path, f"{folder}{path}")
    for path, content in nginx.secret_files(settings).items():
        (folder / path.strip("/")).write_text(content)
    made = ["-keyout", f"{folder}{nginx.CERTIFICATE_KEY}", "-out", f"{folder}{nginx.CERTIFICATE}"]
    # The kind of key that Caddy makes.
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run(["openssl", "req", "-x509", *kind, *made], check=True, capture_output=True)
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


SERVERS: dict[str, Callable[[Path], subprocess.Popen[bytes]]] = {"Caddy": start_caddy}
if shutil.which("nginx"):
    SERVERS["nginx"] = start_nginx


def percentiles(values: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=100)[98]


async def measured(way: Way) -> tuple[list[float], list[float]]:
    """`streams`, after a short warm-up."""
    await streams(way, times=3)
    return await streams(way)


async def with_server(name: str, folder: Path, use: Callable[[Way], Awaitable[None]]) -> None:
    """Start a server, use it, stop it."""
    process = SERVERS[name](folder)
    try:
        await ready(DOOR)
        await use(Way(name, DOOR, True, process.pid))
    finally:
        process.terminate()
        process.wait(timeout=60)


async def compare() -> None:
    """Measure everything and print it."""
    await ready(RELAY)
    times: list[tuple[str, list[float], list[float]]] = []
    held: list[str] = []
    rates: list[str] = []
    for way in (Way("direct", ENGINE, False), Way("plain relay", RELAY, False)):
        times.append((way.name, *await measured(way)))

    async def use(way: Way) -> None:
        times.append((f"{way.name}, TLS", *await measured(way)))
        before, after = await idle(way)
        held.append(f"| {way.name} | {before:.0f} | {after:.0f} |")
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

    with tempfile.TemporaryDirectory(prefix="boxwright-bench-") as folder:
        for name in SERVERS:
            place = Path(folder) / name
            place.mkdir()
            await with_server(name, place, use)
    base_first, base_gap = percentiles(times[0][1]), percentiles(times[0][2])
    print(f"{machine()}\n\n{len(times[0][1])} streams each, 10 at a time, an event every {PAUSE * 1000:.0f} ms.\n")
    print("| way | first event p50 (ms) | added | p99 | added | between events p50 (ms) | p99 | added |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for label, first, gaps in times:
        (a, b), (c, d) = percentiles(first), percentiles(gaps)
        print(
            f"| {label} | {a:.2f} | {a - base_first[0]:+.2f} | {b:.2f} | {b - base_first[1]:+.2f} "
            f"| {c:.2f} | {d:.2f} | {d - base_gap[1]:+.2f} |"
        )
    print("\n| server | resident MiB at rest | with 1,000 silent streams |\n| --- | ---: | ---: |")
    print("\n".join(held))
    print("\n| server | credentials | answers a second |\n| --- | --- | ---: |")
    print("\n".join(rates))


def basic(password: str) -> str:
    """The header of user and password."""
    import base64

    return "Basic " + base64.b64encode(f"boxwright:{password}".encode()).decode()


def main() -> None:
    """Run the servers in a process of their own, and measure."""
    if sys.argv[1:] == ["serve"]:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve())
        return
    if not caddy_build.available(caddy_build.own_architecture()):
        sys.exit("build the custom Caddy first: boxwright caddy build")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, hard), hard))
    servers = subprocess.Popen([sys.executable, __file__, "serve"])
    try:
        asyncio.run(compare())
    finally:
        servers.terminate()
        servers.wait(timeout=30)


if __name__ == "__main__":
    main()
