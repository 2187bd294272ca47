"""Changes that could cut the operator off: put in force, confirmed over a new connection, or undone by the box itself.

`guarded` is a part of other operations; see boxwright/guard.py for what happens on the box.
"""

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import gevent
from pyinfra import host
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import PyinfraError

from boxwright.errors import Failed, Problem
from boxwright.facts.guard import Armed, Guard
from boxwright.guard import BOOT_UNIT, BOOT_UNIT_PATH, BOOT_UNIT_TEXT, DEADLINE, FOLDER, PROGRAM, PROGRAM_PATH, Change
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import write
from boxwright.shell import refuse, script

# What is left of the deadline is given to no further try: a confirmation that comes too late would be none.
_MARGIN = 2.0
# Seconds after the deadline in which the box must have taken the change back: the timer's accuracy, and the work.
_TAKEN_BACK = 15.0


class NotConfirmed(Failed, PyinfraError):  # type: ignore[misc]  # pyinfra is not checked
    """A change was not confirmed over a new connection; the box takes it back. Also a pyinfra error, so that `pyinfra`
    prints no traceback.
    """


class Confirm(PyinfraCommand):  # type: ignore[misc]  # pyinfra is not checked
    """Confirms the change `change` over a new connection; `problem` says why that could not be done.

    The connector's `anew` makes the connection; one that has none (pyinfra's own connectors) cannot confirm.
    """

    def __init__(self, change: str, token: str, deadline: float) -> None:
        super().__init__()
        self.change, self.token, self.deadline = change, token, deadline
        self.problem: Problem | None = None

    def __repr__(self) -> str:
        return f"Confirm({self.change})"

    def execute(self, state: Any, host: Any, connector_arguments: Any) -> bool:
        """Try until it is confirmed or too late. True in any case: whoever yielded it looks at `problem`."""
        until = time.monotonic() + self.deadline
        said = self._try(host, connector_arguments, until - _MARGIN, "confirm", self.change, self.token)
        if not said:
            return True
        # Out of our hands now; what is left to do is to tell how it ended.
        back = self._try(host, connector_arguments, until + _TAKEN_BACK, "wait", self.change)
        if back:
            end = f"the box cannot be reached now either ({back})"
            help_text = "it takes the change back by itself; if it stays away, sign in at its console: docs/firewall.md"
            code = "BW141"
        else:
            end = "the box has put its former state back"
            help_text = "correct what was changed, or what keeps a new connection from the box, and run it again"
            code = "BW140"
        self.problem = Problem(
            code=code,
            host=host.name,
            message=f"the change of {self.change} was not confirmed by a new connection ({said}): {end}",
            help=help_text,
        )
        return True

    @staticmethod
    def _try(host: Any, arguments: Any, until: float, *call: str) -> str:
        """Calls the guard over a new connection, again and again until it worked; empty then, else what went wrong."""
        connector = host.connector
        anew: Callable[[float], Any] | None = getattr(connector, "anew", None)
        if anew is None:
            return f"{type(connector).__name__} makes no second connection: use @boxwright"
        said = "no answer in time"
        while (left := until - time.monotonic()) > 0:
            try:
                with gevent.Timeout(left, TimeoutError("no answer in time")):
                    other = anew(left)
                    try:
                        ran, output = other.run_shell_command(
                            script('exec "$@"', PROGRAM_PATH, *call), print_output=False, print_input=False, **arguments
                        )
                    finally:
                        other.leave()
                    connector.remote_commands += other.remote_commands
                if ran:
                    return ""
                # The box was reached and says no: another try changes nothing.
                return str((output.stderr_lines or ["it said nothing"])[-1]).strip()
            except (PyinfraError, OSError, EOFError) as error:
                said = str(error).splitlines()[0] if str(error) else type(error).__name__
            gevent.sleep(min(1.0, max(0.0, until - time.monotonic())))
        return said


def settled(change: str) -> Commands:
    """Waits until no change of that name is under way, by another run or by one that was killed. Facts that are asked
    afterwards are those of the state that stays.
    """
    armed = host.get_fact(Armed, change=change)
    if armed is None:
        yield refuse(f"it could not be found out whether a change of {change} is under way")
    elif armed:
        yield script('exec "$1" wait "$2"', PROGRAM_PATH, change)


def guarded(change: Change, deadline: int = DEADLINE) -> Commands:
    """Puts `change` in force, and raises NotConfirmed unless a new connection confirms it within `deadline` seconds.

    Files that do not pass their validation leave everything as it was. Begin with `settled`, and have `ready` before.
    """
    token = uuid4().hex
    folder = f"{FOLDER}/{change.name}/prepared-{token}"
    # What runs have left that were killed goes; a younger one may belong to a run that is under way.
    text = """
        umask 077
        mkdir -p -- "$1" || exit 1
        find "${1%/*}" -mindepth 1 -maxdepth 1 -name 'prepared-*' -mmin +10 -exec rm -rf {} +
        """
    yield script(text, folder)
    listed = []
    for number, (path, new) in enumerate(change.files.items()):
        listed.append(f"{number} {path}\n")
        if new is not None:
            yield write(f"{folder}/new.{number}", new.text, new.owner, new.mode, new.validate)
    parts = {"save": change.save, "force": change.force, "restore": change.restore, "after": change.after}
    for name, text in {"files": "".join(listed), **parts}.items():
        yield write(f"{folder}/{name}", text if not text or text.endswith("\n") else text + "\n", "root:root", 0o600)
    confirm = Confirm(change.name, token, deadline)
    yield script('exec "$1" put "$2" "$3" "$4"', PROGRAM_PATH, change.name, token, deadline)
    yield confirm
    if confirm.problem is not None:
        raise NotConfirmed(confirm.problem)


@operation()
def ready() -> Commands:
    """The box can undo a change by itself: the program for it is there, and is run at each boot."""
    found = host.get_fact(Guard)
    if found is None:
        yield refuse("it could not be found out whether the box can undo a change")
        return
    wrote = False
    for path, text, mode, there in (
        (PROGRAM_PATH, PROGRAM, 0o755, found.program),
        (BOOT_UNIT_PATH, BOOT_UNIT_TEXT, 0o644, found.unit),
    ):
        if not (there.holds(text) and there.is_roots(mode)):
            yield script('umask 022; mkdir -p -- "$(dirname -- "$1")"', path)
            yield write(path, text, "root:root", mode)
            wrote = True
    if not found.folder:
        yield script('umask 022; mkdir -p -- "$(dirname -- "$1")" && mkdir -m 0700 -- "$1"', FOLDER)
    if wrote or not found.enabled:
        yield script('systemctl daemon-reload && systemctl enable --quiet -- "$1"', f"{BOOT_UNIT}.service")


@operation()
def absent() -> Commands:
    """Nothing of the guard is left; a change that waits for its confirmation is waited for."""
    found = host.get_fact(Guard)
    if found is None:
        yield refuse("it could not be found out whether the box can undo a change")
        return
    for change in found.armed:
        yield script('exec "$1" wait "$2"', PROGRAM_PATH, change)
    if found.enabled or found.unit.kind != "absent":
        text = """
            systemctl disable --quiet -- "$1" 2>/dev/null
            rm -f -- "$2" && systemctl daemon-reload
            """
        yield script(text, f"{BOOT_UNIT}.service", BOOT_UNIT_PATH)
    if found.program.kind != "absent" or found.folder:
        yield script(
            'rm -rf -- "$2" && rm -f -- "$1"; rmdir -- "$(dirname -- "$1")" 2>/dev/null; [ ! -e "$1" ]',
            PROGRAM_PATH,
            FOLDER,
        )
