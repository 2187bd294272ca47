"""Streams through a gateway that are silent for long, and many of them at once."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from engine_double import EngineDouble
from gateway_box import CHAT, TOKEN, Gateway, question, trust
from kit import eventually

SILENCE = 90
# What a gateway may need for a thousand idle streams, in KiB.
ROOM_FOR_A_THOUSAND = 150 * 1024


def texts(lines: Iterable[str]) -> Iterator[str]:
    """The texts of a streamed answer, each as soon as its event is here."""
    for line in lines:
        if line.startswith("data: {"):
            yield from (choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"])


def listen(gateway: Gateway, model: str, http2: bool, token: str = TOKEN, path: str = CHAT) -> list[str]:
    """All texts of a stream, by curl: httpx gives an HTTP/2 stream up when it hears that the connection takes no more
    requests (GOAWAY), which is what a reload says. RFC 9113, 6.8: streams that were begun go on.
    """
    protocol = "--http2" if http2 else "--http1.1"
    # Arguments can be seen by others on this machine; so a token is none.
    options = {
        "url": f"{gateway.url}{path}",
        "cacert": str(gateway.box.ca),
        "noproxy": "*",
        "max-time": str(3 * SILENCE),
        "write-out": "%{http_version} %{http_code}\\n",
        "header": f"Authorization: Bearer {token}",
        "data": json.dumps(question(model, stream=True)).replace('"', '\\"'),
    }
    done = subprocess.run(
        ["curl", "--config", "-", "--silent", "--show-error", "--no-buffer", protocol],
        input="".join(f'{name} = "{value}"\n' for name, value in options.items()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == f"{'2' if http2 else '1.1'} 200"
    assert "data: [DONE]" in lines
    return list(texts(lines))


@contextmanager
def silent_streams(
    gateway: Gateway, engine: EngineDouble, path: str = CHAT
) -> Iterator[dict[tuple[str, bool], Future[list[str]]]]:
    """Streams that are silent while other tests run: what they brought in the end, by name and whether it was HTTP/2.

    `quiet` says something, and no more for SILENCE seconds; `late` says nothing before.
    """
    quiet, late = engine.answer("quiet"), engine.answer("late", held=True)
    quiet.say("before")

    def speak() -> None:
        quiet.say("after")
        late.say("at last")
        late.release()
        quiet.finish()
        late.finish()

    with ThreadPoolExecutor(4) as pool:
        found = {
            (model, http2): pool.submit(listen, gateway, model, http2, path=path)
            for http2 in (False, True)
            for model in ("quiet", "late")
        }
        eventually("four streams at the engine", lambda: len(engine.of("quiet")) == len(engine.of("late")) == 2)
        timer = threading.Timer(SILENCE, speak)
        timer.start()
        try:
            yield found
        finally:
            timer.cancel()
            speak()


def expect_survived(silent: dict[tuple[str, bool], Future[list[str]]], engine: EngineDouble, http2: bool) -> None:
    """Waits for the end of the streams of `silent_streams`, and fails when one of them was cut."""
    assert silent["quiet", http2].result(3 * SILENCE) == ["before", "after", ""]
    assert silent["late", http2].result(3 * SILENCE) == ["at last", ""]
    for asked in [*engine.of("quiet"), *engine.of("late")]:
        assert asked.ended is not None
        assert asked.ended - asked.began >= SILENCE


def expect_many_held(gateway: Gateway, engine: EngineDouble, service: str, path: str, count: int = 1000) -> None:
    """Open `count` streams, each on a connection of its own, and have all of them speak again after the last came."""
    # Two for each stream: the client's, and the double's.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4 * count + 1000), most))
    answer = engine.answer("many")
    answer.say("before")
    body = json.dumps(question("many", stream=True))
    head = f"POST {path} HTTP/1.1\r\nHost: {gateway.box.address}\r\nAuthorization: Bearer {TOKEN}\r\n"
    request = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    before = gateway.box.memory(service, "VmRSS")
    context = trust(gateway.box)

    async def begin() -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(gateway.box.address, 443, ssl=context)
        writers.append(writer)
        writer.write(request)
        await reader.readuntil(b'"before"')
        return reader

    async def hold() -> None:
        readers: list[asyncio.StreamReader] = []
        for _ in range(count // 50):
            readers += await asyncio.gather(*(begin() for _ in range(50)))
        assert engine.in_flight >= count
        assert gateway.box.memory(service, "VmRSS") - before < ROOM_FOR_A_THOUSAND * count / 1000
        await asyncio.to_thread(answer.say, "after")
        await asyncio.to_thread(answer.finish)
        await asyncio.gather(*(reader.readuntil(b'"after"') for reader in readers))
        await asyncio.gather(*(reader.readuntil(b"data: [DONE]") for reader in readers))
        for writer in writers:
            writer.transport.abort()

    writers: list[asyncio.StreamWriter] = []
    asyncio.run(asyncio.wait_for(hold(), 120))
