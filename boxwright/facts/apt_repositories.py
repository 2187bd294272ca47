"""What the target has of a package repository: its own files, and those of others that name the same one."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.facts.files import STATE, FileState, parse_state
from boxwright.shell import script


@dataclass(frozen=True)
class RepositoryState:
    """`sources` and `keyring` are the repository's files; `record` says with what it was last known to work.

    `rivals` are other files that name the same repository and nothing else, `mixed` those that name others too. `aside`
    are rivals that boxwright has put aside. `architecture` is the box's own, as Debian calls it.
    """

    sources: FileState
    keyring: FileState
    record: str
    rivals: tuple[str, ...]
    mixed: tuple[str, ...]
    aside: tuple[str, ...]
    architecture: str


# $1 sources, $2 keyring, $3 record, $4 end of the name of a file put aside, $5 address, $6 suite.
# apt refuses to work at all when two files give one repository different keys.
_ASK = """
describe "$1" || exit 1
describe "$2" || exit 1
dpkg --print-architecture || exit 1
if [ -e "$3" ]; then sed 's/^/record /' -- "$3" || exit 1; fi
for file in /etc/apt/sources.list.d/*"$4"; do
    if [ -e "$file" ]; then echo "aside $file"; fi
done
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -f "$file" ] || continue
    awk -v url="$5" -v suite="$6" -v file="$file" '
        /^[ \\t]*deb(-src)?[ \\t]/ {
            sub(/\\[[^]]*\\]/, "")
            all++
            sub(/\\/+$/, "", $2)
            if ($2 == url && $3 == suite) mine++
        }
        END { if (mine) print (mine == all ? "rival" : "mixed"), file }' "$file" || exit 1
done
for file in /etc/apt/sources.list.d/*.sources; do
    if [ "$file" = "$1" ] || [ ! -f "$file" ]; then continue; fi
    awk -v url="$5" -v suite="$6" -v file="$file" '
        function stanza(   count, words, each) {
            if (uris == "") return
            all++
            if (off) { suites = "" }
            count = split(uris, words, " ")
            for (each = 1; each <= count; each++) {
                sub(/\\/+$/, "", words[each])
                if (words[each] == url && index(" " suites " ", " " suite " ")) { mine++; break }
            }
        }
        /^#/ { next }
        /^[ \\t]*$/ { stanza(); uris = suites = field = ""; off = 0; next }
        /^[^ \\t]/ { field = tolower(substr($0, 1, index($0, ":") - 1)); sub(/^[^:]*:/, "") }
        { gsub(/[ \\t]+/, " "); sub(/^ /, ""); sub(/ $/, "") }
        field == "uris" { uris = uris " " $0 }
        field == "suites" { suites = suites " " $0 }
        field == "enabled" && tolower($0) ~ /^(no|false|off|0|without|disable)$/ { off = 1 }
        END { stanza(); if (mine) print (mine == all ? "rival" : "mixed"), file }' "$file" || exit 1
done
echo end
"""


class Repository(Fact[RepositoryState]):
    """The `RepositoryState` of the repository with this address and suite, which may be empty to look for no rivals."""

    def command(self, sources: str, keyring: str, record: str, aside: str, url: str, suite: str) -> StringCommand:
        return script(STATE + _ASK, sources, keyring, record, aside, url.rstrip("/"), suite)

    def process(self, output: Sequence[str]) -> RepositoryState:
        sources, keyring, architecture, *lines, last = output
        if last != "end":
            raise FactProcessError(f"what is known of a package repository is cut off at {last!r}")
        values: dict[str, list[str]] = {"record": [], "rival": [], "mixed": [], "aside": []}
        for line in lines:
            key, _, value = line.partition(" ")
            if key not in values:
                raise FactProcessError(f"not a part of a package repository: {line!r}")
            values[key].append(value)
        return RepositoryState(
            parse_state(sources),
            parse_state(keyring),
            "\n".join(values["record"]),
            tuple(values["rival"]),
            tuple(values["mixed"]),
            tuple(values["aside"]),
            architecture,
        )
