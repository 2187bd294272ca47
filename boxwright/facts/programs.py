"""Whether a program that one tool has put somewhere, and root's copy of it, are the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script


@dataclass(frozen=True)
class Copy:
    """The SHA-256 of a program and of its copy, empty where there is none; whether the copy is root's, mode 0755."""

    source: str
    copy: str
    owned: bool


class ProgramCopy(Fact[Copy]):
    """The `Copy` at `path` of the program `source`."""

    def command(self, source: str, path: str) -> StringCommand:
        text = """
            digest() { if [ -f "$1" ]; then sum=$(sha256 <"$1") || exit 1; echo "${sum%% *}"; fi; }
            echo "source=$(digest "$1")"
            echo "copy=$(digest "$2")"
            if [ -f "$2" ]; then echo "owned=$(details '%u %a' '%u %Lp' "$2")"; fi
            """
        return script(text, source, path)

    def process(self, output: Sequence[str]) -> Copy:
        values = dict(line.partition("=")[::2] for line in output)
        if not {"source", "copy"} <= set(values):
            raise FactProcessError(f"not what is known of a program: {list(output)!r}")
        return Copy(values["source"], values["copy"], values.get("owned") == "0 755")
