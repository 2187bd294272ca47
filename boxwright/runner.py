"""Runs a deploy in this process through pyinfra's API, and ends with an honest exit code.

The `pyinfra` command ends with 0 when it was interrupted and when `--limit` matched nothing; it prints tracebacks; and
a Python error on one host stops all of them. Here each host ends as it ended, and the reason is said once.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

# First of all imports that touch sockets: it lets gevent replace the blocking calls of the standard library. Whatever
# was imported before keeps the blocking ones.
import boxwright.quick_start  # noqa: F401

# isort: split
import gevent
import pyinfra
from pyinfra.api import Config, Host, Inventory, State
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.operations import run_ops
from pyinfra.api.output import set_echo
from pyinfra.api.state import BaseStateCallback, StateStage
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state
from pyinfra_cli.exceptions import UnexpectedExternalError
from pyinfra_cli.util import exec_file

from boxwright import masking
from boxwright.connection import pyinfra_target
from boxwright.errors import BoxwrightError, Problem, Refused
from boxwright.output import Output, count, duration
from boxwright.paths import repository_root, state_dir
from boxwright.results import FailedStep, HostResult, RunResult, split_name
from boxwright.shell import PROGRESS

SHOWN_LINES = 20  # of a failed step's output
KEPT_LOGS = 20
TICK = 30.0  # seconds without a line after which a run off a terminal says that it is still at work


class Interrupted(SystemExit):
    """The person, or the system, wants us to stop now. `code` is 128 + the signal's number."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One host as pyinfra is given it: `address` is its name with the connector (`@boxwright/NAME`)."""

    name: str
    address: str
    data: Mapping[str, Any]
    groups: tuple[str, ...] = ()


def run(
    deploy: Path,
    *,
    inventory: Path | None = None,
    limit: str | None = None,
    dry: bool = False,
    data: Mapping[str, Any] | None = None,
    diff: bool = False,
    output: Output | None = None,
) -> RunResult:
    """Run the file `deploy` on the hosts of the inventory. With `dry` nothing is touched: only facts are read.

    `data` overrides host data, as pyinfra's `--data`. Raises Refused when the inventory is not fit to be used.
    """
    from boxwright.inventory import load, located

    hosts = load(inventory, limit=limit)
    problems: list[Problem] = []
    targets = []
    for host in hosts:
        try:
            address, connection_data = pyinfra_target(host.name, host.variables)
        except Refused as refused:
            problems += [located(problem, host.name, host.locate) for problem in refused.problems]
        else:
            targets.append(Target(host.name, address, {"box": host.box, **connection_data}, host.groups))
    if problems:
        raise Refused(dict.fromkeys(problems))
    return execute(deploy, targets, dry=dry, data=data, diff=diff, output=output)


def execute(
    deploy: Path,
    targets: Iterable[Target],
    *,
    dry: bool = False,
    data: Mapping[str, Any] | None = None,
    diff: bool = False,
    output: Output | None = None,
) -> RunResult:
    """Run `deploy` on `targets`. Never raises for what happens on a host: the result tells."""
    if not deploy.is_file():
        raise Refused(Problem(code="BW204", message=f"there is no file {deploy}"))
    return _Run(deploy, list(targets), dry, dict(data or {}), diff, output or Output()).go()


class _FailingCommand(PyinfraCommand):  # type: ignore[misc]  # pyinfra is not checked
    """Stands for the command that could not be made; makes its operation fail on this host only."""

    def execute(self, state: State, host: Host, connector_arguments: Any) -> bool:
        return False


class _Run(BaseStateCallback):  # type: ignore[misc]  # pyinfra is not checked
    """One run: pyinfra's state, what it told us, and what we tell the person."""

    def __init__(
        self, deploy: Path, targets: list[Target], dry: bool, data: dict[str, Any], diff: bool, output: Output
    ) -> None:
        self.deploy, self.dry, self.output = deploy, dry, output
        self.several = len(targets) > 1
        self.started = self.last_line = time.monotonic()
        shown = os.path.relpath(deploy)
        self.result = RunResult(
            str(deploy) if shown.startswith("..") else shown, dry, {t.name: HostResult(t.name) for t in targets}
        )
        self.log = _Log(deploy.stem)
        self.result.log = self.log.path
        # Per host: what runs now and since when; the role at work, since when, and its counts; the last lines it said.
        self.running: dict[str, tuple[str, float]] = {}
        # Per host: how far it is with that, where it says so.
        self.progress: dict[str, str] = {}
        self.roles: dict[str, tuple[str, float, int, int]] = {}
        self.tail: dict[str, collections.deque[str]] = {t.name: collections.deque(maxlen=50) for t in targets}
        self.raised: dict[str, Exception] = {}

        # Operations are put in order by the lines of the deploy they stand on, which pyinfra does for its command only.
        pyinfra.is_cli = True
        root = str(repository_root())
        if root not in sys.path:
            sys.path.insert(0, root)
        os.environ["PYINFRA_PROGRESS"] = "off"
        groups: dict[str, tuple[list[str], dict[str, Any]]] = {}
        for target in targets:
            for group in target.groups:
                groups.setdefault(group, ([], {}))[0].append(target.address)
        self.inventory = Inventory(([(t.address, dict(t.data)) for t in targets], {}), override_data=data, **groups)
        self.state = State(check_for_changes=dry)
        self.state.cwd = root
        # Commands and their output go to the log always, to the terminal as asked.
        self.state.print_input = self.state.print_output = True
        self.state.print_noop_info = self.state.print_fact_info = output.verbosity >= 1
        self.state.print_fact_input = output.verbosity >= 2
        self.state.print_fact_output = output.verbosity >= 3
        self.config = Config()
        self.config.DIFF = diff

    # The run

    def go(self) -> RunResult:
        with self._pyinfra_speaks_to_us(), _signals():
            # What a background job of pyinfra raises would go to the terminal as a traceback.
            gevent.get_hub().exception_stream = self.log
            ticker = gevent.spawn(self._tick)
            try:
                self._stages()
            except Interrupted as interrupted:
                self.result.interrupted = int(interrupted.code or 130)
                self._say_interrupted()
            finally:
                ticker.kill(block=False)
                self.output.clear()
                if not self.result.interrupted:
                    self._disconnect()
        self.result.seconds = time.monotonic() - self.started
        for host in self.inventory:
            commands = getattr(host.connector, "remote_commands", 0) if hasattr(host, "connector") else 0
            self.result.hosts[self._name(host)].remote_commands = commands
        return self.result

    def _stages(self) -> None:
        state = self.state
        ctx_state.set(state)
        ctx_config.set(self.config)
        ctx_inventory.set(self.inventory)
        state.init(self.inventory, self.config)
        self.config.lock_current_state()
        state.add_callback_handler(self)
        try:
            state.set_stage(StateStage.Connect)
            connect_all(state)
            state.set_stage(StateStage.Prepare)
            if not self._prepare():
                return
            if self.dry:
                self._count_planned()
                return
            self._guard()
            state.set_stage(StateStage.Execute)
            self.result.begun = True
            run_ops(state)
        except PyinfraError as error:
            # "No hosts remaining!" is raised when the last host failed, which has been told already.
            if not state.failed_hosts:
                self._unexpected(error)
        except Exception as error:
            self._unexpected(error)
        finally:
            if sys.exc_info()[0] is not Interrupted:
                self._settle()

    def _prepare(self) -> bool:
        """Read the deploy for each host. False when the run must not go on; then nothing was changed anywhere."""
        self.state.current_deploy_filename = str(self.deploy)

        def load(host: Host) -> Exception | None:
            try:
                with ctx_config.use(self.state.config.copy()), ctx_host.use(host):
                    self.running[self._name(host)] = ("reading what is there", time.monotonic())
                    exec_file(str(self.deploy))
            except Exception as error:
                return error
            finally:
                self.running.pop(self._name(host), None)
            return None

        jobs = {host: self.state.pool.spawn(load, host) for host in self.inventory.get_active_hosts()}
        raised = {host: error for host, job in jobs.items() if (error := job.get()) is not None}
        for host, error in raised.items():
            result = self.result.hosts[self._name(host)]
            refused = _cause(error)
            if isinstance(refused, BoxwrightError):
                result.status = "refused" if isinstance(refused, Refused) else "failed"
                result.problems.extend(refused.problems)
            elif host in self.state.failed_hosts:
                # A fact could not be read, which pyinfra's log said.
                self._failed_step(host, "reading what is there")
            else:
                self._unexpected(error, host)
        if raised:
            # Nothing was changed yet: a host that cannot be done is said before the others are begun.
            gone_on = {host for host in raised if host in self.state.failed_hosts}
            if set(raised) != gone_on:
                return False
        for host in list(self.state.failed_hosts):
            if self.result.hosts[self._name(host)].status == "unfinished":
                self._failed_step(host, "reading what is there")
        return bool(self.state.active_hosts)

    def _guard(self) -> None:
        """Let an exception in an operation fail that operation on that host, not the run on all hosts."""
        for host, operations in self.state.ops.items():
            for data in operations.values():
                data.command_generator = self._guarded(host, data.command_generator)

    def _guarded(self, host: Host, generator: Any) -> Any:
        def commands() -> Iterator[Any]:
            try:
                yield from generator()
            except Exception as error:
                self.raised[self._name(host)] = error
                yield _FailingCommand()

        return commands

    def _count_planned(self) -> None:
        for op_hash in self.state.get_op_order():
            for host in self.inventory.get_active_hosts():
                if (operation := self.state.ops[host].get(op_hash)) is None:
                    continue
                result = self.result.hosts[self._name(host)]
                if operation.operation_meta._maybe_is_change:
                    conditional = bool(operation.global_arguments["_if"])
                    (result.depends if conditional else result.changed).append(self._operation_name(op_hash))
                else:
                    result.unchanged += 1

    def _settle(self) -> None:
        """Say how each host ended that nothing was said of yet."""
        for host in self.inventory:
            name = self._name(host)
            result = self.result.hosts[name]
            self._end_role(name)
            operations = self.state.ops.get(host, {})
            if not self.dry:
                done = sum(data.operation_meta.is_complete() for data in operations.values())
                result.not_run = len(operations) - done
            if result.status == "unfinished" and host in self.state.active_hosts and not self.result.problems:
                result.status = "ok" if self.result.begun or self.dry else "unfinished"

    def _disconnect(self) -> None:
        with gevent.Timeout(5, False):
            try:
                disconnect_all(self.state)
            except Exception as error:  # the run is over; a connection that died is no news
                self.log.write(f"while disconnecting: {error!r}")

    # What pyinfra tells us

    def host_before_connect(self, state: State, host: Host) -> None:
        self.running[self._name(host)] = ("connecting", time.monotonic())

    def host_connect(self, state: State, host: Host) -> None:
        name = self._name(host)
        _, since = self.running.pop(name, ("", self.started))
        self._line(
            f"connected ({duration(time.monotonic() - since)})", host=name, at_verbosity=0 if self.several else 1
        )

    def host_connect_error(self, state: State, host: Host, error: Exception) -> None:
        name = self._name(host)
        self.running.pop(name, None)
        result = self.result.hosts[name]
        result.status = "unreachable"
        problem = getattr(error, "problem", None) or Problem(code="BW104", message=str(error), host=name)
        result.problems.append(problem)

    def operation_host_start(self, state: State, host: Host, op_hash: str) -> None:
        if op_hash not in state.ops[host] or state.ops[host][op_hash].parent_op_hash:
            return
        name = self._name(host)
        role, _ = split_name(self._operation_name(op_hash))
        if self.roles.get(name, ("",))[0] != role:
            self._end_role(name)
            self.roles[name] = (role, time.monotonic(), 0, 0)
        self.tail[name].clear()
        self.progress.pop(name, None)
        self.running[name] = (self._operation_name(op_hash), time.monotonic())

    def operation_host_error(
        self, state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        if not state.ops[host][op_hash].global_arguments["_ignore_errors"]:
            self._failed_step(host, self._operation_name(op_hash))

    def operation_end(self, state: State, op_hash: str) -> None:
        for host in self.inventory:
            name = self._name(host)
            data = state.ops[host].get(op_hash)
            if data is None or name not in self.running or not data.operation_meta.is_complete():
                continue
            operation, since = self.running.pop(name)
            result = self.result.hosts[name]
            result.seconds = time.monotonic() - self.started
            role, begun, changed, unchanged = self.roles[name]
            if not data.operation_meta.did_succeed():
                continue
            if data.operation_meta.did_change():
                result.changed.append(operation)
                changed += 1
                self._line(
                    f" {operation} ({duration(time.monotonic() - since)})", "changed", label="changed:", host=name
                )
            else:
                result.unchanged += 1
                unchanged += 1
                self._line(f"no change: {operation}", "faint", host=name, at_verbosity=1)
            self.roles[name] = (role, begun, changed, unchanged)

    def _failed_step(self, host: Host, operation: str) -> None:
        name = self._name(host)
        _, since = self.running.pop(name, ("", time.monotonic()))
        result = self.result.hosts[name]
        result.status = "failed"
        result.seconds = time.monotonic() - self.started
        role, step = split_name(operation)
        error = _cause(self.raised.pop(name, None))
        if isinstance(error, BoxwrightError):
            result.problems.extend(error.problems)
        elif isinstance(error, PyinfraError):
            self.tail[name].extend(str(error).splitlines())
        elif error is not None:
            self.tail[name].append(f"{type(error).__name__}: {error}")
            self.log.write("".join(traceback.format_exception(error)))
        lines = tuple(masking.mask(line) for line in list(self.tail[name])[-SHOWN_LINES:])
        result.failed = FailedStep(role, step, lines)
        self._line(f" {operation} ({duration(time.monotonic() - since)})", "bad", label="FAILED:", host=name)
        for line in lines:
            self._line(f"    | {line}", host=name)
        if not isinstance(error, BoxwrightError):
            result.problems.append(
                Problem(
                    code="BW201",
                    message=f"`{operation}` failed",
                    host=name,
                    help=f"everything that was said: {self.log.path}",
                )
            )

    def _unexpected(self, error: Exception, host: Host | None = None) -> None:
        """An exception that nothing foresaw: one line for the person, the traceback for the log."""
        cause = _cause(error)
        self.log.write("".join(traceback.format_exception(error)))
        if cause is not error and cause is not None:
            self.log.write("".join(traceback.format_exception(cause)))
        problem = Problem(
            code="BW202",
            message=masking.mask(f"{type(cause).__name__}: {cause}".splitlines()[0]) + _where(cause),
            host=self._name(host) if host else None,
            help=f"details: {self.log.path}",
        )
        if host:
            self.result.hosts[self._name(host)].status = "failed"
            self.result.hosts[self._name(host)].problems.append(problem)
        else:
            self.result.problems.append(problem)

    # What we tell the person

    def _line(
        self, text: str, style: str | None = None, *, label: str = "", host: str = "", at_verbosity: int = 0
    ) -> None:
        prefix = f"[{host}] " if self.several and host else ""
        self.log.write(f"{prefix}{label}{text}")
        if self.output.verbosity >= at_verbosity:
            self.last_line = time.monotonic()
            self.output.line(text if label else prefix + text, style, label=prefix + label if label else "")

    def _end_role(self, name: str) -> None:
        if (found := self.roles.pop(name, None)) is None:
            return
        role, begun, changed, unchanged = found
        failed = self.result.hosts[name].status == "failed"
        took = duration(time.monotonic() - begun)
        if failed:
            text = f"stopped ({took})"
        elif changed:
            text = f"{count(changed, 'change')}, {unchanged} unchanged ({took})"
        else:
            text = f"no change ({took})"
        self._line(f"{role or self.deploy.stem}: {text}", host=name)

    def _tick(self) -> None:
        """Show that something is going on: each second on a terminal, each TICK seconds of silence elsewhere."""
        while True:
            gevent.sleep(1)
            now = time.monotonic()
            parts = [
                f"{f'[{name}] ' if self.several else ''}{what} ({duration(now - since)}"
                f"{f', {self.progress[name]}' if name in self.progress else ''})"
                for name, (what, since) in self.running.items()
                if now - since >= 1
            ]
            if not parts:
                continue
            if self.output.live:
                self.output.passing(masking.mask("... " + "; ".join(parts)))
            elif now - self.last_line >= TICK:
                self.last_line = now
                self.output.line("still at work: " + "; ".join(parts))

    def _say_interrupted(self) -> None:
        self.output.clear()
        running = [
            f"{f'[{name}] ' if self.several else ''}{what} ({duration(time.monotonic() - since)})"
            for name, (what, since) in self.running.items()
        ]
        self._line("interrupted" + (f" during: {'; '.join(running)}" if running else ""), "bad")
        if not self.result.begun:
            self._line("nothing was changed")
        elif running:
            self._line("that command may go on on the box until it ends; nothing after it was begun")
            self._line("the same command again completes what was begun")

    def _name(self, host: Host) -> str:
        name: str = host.name
        return name if name in self.result.hosts else name.rpartition("/")[2]

    def _operation_name(self, op_hash: str) -> str:
        return ", ".join(sorted(self.state.op_meta[op_hash].names))

    @contextmanager
    def _pyinfra_speaks_to_us(self) -> Iterator[None]:
        """Route pyinfra's log and the output of commands to the log file, the tails and, as asked, the terminal."""
        logger: logging.Logger = pyinfra.logger
        handler = _Handler(self._heard)
        before = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        echo = pyinfra.api.output._echo
        set_echo(lambda message=None, **_: self._heard(logging.DEBUG, str(message)))
        try:
            yield
        finally:
            set_echo(echo)
            logger.removeHandler(handler)
            logger.level, logger.propagate = before
            self.log.close()

    def _heard(self, level: int, text: str) -> None:
        """One line of pyinfra: of its log (INFO and above), or a command or a line of output (DEBUG)."""
        host = next((name for name in self.tail if text.startswith((f"[{name}]", f"[@fake/{name}]"))), None)
        said = text.partition("]")[2].strip() if host else text
        if host and said.startswith(PROGRESS):
            self.progress[host] = said.removeprefix(PROGRESS)
            return
        self.log.write(text)
        if (
            host
            and (level == logging.DEBUG or level >= logging.ERROR)
            and not said.startswith((">>> ", "Error: executed "))
        ):
            self.tail[host].append(said)
        if level == logging.DEBUG:
            needed = 2 if said.startswith(">>> ") else 3
        elif level == logging.WARNING:
            needed = 0
        else:
            needed = 1
        if self.output.verbosity >= needed:
            self.last_line = time.monotonic()
            self.output.line(masking.mask(text if level != logging.WARNING else f"warning: {text}"))


def _cause(error: Exception | None) -> Exception | None:
    """The exception that a deploy file raised, without pyinfra's wrapping."""
    return error.exception if isinstance(error, UnexpectedExternalError) else error


def _where(error: BaseException | None) -> str:
    """` (roles/gateway/tasks.py:12)`: the innermost line of this repository in the exception's traceback."""
    root = str(repository_root())
    frames = traceback.extract_tb(error.__traceback__) if error else []
    for frame in reversed(frames):
        if frame.filename.startswith(root) and "site-packages" not in frame.filename:
            return f" ({os.path.relpath(frame.filename, root)}:{frame.lineno})"
    return ""


class _Handler(logging.Handler):
    def __init__(self, hear: Any) -> None:
        super().__init__()
        self.hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self.hear(record.levelno, record.getMessage())


class _Log:
    """Everything said in a run, without secrets: <state>/log/TIME-NAME.log, mode 0600; the last few are kept."""

    def __init__(self, name: str) -> None:
        folder = state_dir() / "log"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{name}-{os.getpid()}.log"
        self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8")
        for old in sorted(folder.glob("*.log"))[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        if not self._file.closed:
            self._file.write(f"{datetime.now():%H:%M:%S} {masking.mask(text)}\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM stop the run at once; a second one stops without another word."""

    def stop(number: int, frame: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, frame: os._exit(128 + number))
        raise Interrupted(128 + number)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
