"""What a path on the target is. A path that may not be looked at is an error, not an absent file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script

Kind = Literal["absent", "file", "directory", "link", "other"]

# Prints what $1 is, as one line; the path itself is not followed when it is a link.
STATE = """
describe() {
    if answer=$(details '%F|%U|%G|%a|%s' '%HT|%Su|%Sg|%p|%z' "$1" 2>&1); then
        case $answer in
            [Rr]"egular "*)
                digest=$(sha256 <"$1") || return 1
                echo "$answer|${digest%% *}" ;;
            *) echo "$answer|" ;;
        esac
    else
        case $answer in
            *": No such file or directory" | *": Not a directory") echo absent ;;
            *) printf '%s\\n' "$answer" >&2; return 1 ;;
        esac
    fi
}
"""


# Prints what changes with whatever is done to the file $1: size, modification and change time (ns) and inode.
IDENTITY = "file_identity() { details '%s %.9Y %.9Z %i' '%z %Fm %Fc %i' \"$1\"; }\n"


@dataclass(frozen=True)
class FileState:
    """A path as `stat` sees it, links not followed; `mode` is the permission bits, `sha256` that of a regular file."""

    kind: Kind
    owner: str = ""
    group: str = ""
    mode: int = 0
    size: int = 0
    sha256: str = ""

    def holds(self, text: str) -> bool:
        """Whether it is a regular file with exactly this text."""
        return self.kind == "file" and self.sha256 == hashlib.sha256(text.encode()).hexdigest()

    def is_roots(self, mode: int, group: str = "root") -> bool:
        """Whether it is a regular file of root and of `group` (see `platforms.group`) with this mode."""
        return self.kind == "file" and (self.owner, self.group, self.mode) == ("root", group, mode)


def parse_state(line: str) -> FileState:
    """A `FileState` from one line of `describe`. Raises FactProcessError for anything else."""
    if line == "absent":
        return FileState("absent")
    try:
        words, owner, group, mode, size, sha256 = line.split("|")
        kinds: dict[str, Kind] = {
            "regular file": "file",
            "regular empty file": "file",
            "directory": "directory",
            "symbolic link": "link",
        }
        # BSD's stat says "Regular File", and the kind once more in the mode.
        return FileState(kinds.get(words.lower(), "other"), owner, group, int(mode, 8) & 0o7777, int(size), sha256)
    except ValueError as error:
        raise FactProcessError(f"not the state of a file: {line!r}") from error


class File(Fact[FileState]):
    """The `FileState` of `path`; None when it could not be found out (pyinfra has then failed the host)."""

    def command(self, path: str) -> StringCommand:
        return script(STATE + 'describe "$1"', path)

    def process(self, output: Sequence[str]) -> FileState:
        (line,) = output
        return parse_state(line)


class Text(Fact[str]):
    """The text of the file at `path`, empty when there is none."""

    def command(self, path: str) -> StringCommand:
        return script('if [ -e "$1" ]; then cat -- "$1"; fi', path)

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: Sequence[str]) -> str:
        return "".join(line + "\n" for line in output)


@dataclass(frozen=True)
class MergedJson:
    """A JSON file that is shared with others: its state, its text, and what was put into it by an earlier run."""

    state: FileState
    text: str
    record: str


class Json(Fact[MergedJson]):
    """A `MergedJson` of `path`, with the record kept at `record`."""

    def command(self, path: str, record: str) -> StringCommand:
        return script(
            STATE
            + """
            describe "$1" || exit 1
            if [ -e "$2" ]; then sed 's/^/record /' <"$2" || exit 1; echo; fi
            if [ -e "$1" ]; then sed 's/^/text /' <"$1" || exit 1; fi
            """,
            path,
            record,
        )

    def process(self, output: Sequence[str]) -> MergedJson:
        state, *lines = output
        parts: dict[str, list[str]] = {"record": [], "text": []}
        for line in lines:
            key, _, value = line.partition(" ")
            if key in parts:
                parts[key].append(value + "\n")
            elif line:
                raise FactProcessError(f"not a part of a JSON file: {line!r}")
        record = "".join(parts["record"])
        if record:
            try:
                json.loads(record)
            except ValueError as error:
                raise FactProcessError(f"the record of what was merged is damaged: {error}") from error
        return MergedJson(parse_state(state), "".join(parts["text"]), record)


@dataclass(frozen=True)
class Fetched:
    """A downloaded file: `verified` when it has the asked digest, `remembered` when that had been noted before."""

    state: FileState
    verified: bool
    remembered: bool


class DownloadedFile(Fact[Fetched]):
    """Whether the file at `path` has `digest`, a SHA-256 or a SHA-512.

    A file of many gigabytes is not read on every run: `<path>.sha256` notes the digest with size, modification and
    change time (ns) and inode of the file it was computed from. Only when one of them differs is the file read again.
    """

    def command(self, path: str, digest: str) -> StringCommand:
        return script(
            STATE
            + IDENTITY
            + """
            path=$1 wanted=$2
            sum=sha256
            [ "${#wanted}" -ne 128 ] || sum=sha512
            if [ -L "$path" ] || [ ! -f "$path" ]; then describe "$path"; exit; fi
            details '%F|%U|%G|%a|%s|' '%HT|%Su|%Sg|%p|%z|' "$path" || exit 1
            identity=$(file_identity "$path") || exit 1
            note=$(cat -- "$path.sha256" 2>/dev/null)
            if [ "$note" = "$wanted $identity" ]; then echo remembered; exit; fi
            digest=$("$sum" <"$path") || exit 1
            if [ "${digest%% *}" = "$wanted" ]; then echo verified; else echo wrong; fi
            """,
            path,
            digest,
        )

    def process(self, output: Sequence[str]) -> Fetched:
        line, *rest = output
        word = "".join(rest)
        state = parse_state(line)
        if word not in ("", "remembered", "verified", "wrong"):
            raise FactProcessError(f"not a verdict on a file: {word!r}")
        return Fetched(state, word in ("remembered", "verified"), word == "remembered")


class Entries(Fact[tuple[str, ...]]):
    """Names of what is in the folder `path`, sorted; none when it does not exist. Links are not followed."""

    def command(self, path: str) -> StringCommand:
        # The first line tells an empty answer from none.
        return script('echo entries; if [ -d "$1" ]; then cd -- "$1" && find . -mindepth 1 -maxdepth 1; fi', path)

    def process(self, output: Sequence[str]) -> tuple[str, ...]:
        first, *names = output
        if first != "entries":
            raise FactProcessError(f"not a list of names: {first!r}")
        return tuple(sorted(name.removeprefix("./") for name in names))


class Leftovers(Fact[tuple[str, ...]]):
    """Those of `paths` at which there is something, links not followed."""

    def command(self, paths: tuple[str, ...]) -> StringCommand:
        # The first line tells an empty answer from none.
        text = """
            echo found
            for path; do
                if [ -e "$path" ] || [ -L "$path" ]; then printf '%s\\n' "$path"; fi
            done
            """
        return script(text, *paths)

    def process(self, output: Sequence[str]) -> tuple[str, ...]:
        first, *rest = output
        if first != "found":
            raise FactProcessError(f"not a list of paths: {first!r}")
        return tuple(rest)
