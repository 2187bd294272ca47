"""Folders of a service whose account may come and go while what is in them stays."""

from collections.abc import Sequence

from pyinfra import host
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script


class Belongs(Fact[str]):
    """Whether the folder `path` and all in it belong to the account `user` and its group, with mode 0700 outside."""

    def command(self, path: str, user: str) -> StringCommand:
        text = """
            if [ ! -d "$1" ]; then echo absent
            elif ! id -u -- "$2" >/dev/null 2>&1; then echo no
            elif [ "$(stat -c %a -- "$1")" != 700 ]; then echo no
            elif [ -n "$(find "$1" '(' ! -user "$2" -o ! -group "$2" ')' -print -quit)" ]; then echo no
            else echo yes
            fi
            """
        return script(text, path, user)

    def process(self, output: Sequence[str]) -> str:
        (answer,) = output
        if answer not in ("absent", "no", "yes"):
            raise FactProcessError(f"not an answer: {answer!r}")
        return answer


@operation()
def belongs_to(path: str, user: str, make: bool = True) -> Commands:
    """The folder `path` and everything in it belong to `user` and the group of that name; nobody else may look into it.

    With `make` it is made when it is missing. The number of an account that was removed is given to the next one: what
    is kept must be handed to root before, and back to the account when there is one again.
    """
    found = host.get_fact(Belongs, path=path, user=user)
    if found is None:
        yield refuse(f"{path} could not be examined")
    elif found == "no" or (found == "absent" and make):
        text = """
            umask 077
            [ -d "$1" ] || mkdir -- "$1" || exit 1
            chmod 0700 -- "$1" && chown -R -- "$2:$2" "$1"
            """
        yield script(text, path, user)
