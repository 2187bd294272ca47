"""What a Mac says of itself: its clock, its names, what is backed up, who shares its screen, its graphics memory."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.kept import Recorded, parse_recorded
from boxwright.shell import script

NAMES = ("ComputerName", "LocalHostName", "HostName")
SCREEN_SHARING = "com.apple.screensharing"
WIRED_LIMIT = "iogpu.wired_limit_mb"


@dataclass(frozen=True)
class Settings:
    """`values` are settings by their names, `recorded` what boxwright noted of them (boxwright/kept.py)."""

    values: Mapping[str, str]
    recorded: Recorded


def _parted(output: Sequence[str], *parts: str) -> dict[str, list[str]]:
    """The lines `part|text` by their part; the last line is `end`."""
    *lines, last = output
    if last != "end":
        raise FactProcessError(f"the Mac's answer is cut off at {last!r}")
    found: dict[str, list[str]] = {part: [] for part in parts}
    for line in lines:
        part, _, text = line.partition("|")
        if part not in found:
            raise FactProcessError(f"not an answer of a Mac: {line!r}")
        found[part].append(text)
    return found


class NetworkTime(Fact[Settings]):
    """`using` (on or off) and `server`: whether the clock is kept by a time server, and by which.

    `systemsetup` without root says so on standard output, and succeeds.
    """

    def command(self, record: str) -> StringCommand:
        return script(
            """
            systemsetup -getusingnetworktime 2>/dev/null | sed 's/^/said|/'
            systemsetup -getnetworktimeserver 2>/dev/null | sed 's/^/said|/'
            if [ -e "$1" ]; then sed 's/^/record|/' "$1" || exit 1; fi
            echo end
            """,
            record,
        )

    def process(self, output: Sequence[str]) -> Settings:
        parts = _parted(output, "said", "record")
        said = dict(line.partition(": ")[::2] for line in parts["said"])
        using = said.get("Network Time", "").strip().lower()
        if using not in ("on", "off"):
            raise FactProcessError(f"systemsetup says nothing of the network time: {parts['said']!r}")
        values = {"using": using, "server": said.get("Network Time Server", "").strip()}
        return Settings(values, parse_recorded(parts["record"]))


class ComputerNames(Fact[dict[str, str]]):
    """The Mac's names by scutil's names for them; one that is not set, as HostName on a fresh Mac, is left out."""

    def command(self) -> StringCommand:
        return script(
            'for name; do value=$(scutil --get "$name" 2>/dev/null) && echo "name|$name=$value"; done; echo end', *NAMES
        )

    def process(self, output: Sequence[str]) -> dict[str, str]:
        return dict(line.partition("=")[::2] for line in _parted(output, "name")["name"])


@dataclass(frozen=True)
class QuietState:
    """Of the asked folders, and of those that were noted: `absent` are not there, `indexed` have no mark against
    Spotlight, `included` are backed up by Time Machine. `recorded` are pairs of what was done with a folder (`mark`,
    `excluded`, or `refused` where Time Machine may not be told) and the folder; `may_ask` says whether the run has Full
    Disk Access by now.
    """

    absent: tuple[str, ...]
    indexed: tuple[str, ...]
    included: tuple[str, ...]
    recorded: tuple[tuple[str, str], ...]
    may_ask: bool


class QuietFolders(Fact[QuietState]):
    """The `QuietState` of `paths`; `record` is the file in which boxwright notes what it did."""

    def command(self, record: str, paths: tuple[str, ...]) -> StringCommand:
        return script(
            """
            record=$1
            shift
            for path; do
                if [ ! -d "$path" ]; then echo "absent|$path"; continue; fi
                [ -e "$path/.metadata_never_index" ] || [ -L "$path/.metadata_never_index" ] || echo "indexed|$path"
                case $(tmutil isexcluded "$path" 2>/dev/null) in
                    "[Included]"*) echo "included|$path" ;;
                esac
            done
            if [ -e "$record" ]; then sed 's/^/record|/' "$record" || exit 1; fi
            # Nobody without Full Disk Access reads the list of those who have it, root neither.
            if head -c 1 "/Library/Application Support/com.apple.TCC/TCC.db" >/dev/null 2>&1; then echo "access|yes"; fi
            echo end
            """,
            record,
            *paths,
        )

    def process(self, output: Sequence[str]) -> QuietState:
        parts = _parted(output, "absent", "indexed", "included", "record", "access")
        recorded = tuple((what, path) for what, _, path in (line.partition(" ") for line in parts["record"]))
        return QuietState(
            tuple(parts["absent"]),
            tuple(parts["indexed"]),
            tuple(parts["included"]),
            recorded,
            bool(parts["access"]),
        )


@dataclass(frozen=True)
class SharingState:
    """Whether Screen Sharing is `loaded` and may be (`enabled`), and whether boxwright switched it on (`ours`)."""

    loaded: bool
    enabled: bool
    ours: bool


def parse_disabled(lines: Sequence[str]) -> dict[str, bool]:
    """What `launchctl print-disabled system` lists: the labels, and whether each is disabled. Until macOS 12 it said
    `=> true` for that; a label without a row has the setting of its own file.
    """
    rows = re.findall(r'"([^"]+)" => (disabled|enabled|true|false)', "\n".join(lines))
    return {label: said in ("disabled", "true") for label, said in rows}


class ScreenSharing(Fact[SharingState]):
    """The `SharingState` of a Mac; `record` is the file in which boxwright notes that it switched it on."""

    def command(self, record: str) -> StringCommand:
        return script(
            """
            launchctl print "system/$2" >/dev/null 2>&1
            echo "loaded|$?"
            said=$(launchctl print-disabled system) || exit 1
            printf '%s\\n' "$said" | sed 's/^/disabled|/'
            if [ -e "$1" ]; then echo "record|yes"; fi
            echo end
            """,
            record,
            SCREEN_SHARING,
        )

    def process(self, output: Sequence[str]) -> SharingState:
        parts = _parted(output, "loaded", "disabled", "record")
        # 113 is the one answer that says that it is not loaded; any other failure says nothing.
        loaded: dict[str, Literal[True, False]] = {"0": True, "113": False}
        if (status := "".join(parts["loaded"])) not in loaded:
            raise FactProcessError(f"launchctl print ended with {status}")
        # Apple's own file for it says Disabled.
        disabled = parse_disabled(parts["disabled"]).get(SCREEN_SHARING, True)
        return SharingState(loaded[status], not disabled, bool(parts["record"]))


class WiredLimit(Fact[Settings]):
    """The limit of memory for the graphics processor, in MB; no value where the Mac has no such setting (a virtual one,
    or one with an Intel processor).
    """

    def command(self, record: str) -> StringCommand:
        return script(
            """
            if value=$(sysctl -n "$2" 2>/dev/null); then echo "value|$value"; fi
            if [ -e "$1" ]; then sed 's/^/record|/' "$1" || exit 1; fi
            echo end
            """,
            record,
            WIRED_LIMIT,
        )

    def process(self, output: Sequence[str]) -> Settings:
        parts = _parted(output, "value", "record")
        value = "".join(parts["value"]).strip()
        return Settings({WIRED_LIMIT: value} if value else {}, parse_recorded(parts["record"]))
