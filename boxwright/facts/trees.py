"""Small folders of text files on the target, such as the program of a service."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script


@dataclass(frozen=True)
class TreeState:
    """`files` maps the name of each file, relative to the folder, to its SHA-256; `loose` says whether anybody but root
    could change something there, or something is neither file nor folder.
    """

    files: dict[str, str]
    loose: bool


class Tree(Fact[TreeState]):
    """The `TreeState` of the folder `path`; without files where there is none."""

    def command(self, path: str) -> StringCommand:
        text = """
            echo examined
            [ -d "$1" ] && [ ! -L "$1" ] || exit 0
            cd "$1" || exit 1
            # Names of ours have no blanks; one that has is cut in pieces, which are no files.
            set -f
            files=$(find . -type f) || exit 1
            [ -z "$files" ] || sha256 $files 2>/dev/null
            [ -z "$(find . \\( ! -user root -o -perm -020 -o -perm -002 -o ! \\( -type f -o -type d \\) \\))" ] \\
                || echo loose
            """
        return script(text, path)

    def process(self, output: Sequence[str]) -> TreeState:
        first, *rest = output
        if first != "examined":
            raise FactProcessError(f"not the state of a folder: {list(output)!r}")
        lines = [line for line in rest if line != "loose"]
        files = {name.removeprefix("./"): digest for digest, _, name in (line.partition("  ") for line in lines)}
        return TreeState(files, "loose" in rest)
