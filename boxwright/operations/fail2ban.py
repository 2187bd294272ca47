"""Jails of Fail2Ban: watched, or gone with their bans. The files of a jail are written by `files.content`."""

from collections.abc import Sequence

from pyinfra import host

from boxwright.facts.fail2ban import Jail
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script

# The bans end first: stopped with bans, the jail would take them up again when there is one of its name.
_STOP = """
for address in $(fail2ban-client get "$1" banip); do
    fail2ban-client set "$1" unbanip "$address" >/dev/null || exit 1
done
fail2ban-client stop "$1" >&2
"""


@operation()
def jail(jail: str, path: str) -> Commands:
    """Fail2Ban, where it runs, watches the jail `jail` of the file `path`, also after somebody stopped it; whom it has
    banned is in the packet filter, also after somebody emptied that. The jail's action must be fail2ban's nftables.
    """
    found = host.get_fact(Jail, jail=jail, paths=(path,))
    if found is None:
        yield refuse(f"the jail {jail} of Fail2Ban could not be examined")
    elif found.server and not found.live and found.files:
        # Bans and the other jails stay as they are; to reload this jail alone it would have to be there.
        yield script("fail2ban-client reload >&2")
    elif found.live and not found.in_force:
        yield script('fail2ban-client reload --restart "$1" >&2', jail)


@operation()
def jail_absent(jail: str, paths: Sequence[str]) -> Commands:
    """Fail2Ban does not watch `jail`, its bans have ended, and its files `paths` are gone. Other jails go on."""
    found = host.get_fact(Jail, jail=jail, paths=tuple(paths))
    if found is None:
        yield refuse(f"the jail {jail} of Fail2Ban could not be examined")
        return
    if found.live:
        yield script(_STOP, jail)
    if found.files:
        yield script('rm -f -- "$@"', *found.files)
