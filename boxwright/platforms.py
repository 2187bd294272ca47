"""On which kind of system an operation or a fact is about to run: Linux or macOS."""

from collections.abc import Sequence

from pyinfra import host
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.settings import System as System
from boxwright.shell import script


class Kernel(Fact[System]):
    """The `System` that the host says it runs; asked only where no box tells it."""

    def command(self) -> StringCommand:
        return script("uname -s")

    def process(self, output: Sequence[str]) -> System:
        known: dict[str, System] = {"Linux": "linux", "Darwin": "darwin"}
        if len(output) != 1 or output[0] not in known:
            raise FactProcessError(f"neither Linux nor macOS: {list(output)!r}")
        return known[output[0]]


def system() -> System:
    """The system of the host at hand, inside an operation: by its inventory, or, in a project of another's making where
    hosts have no `box`, by a question to it.
    """
    box = host.data.get("box")
    if box is not None:
        declared: System = box.system
        return declared
    found: System | None = host.get_fact(Kernel)
    return found or "linux"


def group(name: str) -> str:
    """The group that operations are given by `name`, as the host at hand calls it: that of root is `root` on Linux and
    `wheel` on a Mac, which has no group `root`. Every other is called what it is called.
    """
    return "wheel" if name == "root" and system() == "darwin" else name
