"""The connection of one worker to Redis or Valkey, on which scripts are called.

All calls of a worker go over one connection; those made while others are under way go together in the next round trip.
They are run in the order in which they were made, but urgent ones before others that have not been sent. A call is
never broken off half way: who no longer wants it gives up the answer. So whatever takes something back (which is
urgent) is run after what it takes back, or instead of it.

When Redis does not answer, calls fail at once until it does again, which is tried every `RETRY` seconds. What must not
be lost (`post`) is kept until then, the newest `KEPT` of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from boxwright_api import metrics
from boxwright_api.settings import Settings
from boxwright_api.tasks import at_most, ended

log = logging.getLogger(__name__)

# Seconds. Redis is away when a round trip takes longer than `SILENCE`; then all fail that wait for one. As long as it
# answers, a call waits for `TURN` until those before it are answered, too. What was posted is waited for `PATIENCE`.
SILENCE = 0.7
TURN = 5.0
PATIENCE = 0.9
RETRY = 0.2
# Calls in one round trip, and calls that are kept while Redis is away.
BATCH = 32
KEPT = 10_000

FAILURES = (RedisError, OSError, TimeoutError)


class Away(Exception):
    """Redis does not answer, or not with an answer. `sent`: it may have run the call nevertheless."""

    def __init__(self, sent: bool) -> None:
        super().__init__("Redis does not answer")
        self.sent = sent


class Script:
    """A Lua script. It has no `#!lua` line, which Redis 6.0 of Ubuntu 22.04 does not know."""

    def __init__(self, name: str) -> None:
        folder = Path(__file__).parent
        self.text = "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("common", name))
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


ADMIT, RELEASE, RENEW = Script("admission"), Script("release"), Script("renew")


@dataclass(eq=False)
class _Call:
    script: Script
    keys: Sequence[str]
    arguments: Sequence[str | int]
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    sent: bool = False


def client(settings: Settings) -> Redis:
    """A client that tries once and says so when it fails. Raises ValueError for an address that has more than that."""
    address: dict[str, Any] = dict(parse_url(settings.redis))
    address.pop("connection_class", None)
    if unknown := set(address) - {"host", "port", "db", "path", "username"}:
        raise ValueError(
            f"`redis` has {', '.join(sorted(unknown))}: it is an address and nothing else (redis://host:port/0 or "
            "unix:///path?db=0); the password belongs into the secret `redis_password`"
        )
    if "path" in address:
        address["unix_socket_path"] = address.pop("path")
    password = settings.redis_password
    return Redis(
        **address,
        password=password.get_secret_value() if password else None,
        protocol=2,
        driver_info=None,
        retry=Retry(NoBackoff(), 0),
        # How long an answer may take is said where it is waited for (`at_most`).
        socket_timeout=None,
        socket_connect_timeout=SILENCE,
        socket_keepalive=None if "unix_socket_path" in address else True,
    )


class Wire:
    """The connection. `back` is called whenever Redis answers again, also the first time."""

    def __init__(self, settings: Settings, back: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._client = client(settings)
        self._back = back
        self._urgent: deque[_Call] = deque()
        self._others: deque[_Call] = deque()
        # What was posted and has no answer yet, the oldest first.
        self._kept: dict[_Call, None] = {}
        self._work = asyncio.Event()
        self._tried = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent_until = 0.0
        self.down = True

    async def start(self) -> None:
        """Connect; when Redis is away, go on trying."""
        self._begin(self._run())
        await self._tried.wait()

    async def close(self) -> None:
        """Disconnect, after what was posted, for which Redis has `PATIENCE` seconds."""
        if self._kept and not self.down:
            await asyncio.wait([call.answer for call in self._kept], timeout=PATIENCE)
        self.down = True
        await ended(*self._tasks)
        self._fail()
        if self._kept:
            metrics.UNCHARGED.inc(len(self._kept))
            log.warning("limits: %d releases are lost, since Redis is away", len(self._kept))
        await self._client.aclose()

    async def call(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int], urgent: bool = False
    ) -> Any:
        """The script's answer. Raises Away, within a second when Redis says nothing."""
        if self.down:
            raise Away(sent=False)
        call = _Call(script, keys, arguments)
        (self._urgent if urgent else self._others).append(call)
        self._work.set()
        try:
            async with asyncio.timeout(TURN):
                return await call.answer
        except TimeoutError:
            raise Away(call.sent) from None

    def post(self, script: Script, keys: Sequence[str], arguments: Sequence[str | int]) -> asyncio.Future[Any]:
        """Call the script as soon as possible, even if that is later; it must be one that may be called twice."""
        call = _Call(script, keys, arguments)
        self._urgent.append(call)
        self._kept[call] = None
        self._work.set()
        if len(self._kept) > KEPT:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            oldest.answer.cancel()
            metrics.UNCHARGED.inc()
        return call.answer

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while True:
            await self._connect()
            while not self.down:
                await self._work.wait()
                self._work.clear()
                while not self.down and (batch := self._take()):
                    await self._exchange(batch)

    async def _connect(self) -> None:
        while self.down:
            try:
                async with at_most(SILENCE):
                    await self._load()
            except FAILURES as error:
                self._complain(error)
                self._tried.set()
                await asyncio.sleep(RETRY)
            else:
                self.down = False
        if self._silent_until:
            self._silent_until = 0.0
            log.warning("limits: Redis answers again, and is told of %d releases", len(self._kept))
        self._tried.set()
        self._work.set()
        self._begin(self._back())

    async def _load(self) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for script in (ADMIT, RELEASE, RENEW):
            pipeline.execute_command("SCRIPT LOAD", script.text)
        await pipeline.execute()

    def _take(self) -> list[_Call]:
        """What goes together: the oldest that somebody still wants, urgent ones first."""
        batch: list[_Call] = []
        while (source := self._urgent or self._others) and len(batch) < BATCH:
            call = source.popleft()
            if not call.answer.done():
                call.sent = True
                batch.append(call)
        return batch

    async def _exchange(self, batch: list[_Call]) -> None:
        """One round trip; two more when Redis does not know the scripts any more."""
        try:
            async with at_most(SILENCE):
                replies = await self._send(batch)
                if again := [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]:
                    await self._load()
                    for at, reply in zip(again, await self._send([batch[at] for at in again]), strict=True):
                        replies[at] = reply
        except FAILURES as error:
            self.down = True
            self._complain(error)
            for call in batch:
                if call not in self._kept and not call.answer.done():
                    call.answer.set_exception(Away(sent=True))
            self._fail()
            self._urgent.extendleft(call for call in reversed(batch) if call in self._kept)
            await self._client.connection_pool.disconnect()
            return
        refused = []
        for call, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Exception):
                self._complain(reply)
                if call in self._kept:
                    refused.append(call)
                elif not call.answer.done():
                    call.answer.set_exception(Away(sent=True))
            else:
                self._kept.pop(call, None)
                if not call.answer.done():
                    call.answer.set_result(reply)
        if refused:
            self._begin(self._again(refused))

    async def _again(self, calls: list[_Call]) -> None:
        """What Redis did not take now, it may take later."""
        await asyncio.sleep(RETRY)
        self._urgent.extend(calls)
        self._work.set()

    async def _send(self, batch: list[_Call]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in batch:
            pipeline.execute_command("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.arguments)
        return list(await pipeline.execute(raise_on_error=False))

    def _fail(self) -> None:
        """What has not been sent is not sent; what is kept stays."""
        calls = [*self._urgent, *self._others]
        self._urgent = deque(call for call in self._urgent if call in self._kept)
        self._others.clear()
        for call in calls:
            if call not in self._kept and not call.answer.done():
                call.answer.set_exception(Away(sent=False))

    def _complain(self, error: Exception) -> None:
        """Once a minute at most, and once for each time that it is away. The kind of error is said, not its text."""
        now = asyncio.get_running_loop().time()
        if now >= self._silent_until:
            self._silent_until = now + 60
            log.warning("limits: Redis does not answer as it should: %s", type(error).__name__)
