"""Folders of a service whose account may come and go while what is in them stays."""

from pyinfra import host

from boxwright import platforms
from boxwright.facts.folders import Belongs
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script


@operation()
def belongs_to(path: str, user: str, make: bool = True) -> Commands:
    """The folder `path` and everything in it belong to `user` and its own group; nobody else may look into it.

    With `make` it is made when it is missing. The number of an account that was removed is given to the next one: what
    is kept must be handed to root before, and back to the account when there is one again.
    """
    group = platforms.group(user)
    found = host.get_fact(Belongs, path=path, user=user, group=group)
    if found is None:
        yield refuse(f"{path} could not be examined")
    elif found == "no" or (found == "absent" and make):
        text = """
            umask 077
            [ -d "$1" ] || mkdir -- "$1" || exit 1
            # No `--` behind the mode: to a Mac's chmod that would be a file.
            chmod 0700 "$1" && chown -R "$2:$3" "$1"
            """
        yield script(text, path, user, group)
