"""What is checked on the box itself before anything is changed there: operating system, memory, disk, ports.

One fact asks everything in one command; `examine` is pure and tells what is wrong.
"""

from dataclasses import replace
from typing import Any

from pyinfra import host
from pyinfra.api.exceptions import PyinfraError

from boxwright.errors import Refused
from boxwright.facts.containers import ContainerRuntimes
from boxwright.preflight.machine import Machine, MachineFact, parse
from boxwright.preflight.needs import ARCHITECTURES, SUPPORTED, Need, examine

__all__ = [
    "ARCHITECTURES",
    "SUPPORTED",
    "Machine",
    "MachineFact",
    "Need",
    "PreflightRefused",
    "check",
    "examine",
    "parse",
]


class PreflightRefused(Refused, PyinfraError):  # type: ignore[misc]  # pyinfra is not checked
    """The box itself is not fit for what was asked; nothing was changed. Also a pyinfra error, so that `pyinfra`
    prints no traceback.
    """


def check(box: Any, need: Need) -> Machine:
    """Reads the machine and raises PreflightRefused with every problem, so that nothing is changed on a box that is
    not fit.
    """
    machine: Machine = host.get_fact(MachineFact, files=(*need.downloads, *need.files))
    if need.container_socket is not None and machine.kernel == "Darwin":
        found = host.get_fact(ContainerRuntimes, asked=need.container_socket)
        machine = replace(machine, container_runtimes=found or ())
    problems = examine(machine, need, box.system)
    if problems:
        raise PreflightRefused(replace(problem, host=box.name) for problem in problems)
    return machine
