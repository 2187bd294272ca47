"""A drop-in of sshd's configuration, in force under the guard: it undoes itself unless a new connection confirms it."""

import shlex
from collections.abc import Mapping, Sequence

from pyinfra import host

from boxwright.facts.files import File
from boxwright.facts.sshd import Sshd
from boxwright.guard import DEADLINE, Change, NewFile
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import show_difference, text_on_box
from boxwright.operations.guard import guarded, settled
from boxwright.shell import refuse, script

# Connections that are open stay. Where systemd holds the port (Ubuntu since 22.10) and nobody has connected yet, no
# sshd runs; the next one reads the files anyway. What it says of itself is looked at before it is told to read.
_RELOAD = """\
mkdir -p /run/sshd
sshd -t >&2 || exit 1
if systemctl is-active --quiet ssh.service; then systemctl reload ssh.service || exit 1; fi
"""
_EXPECT = """\
expect() {
    name=$1
    shift
    said=$(printf '%s\\n' "$effective" | sed -n "s/^$name //p")
    for value; do [ "$said" != "$value" ] || return 0; done
    echo "sshd would have '$name $said' instead of '$name $1': another file is read first, see \\
grep -i $name /etc/ssh/sshd_config /etc/ssh/sshd_config.d/*" >&2
    exit 1
}
"""


@operation()
def drop_in(path: str, text: str, effective: Mapping[str, Sequence[str]], deadline: int = DEADLINE) -> Commands:
    """The file at `path`, which sshd's configuration includes, holds `text`, and sshd has read it.

    `effective` maps directives in lower case to the values, one of which sshd must have then by its own word (`sshd
    -T`): where another file was read first it is an error, and nothing is changed. In force under the guard, whose
    `ready` must have been there: unless a new connection confirms it within `deadline` seconds, the box takes it back.
    """
    yield from settled("sshd")
    found = host.get_fact(Sshd, path=path)
    if found is None or not found.installed:
        yield refuse("there is no sshd on the box" if found else "sshd could not be examined")
        return
    same = found.file.holds(text)
    wrong = [name for name, values in effective.items() if found.effective.get(name) not in values]
    if same and found.file.is_roots(0o600) and not wrong:
        return
    if not same:
        show_difference(path, text_on_box(path, found.file), text)
    asked = shlex.quote(f"user={found.user},host=localhost,addr=127.0.0.1")
    expected = f"mkdir -p /run/sshd\neffective=$(sshd -T -C {asked}) || exit 1\n"
    expected += "".join(f"expect {shlex.join([name, *values])}\n" for name, values in effective.items())
    yield from guarded(
        Change(
            name="sshd",
            files={path: NewFile(text, 0o600, validate="mkdir -p /run/sshd && sshd -t -f {path}")},
            force=_EXPECT + expected + _RELOAD,
            restore=_RELOAD,
        ),
        deadline,
    )


@operation()
def drop_in_absent(path: str) -> Commands:
    """The file at `path` is gone, and sshd has its other settings alone."""
    found = host.get_fact(File, path=path)
    if found is None:
        yield refuse("sshd could not be examined")
    elif found.kind != "absent":
        yield from settled("sshd")
        yield script('rm -f -- "$1"\ncommand -v sshd >/dev/null || exit 0\n' + _RELOAD, path)
