"""Settings of a system that others may have set before: what to change, and how all of it is put back one day.

A note on the box has one line for each setting that was changed: its name, the value before, and the value that was
set. A setting that somebody changed since is not put back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.shell import script

Recorded = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Changes:
    """What is put back, what is set, and what is noted between the two. False when there is nothing to do."""

    back: Mapping[str, str]
    new: Mapping[str, str]
    recorded: Recorded
    differs: bool

    def __bool__(self) -> bool:
        return self.differs


def parse_recorded(lines: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The lines of a note. Raises FactProcessError for any other."""
    found = {}
    for line in lines:
        match line.split("|"):
            case [name, before, ours]:
                found[name] = (before, ours)
            case _:
                raise FactProcessError(f"not a note of a setting: {line!r}")
    return found


def changes(values: Mapping[str, str], recorded: Recorded, wanted: Mapping[str, str]) -> Changes:
    """The way from `values`, of which `recorded` was noted before, to `wanted`; what is wanted no more is put back."""
    back = {
        name: before
        for name, (before, ours) in recorded.items()
        if name not in wanted and values.get(name) == ours != before
    }
    new = {name: value for name, value in wanted.items() if values.get(name) != value}
    noted = {name: note for name, note in recorded.items() if name in wanted}
    for name, value in new.items():
        noted[name] = (noted[name][0] if name in noted else values.get(name, ""), value)
    return Changes(_off_first(back), _off_first(new), noted, bool(back or new or noted != recorded))


def _off_first(settings: Mapping[str, str]) -> dict[str, str]:
    """Of two that exclude each other, never both are on."""
    return dict(sorted(settings.items(), key=lambda item: item[1] != "0"))


# $1 record, $2 its text, then names and values that are put back, `--`, and names and values that are set: the note is
# written between them, so that a run that is killed neither forgets a value nor invents one. What `put` says and how it
# ends proves nothing with the tools of macOS: what counts is what `shown` says afterwards.
_WAY = """
record=$1 text=$2
shift 2
umask 022
note() {
    if [ -n "$text" ]; then
        mkdir -p "$(dirname "$record")" && printf '%s\\n' "$text" >"$record.new" && mv -f "$record.new" "$record"
    else
        rm -f "$record" && { rmdir "$(dirname "$record")" 2>/dev/null || true; }
    fi
}
failed=0
while [ "$#" -gt 0 ]; do
    if [ "$1" = -- ]; then
        [ "$failed" -eq 0 ] && note || exit 1
        shift
        continue
    fi
    said=$(put "$1" "$2" 2>&1)
    now=$(shown "$1")
    if [ "$now" != "$2" ]; then
        echo "$1 could not be set to $2: it is ${now:-unknown}, and the answer was: ${said:-nothing}" >&2
        failed=1
    fi
    shift 2
done
exit "$failed"
"""


def command(functions: str, record: str, way: Changes) -> StringCommand:
    """The command that goes the way. `functions` is sh text with `put NAME VALUE`, which sets a value, and
    `shown NAME`, which prints it.
    """
    text = "\n".join("|".join((name, *note)) for name, note in sorted(way.recorded.items()))

    def words(settings: Mapping[str, str]) -> list[str]:
        return [word for item in settings.items() for word in item]

    return script(functions + _WAY, record, text, *words(way.back), "--", *words(way.new))
