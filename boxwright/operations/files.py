"""Files: written atomically, secret ones never readable by others, big ones fetched with resume and verified."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pyinfra import host, logger, state
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import OperationTypeError, OperationValueError

from boxwright import platforms
from boxwright.artifacts import Download, MirrorSettings
from boxwright.facts.files import IDENTITY, DownloadedFile, Entries, File, FileState, Json, Leftovers, Text
from boxwright.operations.api import Commands, Content, operation
from boxwright.operations.merge import DuplicateKey, load, merge, take_back
from boxwright.shell import ARRIVING, refuse, script

# Where boxwright notes on the box what it added to things that are shared with others.
RECORDS = "/var/lib/boxwright"

# The text comes on standard input and is exactly $2 bytes long: a broken connection ends the input early, and then
# nothing is replaced. The temporary file is made beside the destination with mode 0600, gets its owner and mode, and
# takes the destination's place in one step; a symbolic link at the destination is replaced, never followed. It is made
# with O_EXCL (set -C) and used by its descriptor, so that whoever owns the folder cannot put a link in its place.
_WRITE = """
path=$1 size=$2 owner=$3 mode=$4 validate=$5
fail() { cat >/dev/null; printf '%s\\n' "$1" >&2; exit 1; }
folder=$(dirname -- "$path")
name=$(basename -- "$path")
[ -d "$folder" ] || fail "cannot write $path: the folder $folder does not exist"
[ -L "$path" ] || [ ! -d "$path" ] || fail "cannot write $path: a folder is in its place"
umask 077
for left in "$folder"/.boxwright-????????????????."$name"; do
    # Left over by a run that was killed; a younger one may belong to a run that is under way.
    if [ -f "$left" ] && [ ! -L "$left" ]; then
        [ -z "$(find "$left" -maxdepth 0 -mmin +10)" ] || rm -f -- "$left"
    fi
done
temporary=$folder/.boxwright-$(od -An -N8 -tx8 /dev/urandom | tr -d ' ').$name
set -C
exec 3>"$temporary" || exit 1
set +C
trap 'rm -f -- "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
# A Mac's head wants a number above 0.
[ "$size" -eq 0 ] || head -c "$size" >&3 || fail "cannot write $path"
[ "$(opened_details %s %z)" -eq "$size" ] || fail "cannot write $path: the text arrived incomplete"
opened_sync || exit 1
if [ -n "$owner" ]; then opened_chown "$owner" || exit 1; fi
opened_chmod "$mode" || exit 1
if [ -n "$validate" ]; then
    sh -c "$validate" validate "$temporary" >&2 3>&- \\
        || fail "$path was left as it is: the new text was not accepted by: $6"
fi
exec 3>&-
move_onto "$temporary" "$path" || exit 1
trap - EXIT
"""

# At no moment more open than before or after: what only the old mode allows goes first, what only the new one allows
# comes last. Done by a descriptor of what was found at the path, so that no link can be put in its place meanwhile.
_ADJUST = """
exec 3<"$1" || exit 1
if [ "$(details %d:%i %d:%i "$1")" != "$(opened_details %d:%i %d:%i)" ]; then
    echo "$1 was exchanged for something else while it was looked at" >&2
    exit 1
fi
opened_chmod "$2" || exit 1
[ -z "$3" ] || opened_chown "$3" || exit 1
opened_chmod "$4"
"""


def _mode(mode: str) -> int:
    if not isinstance(mode, str) or not re.fullmatch(r"[0-7]{3,4}", mode):
        raise OperationTypeError(f'a mode is a string of three or four octal digits such as "0640", not {mode!r}')
    return int(mode, 8)


def _absolute(path: str) -> str:
    if not path.startswith("/") or path.endswith("/") or "\n" in path:
        raise OperationValueError(f"not an absolute path: {path!r}")
    return path


def _owner(user: str | None, group: str | None) -> str:
    return f"{user or ''}{':' + platforms.group(group) if group else ''}"


def write(path: str, text: str, owner: str, mode: int, validate: str | None = None) -> StringCommand:
    """The command that puts a file with `text` in place, atomically; `owner` is `user:group`. Never prints `text`."""
    check = (validate or "").replace("{path}", '"$1"')
    user, colon, group = owner.partition(":")
    owner = f"{user}{colon}{platforms.group(group)}"
    return script(_WRITE, path, len(text.encode()), owner, f"{mode:04o}", check, validate or "", stdin=text)


def _adjustments(path: str, found: FileState, user: str | None, group: str | None, mode: int) -> Commands:
    """What gives an existing file or folder its owner and mode, when it has others."""
    group = platforms.group(group) if group is not None else None
    owner_differs = (user is not None and found.owner != user) or (group is not None and found.group != group)
    if owner_differs or found.mode != mode:
        owner = _owner(user, group) if owner_differs else ""
        yield script(_ADJUST, path, f"{found.mode & mode:04o}", owner, f"{mode:04o}")


def text_on_box(path: str, found: FileState) -> str:
    """The text of the file at `path` when a person asked for differences with `--diff`; else empty, unread."""
    if not state.config.DIFF or found.kind != "file":
        return ""
    return host.get_fact(Text, path=path) or ""


def show_difference(path: str, before: str, after: str) -> None:
    """Prints how the text of `path` changes, when a person asked for it with `--diff`."""
    if not state.config.DIFF:
        return
    host.log(f"Will write {path}", logger.info)
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), "on the box", "new", lineterm=""):
        logger.info("  %s", line)


@operation(content=["text"])
def content(
    path: str,
    text: str | Content,
    user: str | None = "root",
    group: str | None = "root",
    mode: str = "0644",
    secret: bool = False,
    validate: str | None = None,
) -> Commands:
    """The file at `path` holds exactly `text`, with this owner and this mode (octal digits).

    Atomic: readers see the old file or the new one. Until it has its owner and mode nobody but the user who writes can
    read it. A symbolic link at `path` is replaced by the file; a missing folder or a folder at `path` is an error. Only
    what differs is changed: a wrong mode does not rewrite the file.

    The group `root` is that of root, also where it is called `wheel`.
    `validate` is a shell command that must accept the new file before it is put in place; `{path}` in it stands for the
    new file's path, quoted.
    `secret` keeps the text out of `--diff`. `user` or `group` None leaves the owner as it is.
    """
    wanted = _mode(mode)
    text = text.text if isinstance(text, Content) else text
    found = host.get_fact(File, path=_absolute(path))
    if found is None:
        yield refuse(f"{path} could not be examined")
        return
    if found.holds(text):
        yield from _adjustments(path, found, user, group, wanted)
        return
    if not secret:
        show_difference(path, text_on_box(path, found), text)
    yield write(path, text, _owner(user, group), wanted, validate)


@operation()
def directory(path: str, user: str | None = "root", group: str | None = "root", mode: str = "0755") -> Commands:
    """The folder `path` exists with this owner and mode; what it holds is not touched.

    Missing folders above it are made with mode 0755.
    """
    wanted = _mode(mode)
    found = host.get_fact(File, path=_absolute(path))
    if found is None or found.kind not in ("absent", "directory"):
        yield refuse(f"{path} should be a folder, but it is {'unreadable' if found is None else f'a {found.kind}'}")
    elif found.kind == "absent":
        yield script(
            """
            umask 022
            mkdir -p -- "$(dirname -- "$1")" || exit 1
            mkdir -m 0700 -- "$1" || exit 1
            [ -z "$2" ] || chown -h -- "$2" "$1" || exit 1
            chmod -- "$3" "$1"
            """,
            path,
            _owner(user, group),
            f"{wanted:04o}",
        )
    else:
        yield from _adjustments(path, found, user, group, wanted)


@operation()
def absent(path: str, recursive: bool = False) -> Commands:
    """Nothing is at `path`. A folder is removed only when it is empty, or with all it holds when `recursive` is true.

    A symbolic link is removed itself; what it points to stays.
    """
    found = host.get_fact(File, path=_absolute(path))
    if found is None:
        yield refuse(f"{path} could not be examined")
    elif found.kind == "directory" and recursive:
        if len(PurePosixPath(path).parts) < 3 or ".." in PurePosixPath(path).parts:
            yield refuse(f"{path} is not removed with all it holds: it is too near the root of the file system")
            return
        yield script('remove_tree "$1"', path)
    elif found.kind == "directory":
        yield script('rmdir -- "$1"', path)
    elif found.kind != "absent":
        yield script('rm -f -- "$1"', path)


@operation()
def files_absent(paths: Sequence[str]) -> Commands:
    """None of the files `paths` is there; one question for all of them. A folder in the place of one is an error."""
    yield from _all_absent(paths)


def _all_absent(paths: Sequence[str]) -> Commands:
    found = host.get_fact(Leftovers, paths=tuple(_absolute(path) for path in paths))
    if found is None:
        yield refuse(f"{', '.join(paths)} could not be examined")
    elif found:
        yield script('rm -f -- "$@"', *found)


def _record_of(path: str) -> str:
    return f"{RECORDS}/merged/{path.strip('/').replace('/', '-')}"


def _layout(document: Mapping[str, Any], text: str) -> str:
    """`document` as JSON text, indented like `text` is (two spaces when that cannot be seen)."""
    indented = re.search(r'^([ \t]+)"', text, re.MULTILINE)
    return json.dumps(document, indent=indented.group(1) if indented else 2, ensure_ascii=False) + "\n"


def _read_json(path: str, text: str) -> tuple[dict[str, Any], str]:
    """The document in `text` and an empty string, or an empty document and what is wrong with it."""
    try:
        return load(text), ""
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        return {}, f"{where}: not valid JSON ({error.msg}); correct it or move it away, it was left as it is"
    except DuplicateKey as error:
        return {}, f"{path}: {error}; remove one of them, the file was left as it is"
    except ValueError as error:
        return {}, f"{path}: {error}; it was left as it is"


def _merge_json(path: str, values: Mapping[str, Any], mode: str, validate: str | None, remove: bool) -> Commands:
    record = _record_of(_absolute(path))
    found = host.get_fact(Json, path=path, record=record)
    if found is None or found.state.kind not in ("absent", "file"):
        yield refuse(f"{path} should be a file, but it is {'unreadable' if found is None else f'a {found.state.kind}'}")
        return
    current, wrong = _read_json(path, found.text)
    if wrong:
        yield refuse(wrong)
        return
    earlier = load(found.record)
    merged = take_back(current, earlier) if remove else merge(current, earlier, values)
    if merged != current or (found.state.kind == "absent" and not remove):
        if remove and not merged:
            yield script('rm -f -- "$1"', path)
        else:
            there = found.state.kind == "file"
            text = _layout(merged, found.text)
            show_difference(path, found.text, text)
            if not there:
                yield script('umask 022; mkdir -p -- "$(dirname -- "$1")"', path)
            owner = f"{found.state.owner}:{found.state.group}" if there else "root:root"
            yield write(path, text, owner, found.state.mode if there else _mode(mode), validate)
    if remove and found.record:
        yield script('rm -f -- "$1"', record)
    elif not remove and earlier != dict(values):
        yield script('umask 022; mkdir -p -- "$1"', f"{RECORDS}/merged")
        yield write(record, json.dumps(values) + "\n", "root:root", 0o644)


@operation()
def json_merge(path: str, values: Mapping[str, Any], mode: str = "0644", validate: str | None = None) -> Commands:
    """The JSON file at `path` holds `values`; keys of others, their order and the file's owner and mode stay.

    Objects are merged key by key, lists by adding what is missing. What was put there is noted on the box, so that a
    value that is no longer wanted is taken back. A file that is not valid JSON is an error that names line and column,
    and is left alone. `mode` is that of a new file; `validate` is as in `content`. Values are not secret: they are
    printed and noted.
    """
    yield from _merge_json(path, values, mode, validate, remove=False)


@operation()
def json_take_back(path: str) -> Commands:
    """What `json_merge` put into the file at `path` is taken out, unless somebody changed it since.

    The file goes when nothing is left in it.
    """
    yield from _merge_json(path, {}, "0644", None, remove=True)


# $1 path, $2 URL, $3 digest, $4 size or nothing, $5 owner, $6 mode, $7 name, $8 the published URL; a token for the
# publisher, or nothing, comes on standard input. A file whose size nobody knows is cut off at 1 GiB.
_DOWNLOAD = """
token=$(cat)
path=$1 url=$2 wanted=$3 size=$4 owner=$5 mode=$6 name=$7 published=$8
part=$path.part
most=${size:-1073741824}
mirrored=
[ "$url" = "$published" ] || mirrored=" (the mirror of $published)"
folder=$(dirname -- "$path")
fail() { printf '%s\\n' "$1" >&2; exit 1; }
kind=sha256
[ "${#wanted}" -ne 128 ] || kind=sha512
digest() { sum=$("$kind" <"$1") || exit 1; echo "${sum%% *}"; }
bytes() { details %s %z "$1" 2>/dev/null || echo 0; }
umask 022
[ -d "$folder" ] || fail "cannot fetch $name: the folder $folder does not exist"
[ -L "$path" ] || [ ! -d "$path" ] || fail "cannot fetch $name: a folder is in the place of $path"
command -v curl >/dev/null || fail "cannot fetch $name: curl is not installed on this box"
# A run that was interrupted may have left its command running here: wait for it, then see what it achieved.
exec 9<"$folder" || exit 1
if ! try_lock; then
    echo "another run is fetching into $folder: waiting for it" >&2
    wait_lock 3600 || fail "cannot fetch $name: another run has been fetching into $folder for an hour"
    if [ ! -L "$path" ] && [ -f "$path" ] && [ "$(digest "$path")" = "$wanted" ]; then exit 0; fi
fi
if [ -L "$part" ] || { [ -e "$part" ] && [ ! -f "$part" ]; }; then rm -rf -- "$part" || exit 1; fi
[ "$(bytes "$part")" -le "$most" ] || rm -f -- "$part"

room() {
    [ -n "$size" ] || return 0
    needed=$((size - $(bytes "$part")))
    free=$(($(df -Pk -- "$folder" | awk 'NR == 2 { print $4 }') * 1024))
    [ "$free" -ge "$needed" ] || fail "cannot fetch $name: it needs $needed bytes ($((needed / 1048576)) MiB) more, \\
and $folder has $free bytes ($((free / 1048576)) MiB) free"
}
fetch() {
    attempt=0
    while [ "$(bytes "$part")" -lt "$most" ] || [ ! -e "$part" ]; do
        attempt=$((attempt + 1))
        before=$(bytes "$part")
        # Given up when less than 1 KiB/s arrives for a minute; a file longer than it should be is cut off.
        # The token goes to no other host, also when the publisher sends us on to one.
        said=$({ [ -z "$token" ] || printf 'header = "Authorization: Bearer %s"\\n' "$token"; } |
            curl --config - --silent --show-error --fail --location --proto =http,https --proto-redir =http,https \\
            --connect-timeout 20 --speed-limit 1024 --speed-time 60 --max-filesize "$most" \\
            --continue-at - --output "$part" --write-out '%{stderr} status=%{http_code}' -- "$url" 2>&1)
        status=$?
        [ "$status" -ne 0 ] || return 0
        code=${said##* status=}
        code=${code%%[!0-9]*}
        said="${said%% status=*}${said##* status="$code"}"
        case $status:$code in
            22:401 | 22:403) said="it wants a token, or its terms to be accepted by the token's owner (HTTP $code)" ;;
            22:404) said="there is no such file (HTTP $code)" ;;
            22:412) said="it does not hand this file out to us now (HTTP $code)" ;;
            22:429) said="it has had too many requests from here: try again later (HTTP $code)" ;;
        esac
        case $status in
            33 | 36) rm -f -- "$part" ;;  # the server cannot resume: once again from the start
            63) rm -f -- "$part"; fail "cannot fetch $name: $url is larger than the $most bytes it should have" ;;
            23) fail "cannot fetch $name: writing to $folder failed ($said)" ;;
            5 | 6 | 7 | 16 | 18 | 28 | 35 | 52 | 55 | 56 | 92) ;;  # the network: what has arrived is kept
            *) attempt=9 ;;
        esac
        # Another try is worth it as long as bytes arrive.
        [ "$(bytes "$part")" -le "$before" ] || attempt=1
        [ "$attempt" -lt 3 ] || fail "cannot fetch $name from $url$mirrored: $said"
        sleep 1
    done
}

resumed=$(bytes "$part")
room
arriving "$size" bytes "$part" &
reporter=$!
trap 'kill "$reporter" 2>/dev/null' EXIT
fetch
found=$(digest "$part")
if [ "$found" != "$wanted" ] && [ "$resumed" -gt 0 ]; then
    # What was left of an earlier run may belong to another file: once more, from the start.
    rm -f -- "$part"
    room
    fetch
    found=$(digest "$part")
fi
if [ "$found" != "$wanted" ]; then
    got=$(bytes "$part")
    rm -f -- "$part"
    fail "$name has the wrong checksum and was not used: $url
  expected $kind $wanted${size:+ ($size bytes)}
  found    $kind $found ($got bytes)"
fi
if [ -n "$owner" ]; then chown -- "$owner" "$part" || exit 1; fi
chmod -- "$mode" "$part" || exit 1
sync_file "$part" || exit 1
move_onto "$part" "$path"
"""

# A downloaded file and what is kept beside it.
_BESIDE = ("", ".part", ".sha256")

# $1 path, $2 its digest, just verified. The note is written last and atomically; without it the file is read again.
_REMEMBER = """
note="$2 $(file_identity "$1")" || exit 1
umask 022
printf '%s\\n' "$note" >"$1.sha256.new" && move_onto "$1.sha256.new" "$1.sha256"
"""


def fetch(
    path: str,
    artifact: Download,
    mirror: MirrorSettings | None = None,
    user: str | None = "root",
    group: str | None = "root",
    mode: str = "0644",
) -> Commands:
    """The commands of `download`, for operations of which it is one part."""
    wanted = _mode(mode)
    found = host.get_fact(DownloadedFile, path=_absolute(path), digest=artifact.digest)
    if found is None:
        yield refuse(f"{path} could not be examined")
        return
    if found.state.kind == "file" and found.verified:
        adjustments = list(_adjustments(path, found.state, user, group, wanted))
        yield from adjustments
        # A new owner or mode changes the file's change time, which is part of the note.
        if adjustments or not found.remembered:
            yield script(IDENTITY + _REMEMBER, path, artifact.digest)
        return
    url = mirror.file_url(artifact.url) if mirror else artifact.url
    owner = _owner(user, group)
    arguments = (path, url, artifact.digest, artifact.size or "", owner, f"{wanted:04o}", artifact.name, artifact.url)
    yield script(ARRIVING + _DOWNLOAD, *arguments, stdin=artifact.token if url == artifact.url else "")
    yield script(IDENTITY + _REMEMBER, path, artifact.digest)


@operation()
def download(
    path: str,
    artifact: Download,
    mirror: MirrorSettings | None = None,
    user: str | None = "root",
    group: str | None = "root",
    mode: str = "0644",
) -> Commands:
    """The file at `path` is `artifact`, fetched from its publisher or from `mirror`.

    Bytes arrive in `<path>.part`, which an interrupted run leaves for the next one to continue. Free disk space is
    checked first, and digest and size are verified before the file takes its place. `<path>.sha256` notes what was
    verified, so that a file of many gigabytes is not read again on every run. Needs curl on the target.
    """
    yield from fetch(path, artifact, mirror, user, group, mode)


@operation()
def only(path: str, keep: Sequence[str]) -> Commands:
    """Of what is in the folder `path` only `keep` (paths in it) is left, with what `download` keeps beside a file.

    Folders go with all they hold. A folder that is not there is right.
    """
    names = {PurePosixPath(one).name for one in keep if str(PurePosixPath(one).parent) == _absolute(path)}
    if len(PurePosixPath(path).parts) < 3 or ".." in PurePosixPath(path).parts:
        yield refuse(f"{path} is not cleared: it is too near the root of the file system")
        return
    found = host.get_fact(Entries, path=path)
    if found is None:
        yield refuse(f"{path} could not be examined")
        return
    kept = {name + suffix for name in names for suffix in _BESIDE}
    if others := [f"{path}/{name}" for name in found if name not in kept]:
        yield script('remove_tree "$@"', *others)


@operation()
def download_absent(path: str) -> Commands:
    """Neither the file at `path` is there nor what `download` keeps beside it."""
    yield from _all_absent([path + suffix for suffix in _BESIDE])
