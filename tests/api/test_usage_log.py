"""The usage log: nothing is lost and nothing counted twice while the database is away, within its bounds."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from boxwright_api.contracts import Store
from boxwright_api.errors import ApiError, StoreUnavailable
from boxwright_api.records import UsageRow
from boxwright_api.spill import Spill
from boxwright_api.store.migrate import migrate
from boxwright_api.usage import UsageLog
from databases import Databases
from stores import Place, a_row, settings
from waiting import until_async

pytestmark = pytest.mark.anyio


class Ledger:
    """A store of usage alone, which can be away, slow, or refuse a row for what is in it."""

    def __init__(self) -> None:
        self.rows: dict[str, UsageRow] = {}
        self.batches: list[int] = []
        self.away = False
        self.after_the_write = False
        self.refuses = ""
        self.gate = asyncio.Event()
        self.gate.set()

    async def write_usage(self, rows: Sequence[UsageRow]) -> None:
        """Insert rows that are not there."""
        await self.gate.wait()
        if self.away and not self.after_the_write:
            raise StoreUnavailable("away")
        if any(row.model == self.refuses for row in rows):
            raise ValueError("a value that no database takes")
        self.batches.append(len(rows))
        self.rows = {row.request_id: row for row in rows} | self.rows
        if self.away:
            raise StoreUnavailable("away before it could say that it was done")

    async def alive(self) -> bool:
        """Whether it answers."""
        return not self.away


def a_log(ledger: Ledger, folder: Path | None = None, **more: Any) -> UsageLog:
    """A usage log over it, which writes every 20 ms."""
    values = {"spill": folder, "usage_flush_ms": 20} | more
    return UsageLog(settings("sqlite:////unused", **values), cast(Store, ledger))


def spilled(folder: Path) -> list[dict[str, Any]]:
    """What is in the files of the folder."""
    return [json.loads(line) for file in sorted(folder.glob("*")) for line in file.read_text().splitlines()]


def unavailable(log: UsageLog) -> bool:
    """Whether requests are to be refused."""
    try:
        log.check()
    except ApiError as error:
        return (error.status, error.code) == (503, "usage_unavailable")
    return False


async def test_rows_are_written_in_batches(tmp_path: Path) -> None:
    """All that arrive within a moment together; taking one waits for nothing."""
    ledger = Ledger()
    log = a_log(ledger, tmp_path)
    await log.start()
    for number in range(1200):
        log.put(a_row(number))
    await until_async(lambda: len(ledger.rows) == 1200)
    await log.close()
    assert sum(ledger.batches) == 1200
    assert len(ledger.batches) <= 6
    assert (log.written, log.spilled, log.dropped, log.waiting) == (1200, 0, 0, 0)
    assert list(tmp_path.iterdir()) == []


async def test_what_is_waiting_is_written_at_the_end(tmp_path: Path) -> None:
    """To the database, or to the disk when it is away; the next process gives it to the database, exactly as it was."""
    ledger = Ledger()
    log = a_log(ledger, tmp_path, usage_flush_ms=60_000)
    await log.start()
    log.put(a_row(1))
    await log.close()
    assert list(ledger.rows.values()) == [a_row(1)]

    ledger.away = True
    rows = [a_row(2, model="zo\u00eb\ud800", first_ms=0.1, estimated=True), a_row(3, key_id=None, code="x\ny")]
    log = a_log(ledger, tmp_path)
    await log.start()
    for row in rows:
        log.put(row)
    await log.close()
    assert len(spilled(tmp_path)) == 2

    ledger.away = False
    log = a_log(ledger, tmp_path)
    await log.start()
    await until_async(lambda: len(ledger.rows) == 3)
    await log.close()
    assert [ledger.rows[row.request_id] for row in rows] == rows
    assert list(tmp_path.iterdir()) == []


async def test_while_the_database_is_away(tmp_path: Path) -> None:
    """Rows go to a file that only the service reads, and to the database when it is back, without a restart."""
    ledger = Ledger()
    folder = tmp_path / "spill"
    log = a_log(ledger, folder)
    before = os.umask(0)
    await log.start()
    ledger.away = True
    for number in range(50):
        log.put(a_row(number))
        await asyncio.sleep(0.005)
    await until_async(lambda: not log.waiting)
    os.umask(before)
    assert [row["request_id"] for row in spilled(folder)] == [f"request-{number}" for number in range(50)]
    files = list(folder.iterdir())
    assert len(files) == 1
    assert [stat.S_IMODE(file.stat().st_mode) for file in (folder, *files)] == [0o700, 0o600]
    assert not unavailable(log)
    ledger.away = False
    await until_async(lambda: len(ledger.rows) == 50)
    log.put(a_row(99))
    await until_async(lambda: len(ledger.rows) == 51)
    await until_async(lambda: not list(folder.iterdir()))
    await log.close()
    assert (log.written, log.spilled, log.dropped) == (51, 50, 0)


async def test_a_write_that_was_done_but_not_answered(tmp_path: Path) -> None:
    """The rows are spilled as well, and counted once."""
    ledger = Ledger()
    log = a_log(ledger, tmp_path)
    ledger.away = ledger.after_the_write = True
    await log.start()
    log.put(a_row(1))
    await until_async(lambda: log.spilled == 1)
    ledger.away = False
    await until_async(lambda: not list(tmp_path.iterdir()))
    await log.close()
    assert list(ledger.rows.values()) == [a_row(1)]


async def test_a_spill_that_is_full(tmp_path: Path) -> None:
    """Requests are refused with 503; the rows of those under way still have a place; afterwards all are there."""
    ledger = Ledger()
    log = a_log(ledger, tmp_path, spill_bytes=4000, usage_queue=100)
    await log.start()
    ledger.away = True
    number = 0
    while not unavailable(log):
        log.put(a_row(number))
        number += 1
        await asyncio.sleep(0.005)
        assert number < 200
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 4000
    for _ in range(20):
        log.put(a_row(number))
        number += 1
    await asyncio.sleep(0.1)
    assert unavailable(log)
    assert log.dropped == 0
    ledger.away = False
    await until_async(lambda: len(ledger.rows) == number)
    await until_async(lambda: not unavailable(log))
    assert not list(tmp_path.iterdir())
    await log.close()


async def test_without_a_folder(caplog: pytest.LogCaptureFixture) -> None:
    """Rows wait in memory; at half of it requests are refused; what comes on top of it all is lost, and told."""
    ledger = Ledger()
    log = a_log(ledger, usage_queue=10)
    await log.start()
    ledger.away = True
    for number in range(4):
        log.put(a_row(number))
    await asyncio.sleep(0.1)
    assert not unavailable(log)
    log.put(a_row(4))
    await asyncio.sleep(0.1)
    assert unavailable(log)
    for number in range(5, 13):
        log.put(a_row(number))
    assert log.dropped == 3
    assert "usage is lost" in caplog.text
    ledger.away = False
    await until_async(lambda: len(ledger.rows) == 10)
    await until_async(lambda: not unavailable(log))
    ledger.away = True
    log.put(a_row(20))
    await log.close()
    assert log.dropped == 4


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """The same as one that is full."""
    (tmp_path / "file").write_text("")
    ledger = Ledger()
    ledger.away = True
    log = a_log(ledger, tmp_path / "file" / "spill")
    await log.start()
    log.put(a_row(1))
    await until_async(lambda: unavailable(log))
    ledger.away = False
    await until_async(lambda: len(ledger.rows) == 1)
    await until_async(lambda: not unavailable(log))
    await log.close()


@pytest.mark.parametrize("torn", ['{"request_id": "request-9", "at": "2026-', "\0\0\0", '{"a": 1}\n', "[]\n", "7"])
async def test_a_torn_last_line(tmp_path: Path, torn: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is whole is kept, what is not is counted and told, and the file does not come back for ever."""
    first = Spill(tmp_path, 10_000)
    assert first.append([a_row(1), a_row(2)])
    first.finish()
    file = next(tmp_path.iterdir())
    with file.open("a") as lines:
        lines.write(torn)
    ledger = Ledger()
    log = a_log(ledger, tmp_path)
    await log.start()
    await until_async(lambda: not list(tmp_path.iterdir()))
    await log.close()
    assert list(ledger.rows) == ["request-1", "request-2"]
    assert log.dropped == 1
    assert "lines that are no rows" in caplog.text


async def test_a_row_that_the_database_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It alone is lost, and does not stop the others; its content is not in the log."""
    caplog.set_level(logging.DEBUG)
    ledger = Ledger()
    ledger.refuses = "poison"
    log = a_log(ledger, tmp_path)
    await log.start()
    for number in range(20):
        log.put(a_row(number, model="poison" if number == 7 else "small"))
    await until_async(lambda: len(ledger.rows) == 19)
    await log.close()
    assert log.dropped == 1
    assert "poison" not in caplog.text


async def test_a_disk_that_breaks_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it stays, so that the next row is not glued to half a one."""
    spill = Spill(tmp_path, 10_000)
    assert spill.append([a_row(1)])
    real = os.write

    def breaks(file: int, data: memoryview) -> int:
        if len(data) > 20:
            return real(file, data[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", breaks)
    assert not spill.append([a_row(2)])
    assert spill.full
    monkeypatch.setattr(os, "write", real)
    assert spill.append([a_row(3)])
    assert [row["request_id"] for row in spilled(tmp_path)] == ["request-1", "request-3"]


async def test_the_file_of_a_living_process_is_its_own(tmp_path: Path) -> None:
    """Another one leaves it alone; when the process is gone, its rows are taken."""
    living = Spill(tmp_path, 100_000)
    assert living.append([a_row(1)])
    ledger = Ledger()
    log = a_log(ledger, tmp_path)
    await log.start()
    await asyncio.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == 1
    assert living.append([a_row(2)])
    await log.close()
    assert ledger.rows == {}
    living.finish()
    log = a_log(ledger, tmp_path)
    await log.start()
    await until_async(lambda: len(ledger.rows) == 2)
    await log.close()


async def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    """Whoever can write there makes the service read nothing else."""
    other = tmp_path / "other"
    one = Spill(tmp_path / "one", 10_000)
    assert one.append([a_row(1)])
    one.finish()
    other.mkdir()
    (other / "usage-1.jsonl").symlink_to(next((tmp_path / "one").iterdir()))
    ledger = Ledger()
    log = a_log(ledger, other)
    await log.start()
    await asyncio.sleep(0.2)
    await log.close()
    assert ledger.rows == {}


async def test_new_rows_do_not_wait_for_a_long_file(tmp_path: Path) -> None:
    """They are written between its batches."""
    spill = Spill(tmp_path, 10**7)
    assert spill.append([a_row(number) for number in range(3000)])
    spill.finish()
    ledger = Ledger()
    log = a_log(ledger, tmp_path)
    log.put(a_row(9001))
    await log.start()
    ledger.gate.clear()
    await asyncio.sleep(0.1)
    log.put(a_row(9002))
    ledger.gate.set()
    await until_async(lambda: "request-9002" in ledger.rows)
    assert len(ledger.rows) < 3000
    await until_async(lambda: len(ledger.rows) == 3002)
    await log.close()


# With real databases and processes

WRITER = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(":")
from boxwright_api.store import open_store
from boxwright_api.usage import UsageLog
from stores import a_row, settings

async def main():
    with_settings = settings(sys.argv[2], spill=Path(sys.argv[3]), usage_flush_ms=20)
    store = open_store(with_settings)
    await store.start(lambda id: None)
    log = UsageLog(with_settings, store)
    await log.start()
    number = 0
    while True:
        log.put(a_row(number))
        number += 1
        kept = log.written + log.spilled
        print(number, kept, flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


@pytest.mark.parametrize("away", [False, True])
async def test_a_process_that_is_killed(sqlite: Place, tmp_path: Path, away: bool) -> None:
    """What it had written, to the database or to the disk, is there, once, and nothing is damaged."""
    await asyncio.to_thread(migrate, sqlite.settings)
    hidden = sqlite.file.with_suffix(".hidden")
    if away:
        sqlite.file.rename(hidden)
    spill = tmp_path / "spill"
    paths = ":".join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, paths, sqlite.settings.database, str(spill)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    put = kept = 0
    for line in process.stdout:
        put, kept = map(int, line.split())
        if kept > 100:
            break
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")
    process.wait()
    whole = [line for line in rest[:-1] if line]
    put, kept = map(int, whole[-1].split()) if whole else (put, kept)
    if away:
        hidden.rename(sqlite.file)
    with_spill = settings(sqlite.settings.database, spill=spill, usage_flush_ms=20)
    async with sqlite.opened() as store:
        log = UsageLog(with_spill, store)
        await log.start()
        await until_async(lambda: not list(spill.glob("*")))
        await log.close()
    found = [int(line.rpartition("-")[2]) for line in sqlite.sql("SELECT request_id FROM usage_log").split()]
    # Without a gap: what is lost are the last ones.
    assert sorted(found) == list(range(len(found)))
    assert kept <= len(found) <= put + 1


@pytest.mark.lab
async def test_postgresql_is_stopped_and_comes_back(
    postgresql: Place, databases: Databases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No row is lost and none is there twice, of two workers that share a folder."""
    await asyncio.to_thread(migrate, postgresql.settings)
    with_spill = settings(
        postgresql.settings.database,
        database_password=databases.password,
        spill=tmp_path / "spill",
        usage_flush_ms=20,
    )
    number = 0
    async with postgresql.opened() as one, postgresql.opened() as two:
        logs = [UsageLog(with_spill, one), UsageLog(with_spill, two)]
        for log in logs:
            await log.start()

        async def busily(seconds: float) -> None:
            nonlocal number
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for log in logs:
                    log.put(a_row(number))
                    number += 1
                await asyncio.sleep(0.005)

        await busily(0.3)
        stop = asyncio.create_task(asyncio.to_thread(databases.stop, "postgresql"))
        while not stop.done():
            await busily(0.1)
        await busily(0.5)
        for log in logs:
            assert log.spilled > 0
            log.check()
        start = asyncio.create_task(asyncio.to_thread(databases.start, "postgresql"))
        while not start.done():
            await busily(0.1)
        await busily(0.3)
        await until_async(lambda: not any(log.waiting for log in logs), 60)
        # Files of the other one are looked for now and then.
        await until_async(lambda: not list((tmp_path / "spill").iterdir()), 60)
        for log in logs:
            await log.close()
            assert log.dropped == 0
    assert postgresql.sql("SELECT count(*), count(DISTINCT request_id) FROM usage_log") == f"{number}|{number}"
    assert databases.password not in caplog.text
