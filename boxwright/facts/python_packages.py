"""Virtual environments on the target."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script

# Written last into an environment, with the version of Python it was made for and the digest of its requirements: one
# without it is half made.
MARKER = ".boxwright-complete"

# `python_version` prints major and minor version of the interpreter $1: an environment works with these, whatever the
# patch release. `has_python` says whether there is one: /usr/bin/python3 of a Mac without the command line tools only
# opens a window that offers to install them.
PYTHON_VERSION = """
python_version() { "$1" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
has_python() {
    command -v "$1" >/dev/null || return 1
    [ "$1" != /usr/bin/python3 ] || [ ! -d /System/Library ] || xcode-select -p >/dev/null 2>&1
}
"""


@dataclass(frozen=True)
class Environment:
    """`python` is the version of the interpreter asked for; `made_for` what a complete environment was made for.

    Both are empty where there is none; `made_for` is the version of Python and the digest of the requirements.
    """

    python: str
    made_for: str


class VirtualEnvironment(Fact[Environment]):
    """The `Environment` at `path` for the interpreter `python`."""

    def command(self, path: str, python: str) -> StringCommand:
        text = """
            version=
            if has_python "$2"; then version=$(python_version "$2") || exit 1; fi
            echo "python=$version"
            if [ -x "$1/bin/python" ] && [ -e "$1/$3" ]; then echo "made_for=$(cat -- "$1/$3")"; fi
            """
        return script(PYTHON_VERSION + text, path, python, MARKER)

    def process(self, output: Sequence[str]) -> Environment:
        values = dict(line.partition("=")[::2] for line in output)
        if "python" not in values or not values.keys() <= {"python", "made_for"}:
            raise FactProcessError(f"not the state of a virtual environment: {list(output)!r}")
        return Environment(values["python"], values.get("made_for", ""))
