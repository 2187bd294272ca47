"""Accounts: those that services run as, and those of people."""

import re
from collections.abc import Sequence
from typing import Literal, Protocol

from pyinfra import host
from pyinfra.api.exceptions import OperationValueError

from boxwright.facts.accounts import Accounts, AccountState
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import write
from boxwright.shell import refuse, script

NOLOGIN = "/usr/sbin/nologin"

# Files with sudo rights: this and the account's name.
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
def system_user(user: str, home: str = "/nonexistent", groups: Sequence[str] = ()) -> Commands:
    """The account `user` exists for a service: without password and login shell, in a group of its own.

    `home` is its home folder, which is not made. `groups` are further groups, which must exist; it stays in any others.
    """
    found = host.get_fact(Accounts, names=(_checked(user),))
    if found is None:
        yield refuse(f"the account {user} could not be examined")
        return
    there = found.get(user)
    if there is None:
        yield script(
            'useradd --system --user-group --no-create-home --home-dir "$2" --shell "$3" -- "$1"', user, home, NOLOGIN
        )
    elif (there.home, there.shell) != (home, NOLOGIN):
        yield script('usermod --home "$2" --shell "$3" -- "$1"', user, home, NOLOGIN)
    yield from _groups(user, there, groups)


@operation()
def user_absent(user: str, home: bool = False) -> Commands:
    """There is no account `user`, and no sudo rights of it. Its home folder goes only with `home`."""
    found = host.get_fact(Accounts, names=(_checked(user),))
    if found is None:
        yield refuse(f"the account {user} could not be examined")
    elif user in found:
        yield script('rm -f -- "$3$1" || exit 1; userdel $2 -- "$1"', user, "--remove" if home else "", SUDOERS)


@operation()
def group_members(group: str, users: Sequence[str]) -> Commands:
    """The accounts `users` are in `group`, which must exist; other members stay."""
    if not users:
        return
    found = host.get_fact(Accounts, names=tuple(_checked(name) for name in users))
    if found is None:
        yield refuse(f"the members of {group} could not be examined")
        return
    for name in users:
        yield from _groups(name, found.get(name), (group,))


@operation()
def users(accounts: Sequence[Account]) -> Commands:
    """People's accounts exist with their groups, SSH keys and sudo rights.

    A new account has a home folder, bash and no password, so it signs in by key. Keys and rights that are taken out of
    the description go; an account that is taken out stays (see `user_absent`). Keys are written as the account itself,
    so that a link in its home leads nowhere the account could not go.
    """
    names = tuple(_checked(account.name) for account in accounts)
    if not names:
        return
    found = host.get_fact(Accounts, names=names, sudoers=SUDOERS)
    if found is None:
        yield refuse(f"the accounts {', '.join(names)} could not be examined")
        return
    for account in accounts:
        there = found.get(account.name)
        if there is None:
            yield script('useradd --create-home --user-group --shell /bin/bash -- "$1"', account.name)
        yield from _groups(account.name, there, account.groups)
        yield from _keys(account, there)
        yield from _sudo(account, there)


def _groups(name: str, there: AccountState | None, groups: Sequence[str]) -> Commands:
    missing = [group for group in groups if there is None or group not in there.groups]
    if missing:
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


# $1 account, $2 number of bytes on standard input. The file is written as the account: no link in its home leads
# anywhere it could not go itself. A run killed while the account was made may have left it without a home.
_WRITE_KEYS = """
home=$(getent passwd "$1" | cut -d : -f 6)
[ -d "$home" ] || install -d -m 0700 -o "$1" -g "$(id -gn -- "$1")" -- "$home" || exit 1
runuser -u "$1" -- sh -c '
    umask 077
    cd || exit 1
    mkdir -p .ssh && chmod 0700 .ssh || exit 1
    new=$(mktemp .ssh/.authorized_keys-XXXXXXXXXX) || exit 1
    trap "rm -f $new" EXIT
    head -c "$1" >"$new" && [ "$(wc -c <"$new")" -eq "$1" ] || exit 1
    sync "$new" && mv -fT "$new" .ssh/authorized_keys
' keys "$2" || { echo "the SSH keys of $1 could not be written" >&2; exit 1; }
"""


def _keys(account: Account, there: AccountState | None) -> Commands:
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
    yield script(_WRITE_KEYS, account.name, len(text.encode()), stdin=text)


def _sudo(account: Account, there: AccountState | None) -> Commands:
    path = f"{SUDOERS}{account.name}"
    found = there.sudoers if there else None
    if account.sudo == "none":
        if found and found.kind != "absent":
            yield script('rm -f -- "$1"', path)
        return
    tag = "NOPASSWD: " if account.sudo == "passwordless" else ""
    text = f"# Written by boxwright.\n{account.name} ALL=(ALL:ALL) {tag}ALL\n"
    if not (found and found.holds(text) and found.is_roots(0o440)):
        yield write(path, text, "root:root", 0o440, "visudo -c -q -f {path}")
