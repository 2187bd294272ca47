"""Runs operations through pyinfra itself, facts and all: on this machine, or on a host that a test makes up.

Nothing of pyinfra is replaced but the connector, so the real fact commands, parsers and operations are what is tested.
"""

import io
import logging
import shlex
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pyinfra
from pyinfra.api import Config, Inventory, State, StringCommand
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.operations import run_ops
from pyinfra.api.output import set_echo
from pyinfra.api.state import StateStage
from pyinfra.connectors.local import LocalConnector
from pyinfra.connectors.util import CommandOutput, OutputLine
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state

# A made-up host: is given the script (or command) and its arguments, answers with success and lines of output.
Answer = Callable[["Asked"], tuple[bool, list[str]]]


@dataclass(frozen=True)
class Asked:
    """A command that reached the host: the script for sh, its arguments, and what came on standard input."""

    text: str
    arguments: tuple[str, ...]
    stdin: str


@dataclass
class Result:
    """What became of the operations of one run, in their order."""

    changed: list[bool] = field(default_factory=list)
    ok: bool = True
    asked: list[Asked] = field(default_factory=list)
    printed: str = ""


def asked_of(command: StringCommand, stdin: object) -> Asked:
    """What `command` asks of the host."""
    text = "".join(stdin) if isinstance(stdin, (list, tuple)) else ""
    bits = [getattr(bit, "obj", bit) for bit in command.bits]
    if bits[:2] == ["sh", "-c"]:
        return Asked(str(bits[2]), tuple(str(bit) for bit in bits[4:]), text)
    return Asked(command.get_raw_value(), (), text)


def run(
    deploy: Callable[[], object],
    answer: Answer | None = None,
    *,
    dry: bool = False,
    diff: bool = False,
    verbosity: int = 0,
    reached: bool = True,
    system: str | None = "linux",
) -> Result:
    """Run the operations that `deploy` calls on this machine, or on the host that `answer` makes up. With `reached`
    false nobody gets a new connection to it. `system` is what the inventory says that it runs, None
    when it says nothing, as that of another project.

    With `verbosity` 2 or 3 pyinfra prints as with -vv or -vvv; what it prints is in the result.
    """
    result = Result()

    class Connector(LocalConnector):
        remote_commands = 0

        def anew(self, seconds: float) -> LocalConnector:
            if not reached:
                raise OSError("nobody is let in")
            return self

        def leave(self) -> None: ...

        def run_shell_command(
            self, command: StringCommand, print_output: bool = False, print_input: bool = False, **arguments: object
        ) -> tuple[bool, CommandOutput]:
            if isinstance(command, str):
                command = StringCommand(command)
            asked = asked_of(command, arguments.get("_stdin"))
            if environment := arguments.get("_env"):
                exports = "".join(f"export {shlex.quote(f'{key}={value}')}\n" for key, value in environment.items())
                asked = replace(asked, text=exports + asked.text)
            result.asked.append(asked)
            if answer is None:
                return super().run_shell_command(
                    command, print_output=print_output, print_input=print_input, **arguments
                )
            if print_input:
                printed.write(f">>> {command}\n")
            ok, lines = answer(asked)
            if print_output:
                printed.writelines(f"{line}\n" for line in lines)
            return ok, CommandOutput([OutputLine("stdout" if ok else "stderr", line) for line in lines])

    data = {"box": SimpleNamespace(system=system)} if system else {}
    inventory = Inventory(([("@local", data)], {}))
    config = Config()
    config.DIFF = diff
    state = State(inventory, config, check_for_changes=dry)
    state.print_input = state.print_fact_input = verbosity >= 2
    state.print_output = state.print_fact_output = verbosity >= 3
    host = inventory.get_host("@local")
    host.connector = Connector(state, host)
    printed = io.StringIO()
    handler = logging.StreamHandler(printed)
    logger = logging.getLogger("pyinfra")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    was_cli, pyinfra.is_cli = pyinfra.is_cli, False
    set_echo(lambda message=None, **options: printed.write(f"{message}\n"))
    try:
        with (
            redirect_stdout(printed),
            redirect_stderr(printed),
            ctx_state.use(state),
            ctx_inventory.use(inventory),
            ctx_config.use(config),
        ):
            state.set_stage(StateStage.Connect)
            connect_all(state)
            state.set_stage(StateStage.Prepare)
            with ctx_host.use(host):
                deploy()
            if not dry:
                state.set_stage(StateStage.Execute)
                try:
                    run_ops(state)
                except PyinfraError:
                    result.ok = False
            for op in state.get_op_order():
                meta = state.ops[host][op].operation_meta
                if dry:
                    result.changed.append(bool(meta._maybe_is_change))
                elif meta.is_complete():
                    result.changed.append(meta.did_change())
            result.ok = result.ok and not state.failed_hosts
            disconnect_all(state)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        pyinfra.is_cli = was_cli
        set_echo(lambda message=None, **options: None)
    result.printed = printed.getvalue()
    return result
