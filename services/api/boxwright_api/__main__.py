"""`python -m boxwright_api` serves; `... migrate` brings the database up to date; `... check` reads the settings."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
from types import FrameType
from typing import Any

import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from boxwright_api.settings import SECRETS_VARIABLE, SETTINGS_VARIABLE, Settings

# Where prometheus-client keeps the figures of all workers; it reads this when it is imported, in each worker.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# What systemd shows beside each line already: the time and the program.
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"ours": {"()": "boxwright_api.__main__.Ours"}},
    "formatters": {"plain": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "plain",
            "filters": ["ours"],
            "stream": "ext://sys.stderr",
        }
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
}


class Ours(logging.Filter):
    """What uvicorn logs, for whoever operates this service.

    It calls it an error when an answer ends without its last chunk; here that is how a client is told that a stream is
    broken (`relay.Exchange`). And a database of another version is no fault of the program, to be shown with its lines.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        text = record.getMessage()
        last = text.rstrip().rpartition("\n")[2]
        if last.startswith("boxwright_api.errors.SchemaError: "):
            record.msg, record.args = last.partition(": ")[2], None
        return text != "ASGI callable returned without completing response."


class Workers(Multiprocess):
    """uvicorn's supervisor: it starts the workers, and others for those that die."""

    def terminate_all(self) -> None:
        """Tell all of them to stop. As long as their supervisor has the socket too, the kernel would go on accepting
        connections that nobody answers.
        """
        for one in self.sockets:
            one.close()
        super().terminate_all()


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m boxwright_api", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="serve (also without a command)")
    migrate = commands.add_parser("migrate", help="bring the database to the newest schema")
    migrate.add_argument("--down", metavar="REVISION", help="or back to this one")
    commands.add_parser("check", help="read the settings and say what is wrong with them")
    arguments = parser.parse_args()
    settings = _settings()
    if settings is None:
        return 2
    if arguments.command == "check":
        return 0
    if arguments.command == "migrate":
        return _migrate(settings, arguments.down)
    return _serve(settings)


def _settings() -> Settings | None:
    """The settings; None when something is wrong with them, which is said. No value is shown: it may be a secret."""
    try:
        # From the file and the folder.
        return Settings()
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            where = ".".join(str(part) for part in problem["loc"]) or "settings"
            print(f"`{where}`: {problem['msg']}", file=sys.stderr)
    except (SettingsError, OSError, ValueError) as error:
        file = os.environ.get(SETTINGS_VARIABLE, "")
        print(f"the settings cannot be read from `{file}`: {type(error).__name__}", file=sys.stderr)
    if SETTINGS_VARIABLE not in os.environ:
        print(f"`{SETTINGS_VARIABLE}` names no file, so only {SECRETS_VARIABLE} was read", file=sys.stderr)
    return None


def _migrate(settings: Settings, down: str | None) -> int:
    from boxwright_api.errors import SchemaError, StoreUnavailable
    from boxwright_api.store.migrate import migrate

    try:
        revision = migrate(settings, down)
    except (SchemaError, StoreUnavailable) as error:
        print(f"the database was not changed: {error or 'it does not answer'}", file=sys.stderr)
        return 1
    print(revision or "no tables")
    return 0


def _serve(settings: Settings) -> int:
    """Until SIGTERM or SIGINT; then answers may go on for `stop_seconds`."""
    config = uvicorn.Config(
        "boxwright_api.app:create_app_from_settings",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=LOGGING,
        # Who a client is is for `client.visitor` to say.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=settings.stop_seconds,
    )
    if settings.workers == 1:
        # uvicorn raises the signal again when it has stopped; it was asked for, so the end is a good one.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _end)
        server = uvicorn.Server(config)
        server.run()
        return 0 if server.started else STARTUP_FAILURE
    folder = tempfile.mkdtemp(prefix="boxwright-api-")
    os.environ[FOLDER_VARIABLE] = folder
    try:
        supervisor = Workers(config, [config.bind_socket()])
        supervisor.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # It ends in order when a worker cannot start; whoever started the program must hear of it.
    return STARTUP_FAILURE if any(one.exitcode == STARTUP_FAILURE for one in supervisor.processes) else 0


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
