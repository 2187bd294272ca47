"""Changes that wait for their confirmation, and whether the program that undoes them is there."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.facts.files import STATE, FileState, parse_state
from boxwright.guard import BOOT_UNIT, BOOT_UNIT_PATH, FOLDER, PROGRAM_PATH
from boxwright.shell import script


class Armed(Fact[bool]):
    """Whether the change `change` waits for its confirmation, or for being undone."""

    def command(self, change: str) -> StringCommand:
        return script(f'if [ -e "{FOLDER}/$1/armed" ]; then echo yes; else echo no; fi', change)

    def process(self, output: Sequence[str]) -> bool:
        if list(output) not in (["yes"], ["no"]):
            raise FactProcessError(f"not whether a change is armed: {list(output)!r}")
        return output[0] == "yes"


@dataclass(frozen=True)
class GuardState:
    """The program, the unit that runs it at boot, whether that is enabled, and whether the folder of changes is there,
    with changes that are under way.
    """

    program: FileState
    unit: FileState
    enabled: bool
    folder: bool
    armed: tuple[str, ...]


class Guard(Fact[GuardState]):
    """The `GuardState` of the box."""

    def command(self) -> StringCommand:
        text = f"""
            describe {PROGRAM_PATH} && describe {BOOT_UNIT_PATH} || exit 1
            systemctl is-enabled --quiet {BOOT_UNIT}.service 2>/dev/null && echo enabled=yes
            if [ -d {FOLDER} ]; then echo folder=yes; fi
            for path in {FOLDER}/*/armed; do
                if [ -e "$path" ]; then echo "armed=$(basename "$(dirname "$path")")"; fi
            done
            """
        return script(STATE + text)

    def process(self, output: Sequence[str]) -> GuardState:
        if len(output) < 2:
            raise FactProcessError(f"not the state of the guard: {list(output)!r}")
        pairs = [line.partition("=")[::2] for line in output[2:]]
        return GuardState(
            program=parse_state(output[0]),
            unit=parse_state(output[1]),
            enabled=("enabled", "yes") in pairs,
            folder=("folder", "yes") in pairs,
            armed=tuple(value for key, value in pairs if key == "armed"),
        )
