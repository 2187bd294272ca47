"""Programs of others on a Mac that hold an engine's port: each is named, with the way to end it for good.

There is exactly one listener for each port. Ollama and LM Studio as their publishers have them are programs of whoever
sits before the screen; they start at the login, and have the names that ours have.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from boxwright.errors import Problem
from boxwright.facts.listeners import Listener, Listeners
from boxwright.systems import account

if TYPE_CHECKING:
    from boxwright.preflight import Machine

# The engines that a Mac has.
ENGINES = ("llamacpp", "ollama", "mlx", "lmstudio")

# Part of a program's path, what that is, and how it ends for good; the first that fits.
_KNOWN = (
    (
        "/Ollama.app/",
        "Ollama.app",
        "quit it in the menu bar and take it out of System Settings > General > Login Items",
    ),
    (
        "/LM Studio.app/",
        "LM Studio's own server",
        "stop it in LM Studio (Developer), switch off there that it runs at the login, and quit LM Studio",
    ),
    ("llmster", "LM Studio's daemon", "as {account}: `lms daemon down`"),
    (
        "/opt/homebrew/",
        "a program of Homebrew",
        "as {account}: `brew services list` shows it, and `brew services stop NAME` ends it",
    ),
)


def problem(listener: Listener, variable: str) -> Problem:
    """What is in the way on the port that `variable` sets, and the way out."""
    known = [(name, way) for part, name, way in _KNOWN if part in listener.program]
    name, way = known[0] if known else ("another program", "end it, and what starts it")
    way = way.format(account=listener.account)
    return Problem(
        code="BW113",
        variable=variable,
        message=f"TCP port {listener.port} of the box is taken by {name}: process {listener.process} of "
        f"{listener.account}, {listener.program}",
        help=f"{way}; or set `{variable}` to another port",
    )


def condition(
    ports: Mapping[int, str], ask: Callable[[tuple[int, ...]], Iterable[Listener]] | None = None
) -> Callable[["Machine"], Iterable[Problem]]:
    """A condition of the preflight: on `ports`, each with the variable that sets it, nobody listens but our engines."""
    ours = {"", *(account("darwin", engine) for engine in ENGINES)}

    def asked(wanted: tuple[int, ...]) -> Iterable[Listener]:
        from pyinfra import host  # here: only a run has a host

        return host.get_fact(Listeners, ports=wanted) or ()

    def free(machine: "Machine") -> Iterable[Problem]:
        for listener in (ask or asked)(tuple(ports)):
            if listener.account not in ours:
                yield problem(listener, ports[listener.port])

    return free
