"""Commands for a target: constant sh scripts whose values are handed over as arguments, never pasted into the text."""

import re
from collections.abc import Mapping
from textwrap import dedent, indent

from pyinfra.api import QuoteString, StringCommand

# The same words from every tool whatever the language of the target; the administration tools are found also in the
# session of an ordinary user.
_PRELUDE = 'export LC_ALL=C PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"\n'

# On a Mac besides: a session by SSH does not find what Homebrew has installed, and a system's own program goes before
# one of the same name there. tar makes no `._` companions of files.
_ON_A_MAC = 'export COPYFILE_DISABLE=1 PATH="$PATH:/opt/homebrew/bin:/opt/homebrew/sbin:/usr/local/bin"'

# What GNU's programs and macOS's do not do by the same words: functions that scripts for both use in place of them, on
# Linux (first) and on a Mac (second). A script is sent with those that it names.
#
# A Mac has perl where a program is missing, and a module of it for most system calls. What is done to descriptor 3 must
# reach the file that was opened, whatever lies at its path by then: Linux has a path for that, which chmod and chown
# follow; macOS promises nothing about its /dev/fd, but perl's chmod and chown take a descriptor (fchmod, fchown).
_PORTABLE: Mapping[str, tuple[str, str]] = {
    # FORMAT of GNU's stat, the same for BSD's, PATH (a link is not followed)
    "details": ('stat -c "$1" -- "$3"', 'stat -f "$2" -- "$3"'),
    # The same of what a link points to
    "target_details": ('stat -Lc "$1" -- "$3"', 'stat -Lf "$2" -- "$3"'),
    # The same of the file that descriptor 3 has open; without a path, BSD's stat looks at its standard input
    "opened_details": ('stat -Lc "$1" /proc/self/fd/3', 'stat -f "$2" <&3'),
    # MODE
    "opened_chmod": (
        'chmod -- "$1" /proc/self/fd/3',
        """perl -e 'chmod(oct($ARGV[0]), *STDIN) or die("chmod: $!\\n")' "$1" <&3""",
    ),
    # OWNER, as chown takes it
    "opened_chown": (
        'chown -- "$1" /proc/self/fd/3',
        """
        perl -e '
            my ($user, $group) = split(/:/, $ARGV[0]);
            my $uid = length($user // "") ? getpwnam($user) : -1;
            my $gid = length($group // "") ? getgrnam($group) : -1;
            defined($uid) && defined($gid) or die("chown: no such user or group: $ARGV[0]\\n");
            chown($uid, $gid, *STDIN) or die("chown: $!\\n")' "$1" <&3
        """,
    ),
    "opened_sync": ("sync -- /proc/self/fd/3", """perl -MIO::Handle -e 'STDIN->sync or die("sync: $!\\n")' <&3"""),
    # PATH
    "sync_file": ('sync -- "$1"', """perl -MIO::Handle -e 'STDIN->sync or die("sync: $!\\n")' <"$1\""""),
    # PATH, of which the whole file system is written out
    "sync_disk": ('sync -f -- "$1"', "sync"),
    # [FILE...], else standard input; prints DIGEST, two blanks and the name
    "sha256": ('sha256sum "$@"', 'shasum -a 256 "$@"'),
    "sha512": ('sha512sum "$@"', 'shasum -a 512 "$@"'),
    # FROM TO: in one step; a link or file at TO goes, and a folder there is not moved into
    "move_onto": (
        'mv -fT -- "$1" "$2"',
        """perl -e 'rename($ARGV[0], $ARGV[1]) or die("mv: $ARGV[1]: $!\\n")' "$1" "$2\"""",
    ),
    # PATH...: with all they hold, but nothing of another file system that is mounted there
    "remove_tree": ('rm -rf --one-file-system -- "$@"', 'rm -rfx -- "$@"'),
    # The lock of the file or folder that descriptor 9 has open; it lasts until all have closed that
    "try_lock": ("flock -n 9", "perl -MFcntl=:flock -e 'exit(!flock(STDIN, LOCK_EX | LOCK_NB))' <&9"),
    # SECONDS
    "wait_lock": (
        'flock -w "$1" 9',
        """
        perl -MFcntl=:flock -e '$SIG{ALRM} = sub { exit(1) }; alarm($ARGV[0]); exit(!flock(STDIN, LOCK_EX))' "$1" <&9
        """,
    ),
    # NAME COMMAND...: as that user, in an environment of its own
    "as_user": (
        'as_user=$1; shift; runuser -u "$as_user" -- "$@"',
        'as_user=$1; shift; sudo -n -H -u "$as_user" -- "$@"',
    ),
}
_NAMES = re.compile(rf"\b({'|'.join(_PORTABLE)})\b")

# What a line of a command's output begins with that is worth showing only until the next one (boxwright/runner.py).
PROGRESS = "progress: "

# For scripts with long steps: `arriving TOTAL COMMAND...` in the background says every two seconds how far it is, until
# it is ended or its script is over. COMMAND prints how many bytes there are by now; TOTAL is "" where it is not known.
ARRIVING = f"""
arriving() {{
    total=$1 before=
    shift
    # In a unit nobody watches, and the journal keeps every line.
    [ -z "${{INVOCATION_ID-}}" ] || return 0
    # What sleeps on after the end of this holds neither output nor lock.
    while sleep 2 >/dev/null 2>&1 9<&- && kill -0 $$ 2>/dev/null; do
        now=$("$@")
        printf '{PROGRESS}%s' "$((now / 1048576))${{total:+ of $((total / 1048576))}} MiB" >&2
        [ -z "$before" ] || printf ', %s MiB/s' "$(((now - before) / 2097152))" >&2
        echo >&2
        before=$now
    done
}}
"""


def portable(text: str) -> str:
    """What `text` needs before it to run on both systems: the functions above that it names, none for none.

    For a script inside of another, and for one that is kept on the target; `script` adds it by itself.
    """
    named = dict.fromkeys(_NAMES.findall(text))
    if not named:
        return ""
    linux, mac = (
        "".join(f"{name}() {{\n{indent(dedent(_PORTABLE[name][which]).strip(), '    ')}\n}}\n" for name in named)
        for which in (0, 1)
    )
    return f"if [ -d /System/Library ]; then\n{mac}else\n{linux}fi\n"


def script(text: str, *arguments: str | int, stdin: str | None = None) -> StringCommand:
    """A command that runs `text` with sh on the target; the script sees `arguments` as $1, $2, ...

    `stdin` is sent over the connection, so it stands in no process's arguments and pyinfra prints none of it. Note
    that pyinfra ends it with a line break when it has none.
    """
    text = dedent(text).strip()
    start = f"{_PRELUDE}[ ! -d /System/Library ] || {_ON_A_MAC}\n"
    bits = ["sh", "-c", QuoteString(start + portable(text) + text), "boxwright"]
    bits += [QuoteString(str(argument)) for argument in arguments]
    if stdin is None:
        return StringCommand(*bits)
    return StringCommand(*bits, _stdin=[stdin])


def refuse(message: str) -> StringCommand:
    """A command that fails with `message`: the step fails on this host alone, and nothing is changed."""
    return script('printf "%s\\n" "$1" >&2; exit 1', message)
