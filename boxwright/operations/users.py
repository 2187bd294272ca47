"""Accounts: those that services run as, and those of people."""

import re
from collections.abc import Sequence
from typing import Literal, Protocol

from pyinfra import host
from pyinfra.api.exceptions import OperationValueError

from boxwright import directory_service, platforms
from boxwright.facts.accounts import Accounts, AccountState
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import write
from boxwright.platforms import System
from boxwright.shell import portable, refuse, script

# A service's account: where it is at home unless that is given, and what it has in place of a shell.
NO_HOME: dict[System, str] = {"linux": "/nonexistent", "darwin": directory_service.NO_HOME}
NOLOGIN: dict[System, str] = {"linux": "/usr/sbin/nologin", "darwin": directory_service.NO_SHELL}

# Numbers of accounts on a Mac: Apple's own are below 300, and what is below 500 is not shown; people's begin with 501.
SERVICES, PEOPLE = (300, 399), (501, 9999)

# Files with sudo rights: this and the account's name. A Mac's /etc is a link to /private/etc.
SUDOERS = "/etc/sudoers.d/boxwright-"

_BEGIN, _END = "# BEGIN keys of boxwright", "# END keys of boxwright"


class Account(Protocol):
    """A person's account; any object with these attributes will do."""

    @property
    def name(self) -> str:
        """Account name."""

    @property
    def groups(self) -> Sequence[str]:
        """Further groups; the account stays in any others it is in."""

    @property
    def ssh_keys(self) -> Sequence[str]:
        """Public keys, one authorized_keys line each; keys that others put there stay."""

    @property
    def sudo(self) -> Literal["none", "password", "passwordless"]:
        """What the account may do with sudo."""


def _checked(name: str) -> str:
    # Dots are left out on purpose: sudo ignores files whose name has one.
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", name):
        raise OperationValueError(f"not the name of an account: {name!r}")
    return name


@operation()
def system_user(user: str, home: str = "", groups: Sequence[str] = ()) -> Commands:
    """The account `user` exists for a service: without password and login shell, in a group of its own.

    `home` is its home folder, which is not made; without one it has none. `groups` are further groups, which must
    exist; it stays in any others. On a Mac such accounts are hidden, and their names begin with `_`.
    """
    system = platforms.system()
    if system == "darwin" and not user.startswith("_"):
        raise OperationValueError(f"not the name of a service's account on a Mac, which begins with `_`: {user!r}")
    found = host.get_fact(Accounts, names=(_checked(user),), system=system)
    if found is None:
        yield refuse(f"the account {user} could not be examined")
        return
    there = found.get(user)
    home, shell = home or NO_HOME[system], NOLOGIN[system]
    if system == "darwin":
        if there is None or (there.home, there.shell, there.group, there.hidden) != (home, shell, user, True):
            yield script(directory_service.CREATE, user, home, shell, "", *SERVICES, "1")
    elif there is None:
        yield script(
            'useradd --system --user-group --no-create-home --home-dir "$2" --shell "$3" -- "$1"', user, home, shell
        )
    elif (there.home, there.shell) != (home, shell):
        yield script('usermod --home "$2" --shell "$3" -- "$1"', user, home, shell)
    yield from _groups(user, there, groups, system)


@operation()
def user_absent(user: str, home: bool = False) -> Commands:
    """There is no account `user`, and no sudo rights of it. Its home folder goes only with `home`."""
    system = platforms.system()
    found = host.get_fact(Accounts, names=(_checked(user),), system=system)
    if found is None:
        yield refuse(f"the account {user} could not be examined")
    elif user in found and system == "darwin":
        groups = sorted(found[user].groups - {found[user].group})
        yield script(directory_service.DELETE, user, SUDOERS, "1" if home else "", *groups)
    elif user in found:
        yield script('rm -f -- "$3$1" || exit 1; userdel $2 -- "$1"', user, "--remove" if home else "", SUDOERS)


@operation()
def group_members(group: str, users: Sequence[str]) -> Commands:
    """The accounts `users` are in `group`, which must exist; other members stay."""
    if not users:
        return
    system = platforms.system()
    found = host.get_fact(Accounts, names=tuple(_checked(name) for name in users), system=system)
    if found is None:
        yield refuse(f"the members of {group} could not be examined")
        return
    for name in users:
        yield from _groups(name, found.get(name), (group,), system)


@operation()
def users(accounts: Sequence[Account]) -> Commands:
    """People's accounts exist with their groups, SSH keys and sudo rights.

    A new account has a home folder, a shell and no password, so it signs in by key. Keys and rights that are taken out
    of the description go; an account that is taken out stays (see `user_absent`). Keys are written as the account
    itself, so that a link in its home leads nowhere the account could not go.
    """
    names = tuple(_checked(account.name) for account in accounts)
    if not names:
        return
    system = platforms.system()
    found = host.get_fact(Accounts, names=names, sudoers=SUDOERS, system=system)
    if found is None:
        yield refuse(f"the accounts {', '.join(names)} could not be examined")
        return
    for account in accounts:
        there = found.get(account.name)
        if system == "darwin":
            yield from _person_on_a_mac(account, there)
        elif there is None:
            yield script('useradd --create-home --user-group --shell /bin/bash -- "$1"', account.name)
        yield from _groups(account.name, there, account.groups, system)
        yield from _keys(account, there, system)
        yield from _sudo(account, there)


def _person_on_a_mac(account: Account, there: AccountState | None) -> Commands:
    # The staff is the primary group of people there. With dscl and not with sysadminctl, which says nothing of what an
    # account without a password is left with.
    if there is None or there.uid < 0:
        home = f"/Users/{account.name}"
        yield script(directory_service.CREATE, account.name, home, "/bin/zsh", "staff", *PEOPLE, "")
        yield script(directory_service.HOME_OF + directory_service.MAKE_HOME, account.name)
    if account.ssh_keys and (there is None or there.uid < 0 or not there.let_in):
        yield script(directory_service.LET_IN, account.name)


def _groups(name: str, there: AccountState | None, groups: Sequence[str], system: System) -> Commands:
    missing = [group for group in groups if there is None or group not in there.groups]
    if missing and system == "darwin":
        yield script(directory_service.JOIN, name, *missing)
    elif missing:
        yield script('usermod --append --groups "$2" -- "$1"', name, ",".join(missing))


def authorized_keys(lines: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    """The lines of an authorized_keys file with `keys` in a marked block at its end; lines outside of it stay."""
    rest = []
    inside = False
    for line in lines:
        if line == _BEGIN:
            inside = True
        elif line == _END:
            inside = False
        elif not inside:
            rest.append(line)
    while rest and not rest[-1].strip():
        rest.pop()
    return (*rest, _BEGIN, *keys, _END) if keys else tuple(rest)


_HOME_OF: dict[System, str] = {
    "linux": 'home_of() { getent passwd "$1" | cut -d : -f 6; }',
    "darwin": directory_service.HOME_OF,
}

# $1 account, $2 number of bytes on standard input, $3 what is run as the account, with that number as $1: the file is
# written as the account, so that no link in its home leads anywhere it could not go itself. A run killed while the
# account was made may have left it without a home.
_WRITE_KEYS = """
home=$(home_of "$1")
[ -d "$home" ] || install -d -m 0700 -o "$1" -g "$(id -gn -- "$1")" -- "$home" || exit 1
as_user "$1" sh -c "$3" keys "$2" || { echo "the SSH keys of $1 could not be written" >&2; exit 1; }
"""
_AS_THE_ACCOUNT = """
umask 077
cd || exit 1
mkdir -p .ssh && chmod 0700 .ssh || exit 1
new=$(mktemp .ssh/.authorized_keys-XXXXXXXXXX) || exit 1
trap 'rm -f "$new"' EXIT
# A Mac's head wants a number above 0.
[ "$1" -eq 0 ] || head -c "$1" >"$new" || exit 1
[ "$(wc -c <"$new")" -eq "$1" ] || exit 1
sync_file "$new" && move_onto "$new" .ssh/authorized_keys
"""


def _keys(account: Account, there: AccountState | None, system: System) -> Commands:
    for key in account.ssh_keys:
        if "\n" in key or not key.strip():
            raise OperationValueError(f"not one line of an authorized_keys file, for {account.name}: {key!r}")
    before = there.keys if there else None
    while before and not before[-1].strip():
        before = before[:-1]
    after = authorized_keys(before or (), account.ssh_keys)
    if after == (before or ()):
        return
    text = "".join(f"{line}\n" for line in after)
    as_the_account = portable(_AS_THE_ACCOUNT) + _AS_THE_ACCOUNT
    yield script(f"{_HOME_OF[system]}\n{_WRITE_KEYS}", account.name, len(text.encode()), as_the_account, stdin=text)


def _sudo(account: Account, there: AccountState | None) -> Commands:
    path = f"{SUDOERS}{account.name}"
    found = there.sudoers if there else None
    if account.sudo == "none":
        if found and found.kind != "absent":
            yield script('rm -f -- "$1"', path)
        return
    tag = "NOPASSWD: " if account.sudo == "passwordless" else ""
    text = f"# Written by boxwright.\n{account.name} ALL=(ALL:ALL) {tag}ALL\n"
    if not (found and found.holds(text) and found.is_roots(0o440, platforms.group("root"))):
        yield write(path, text, "root:root", 0o440, "visudo -c -q -f {path}")
