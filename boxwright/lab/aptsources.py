"""Where this machine gets Debian packages from, read from its own apt settings, for the boxes to use the same.

Pure except for `read_sources` and `proxies`. A site with a mirror of its own needs no setting: what apt on the machine
uses, the boxes use.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ETC_APT = Path("/etc/apt")


@dataclass(frozen=True)
class Source:
    """One binary package source: address, suite, components, and the keyring file it names (None: apt's default)."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None


@dataclass(frozen=True)
class Archive:
    """The Debian archive as this machine reaches it. `uri` None means: mmdebstrap's own default address.

    `security_uri` is None where the machine has no separate security source. `keyring` is a key file that is not among
    Debian's own (a re-signed mirror), None otherwise.
    """

    uri: str | None
    security_uri: str | None = None
    keyring: str | None = None


def parse_one_line(text: str) -> list[Source]:
    """The `deb` lines of a sources.list; comments, `deb-src` and lines that apt would refuse are left out."""
    found = []
    for line in text.splitlines():
        line = line.split("#", 1)[0].strip()
        match = re.fullmatch(
            r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)", line
        )
        if match is None:
            continue
        options = dict(part.split("=", 1) for part in shlex.split(match["options"] or "") if "=" in part)
        found.append(
            Source(
                match["uri"].rstrip("/"), match["suite"], tuple(match["components"].split()), options.get("signed-by")
            )
        )
    return found


def parse_deb822(text: str) -> list[Source]:
    """The enabled `deb` stanzas of a .sources file, one `Source` per address and suite."""
    found = []
    for stanza in re.split(r"\n\s*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')}\n{line.strip()}"
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        signed_by = fields.get("signed-by", "").strip()
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                # A key written into the stanza itself is not a file that could be handed on.
                keyring = signed_by if signed_by.startswith("/") else None
                found.append(Source(uri.rstrip("/"), suite, tuple(fields.get("components", "").split()), keyring))
    return found


def read_sources(etc_apt: Path = ETC_APT) -> list[Source]:
    """All binary sources that are set on this machine."""
    found = []
    for path in [etc_apt / "sources.list", *sorted(etc_apt.glob("sources.list.d/*"))]:
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".list":
            found += parse_one_line(text)
        elif path.suffix == ".sources":
            found += parse_deb822(text)
    return found


def archive(sources: Iterable[Source], distribution: str, codename: str) -> Archive:
    """The Debian archive behind `sources`, for a machine whose os-release says `distribution` and `codename`.

    Only on Debian itself do a machine's sources say where Debian is; elsewhere (Ubuntu) `uri` is None.
    """
    if distribution != "debian":
        return Archive(uri=None)
    listed = [source for source in sources if "main" in source.components]
    main = next((source for source in listed if source.suite in (codename, "stable", "testing", "sid")), None)
    if main is None:
        return Archive(uri=None)
    security = next((source for source in listed if source.suite in (f"{codename}-security", "stable-security")), None)
    keyring = main.signed_by
    if keyring is not None and Path(keyring).name.startswith("debian-archive-"):
        keyring = None
    return Archive(main.uri, security.uri if security else None, keyring)


def sources_list(found: Archive, suite: str) -> str:
    """A sources.list for Debian `suite` (trixie, bookworm); empty when the archive's address is unknown."""
    if found.uri is None:
        return ""
    option = f"[signed-by={found.keyring}] " if found.keyring else ""
    lines = [f"deb {option}{found.uri} {suite} main", f"deb {option}{found.uri} {suite}-updates main"]
    if found.security_uri:
        lines.append(f"deb {option}{found.security_uri} {suite}-security main")
    return "".join(f"{line}\n" for line in lines)


def proxies(dump: str | None = None) -> list[str]:
    """The machine's apt proxy settings as apt.conf lines. `dump` is the text of `apt-config dump`, asked for when None.

    A proxy on the machine's own loopback is left out: a box could not reach it there.
    """
    if dump is None:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    lines = re.findall(r'^Acquire::https?::[Pp]roxy\s+"[^"]+";$', dump, flags=re.MULTILINE)
    return [line for line in lines if not re.search(r"//(localhost|127\.|\[::1\])", line)]
