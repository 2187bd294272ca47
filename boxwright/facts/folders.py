"""Whose a folder is, with everything in it."""

from collections.abc import Sequence

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script


class Belongs(Fact[str]):
    """Whether the folder `path` and all in it belong to the account `user` and its group `group`, with mode 0700
    outside: yes, no, or absent.
    """

    def command(self, path: str, user: str, group: str) -> StringCommand:
        text = """
            if [ ! -d "$1" ]; then echo absent
            elif ! id -u -- "$2" >/dev/null 2>&1; then echo no
            elif [ "$(details %a %Lp "$1")" != 700 ]; then echo no
            elif [ -n "$(find "$1" '(' ! -user "$2" -o ! -group "$3" ')' -print | head -n 1)" ]; then echo no
            else echo yes
            fi
            """
        return script(text, path, user, group)

    def process(self, output: Sequence[str]) -> str:
        (answer,) = output
        if answer not in ("absent", "no", "yes"):
            raise FactProcessError(f"not an answer: {answer!r}")
        return answer
