"""Brings the database of one instance of the API service to the newest schema; before that, a copy of it is made.

Written by boxwright. Arguments: folder of the instance's data, how many copies are kept, folder with pg_dump and psql
("-" without PostgreSQL), what this version is called; then `serve` to become the service afterwards. The settings are
those of the service: BOXWRIGHT_API_SETTINGS and CREDENTIALS_DIRECTORY. A copy is made once for each version, where
there is something to copy.
"""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

# How long the database may take to answer after the boot.
PATIENCE = 120


def say(text: str) -> None:
    """To the log."""
    print(text, file=sys.stderr, flush=True)


def settle(new: Path, final: Path) -> None:
    """`new` is on the disk, and then takes its name."""
    with new.open("rb") as written:
        os.fsync(written.fileno())
    new.rename(final)


def copy_sqlite(database: Path, copies: Path, name: str) -> None:
    """As SQLite itself copies a database that may be in use."""
    if not database.exists() or not database.stat().st_size:
        return
    new = copies / f".{name}.new"
    new.unlink(missing_ok=True)
    source, target = sqlite3.connect(f"file:{database}?mode=ro", uri=True), sqlite3.connect(new)
    try:
        source.backup(target)
    finally:
        target.close()
        source.close()
    settle(new, copies / f"{name}.sqlite3")
    say(f"copied the database to {copies / name}.sqlite3")


class PostgreSQL:
    """The server's own programs, with the password in a file of this process alone."""

    def __init__(self, url: str, programs: Path, password: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 5432
        self.user, self.database = unquote(parts.username or ""), parts.path.lstrip("/")
        self.programs, self.password = programs, password

    def wait(self) -> None:
        """Until it listens."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=5).close()
                return
            except OSError as error:
                if time.monotonic() > until:
                    raise SystemExit(f"PostgreSQL does not answer on {self.host}:{self.port}: {error}") from error
            time.sleep(0.2)

    def run(self, program: str, *arguments: str) -> str:
        """What one of the programs prints."""
        with tempfile.NamedTemporaryFile("w", prefix="pgpass") as file:
            escaped = re.sub(r"([\\:])", r"\\\1", self.password)
            file.write(f"*:*:*:*:{escaped}\n")
            file.flush()
            where = ["--no-password", "-h", self.host, "-p", str(self.port), "-U", self.user, "-d", self.database]
            ended = subprocess.run(
                [str(self.programs / program), *where, *arguments],
                env={**os.environ, "PGPASSFILE": file.name},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        if ended.returncode:
            raise SystemExit(f"{program} failed: the database was not copied, and is left as it is")
        return ended.stdout

    def copy(self, copies: Path, name: str) -> None:
        """By pg_dump, in its own format, unless there is no table yet."""
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        if self.run("psql", "-X", "-A", "-t", "-c", tables).strip() == "0":
            return
        new = copies / f".{name}.new"
        self.run("pg_dump", "--format=custom", f"--file={new}")
        settle(new, copies / f"{name}.dump")
        say(f"copied the database to {copies / name}.dump")


def main() -> None:
    """Copies, migrates, notes it."""
    data, keep, programs, version, *then = sys.argv[1:]
    os.umask(0o077)
    settings = json.loads(Path(os.environ["BOXWRIGHT_API_SETTINGS"]).read_text(encoding="utf-8"))
    url, copies, note = settings["database"], Path(data) / "backups", Path(data) / "migrated-to"
    copies.mkdir(exist_ok=True)
    known = note.read_text(encoding="utf-8").strip() if note.exists() else ""
    name = f"before-{version}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    if url.startswith("sqlite:"):
        if known != version:
            copy_sqlite(Path(url.removeprefix("sqlite:///")), copies, name)
    else:
        secret = Path(os.environ["CREDENTIALS_DIRECTORY"]) / "database_password"
        server = PostgreSQL(url, Path(programs), secret.read_text(encoding="utf-8").strip())
        server.wait()
        if known != version:
            server.copy(copies, name)
    ended = subprocess.run([sys.executable, "-m", "boxwright_api", "migrate"], check=False)
    if ended.returncode:
        raise SystemExit(f"the database could not be brought to the newest schema (exit {ended.returncode})")
    if known != version:
        new = note.with_suffix(".new")
        new.write_text(version + "\n", encoding="utf-8")
        settle(new, note)
    for old in sorted(copies.glob("before-*"), key=lambda path: path.stat().st_mtime, reverse=True)[int(keep) :]:
        old.unlink()
    if then == ["serve"]:
        os.execv(sys.executable, [sys.executable, "-m", "boxwright_api"])  # noqa: S606


main()
