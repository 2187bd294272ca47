"""Reads package repositories: keys, signed lists, and which packages others need. Pure, but for `verified`."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

Paragraph = Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """A file that signed lists name: its path, bytes and SHA-256."""

    path: str
    size: int
    sha256: str


def paragraphs(text: str) -> Iterator[Paragraph]:
    """The paragraphs of a control file (deb822(5)): names of fields in lower case, lines joined by \\n."""
    for block in re.split(r"\n\s*\n", text):
        found: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t") and key:
                found[key] += "\n" + line.strip()
            elif ":" in line and not line.startswith("#"):
                key, _, value = line.partition(":")
                key = key.lower()
                found[key] = value.strip()
        if found:
            yield found


def released(text: str) -> dict[str, Entry]:
    """The lists that a Release or InRelease file names under SHA256, by path. Raises ValueError when it names none."""
    body = re.sub(r"\A-----BEGIN PGP SIGNED MESSAGE-----\r?\n(?:Hash:.*\r?\n)*\r?\n", "", text)
    body = body.partition("-----BEGIN PGP SIGNATURE-----")[0]
    for paragraph in paragraphs(body):
        lines = [line.split() for line in paragraph.get("sha256", "").splitlines() if line.strip()]
        found = {
            parts[2]: Entry(parts[2], int(parts[1]), parts[0])
            for parts in lines
            if len(parts) == 3 and re.fullmatch(r"[0-9a-f]{64}", parts[0]) and parts[1].isdigit()
        }
        if found:
            return found
    raise ValueError("it names no lists with SHA-256")


def _order(character: str) -> int:
    # deb-version(7): a tilde before the end, the end before letters, letters before the rest.
    return -1 if character == "~" else 0 if not character else ord(character) + (0 if character.isalpha() else 256)


def _compare_part(left: str, right: str) -> int:
    while left or right:
        text_left, text_right = (re.match(r"\D*", part) for part in (left, right))
        words = (text_left.group() if text_left else "", text_right.group() if text_right else "")
        for index in range(max(map(len, words))):
            one, other = (_order(word[index : index + 1]) for word in words)
            if one != other:
                return -1 if one < other else 1
        left, right = left[len(words[0]) :], right[len(words[1]) :]
        digits = [re.match(r"\d*", part) for part in (left, right)]
        numbers = [match.group() if match else "" for match in digits]
        if (a := int(numbers[0] or 0)) != (b := int(numbers[1] or 0)):
            return -1 if a < b else 1
        left, right = left[len(numbers[0]) :], right[len(numbers[1]) :]
    return 0


def compare(left: str, right: str) -> int:
    """-1, 0 or 1 as the version `left` is older than `right`, equal or newer: deb-version(7)."""

    def split(version: str) -> tuple[int, str, str]:
        epoch, colon, rest = version.partition(":")
        if not colon:
            epoch, rest = "0", version
        upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
        return int(epoch), upstream, revision

    one, other = split(left), split(right)
    if one[0] != other[0]:
        return -1 if one[0] < other[0] else 1
    return _compare_part(one[1], other[1]) or _compare_part(one[2], other[2])


def newest(index: Iterable[Paragraph]) -> dict[str, Paragraph]:
    """The newest version of each package of a Packages file."""
    found: dict[str, list[Paragraph]] = {}
    for paragraph in index:
        if {"package", "version", "filename", "size", "sha256"} <= set(paragraph):
            found.setdefault(paragraph["package"], []).append(paragraph)
    key = cmp_to_key(compare)
    return {name: max(several, key=lambda one: key(one["version"])) for name, several in found.items()}


def needed(names: Iterable[str], index: Iterable[Paragraph]) -> list[Paragraph]:
    """The packages `names` of a repository with what they depend on in it: the newest of each.

    What the repository does not have is the distribution's to give; of alternatives the first one that it has is taken.
    `names` may say a version (`name=version`). Raises KeyError with the name that the repository does not have.
    """
    index = list(index)
    latest = newest(index)
    pinned = dict(name.split("=", 1) for name in names if "=" in name)
    for name, version in pinned.items():
        exact = [one for one in index if one.get("package") == name and one.get("version") == version]
        if not exact:
            raise KeyError(f"{name}={version}")
        latest.update(newest(exact))
    found: dict[str, Paragraph] = {}
    todo = [name.partition("=")[0] for name in names]
    for name in todo:
        if name not in latest:
            raise KeyError(name)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        package = found[name] = latest[name]
        depends = ", ".join(package[key] for key in ("pre-depends", "depends") if key in package)
        for group in depends.split(","):
            alternatives = [re.split(r"[\s(:\[]", one.strip(), maxsplit=1)[0] for one in group.split("|")]
            todo += [one for one in alternatives if one in latest][:1]
    return [found[name] for name in sorted(found)]


def keys(data: bytes) -> dict[str, bytes]:
    """The primary keys of an OpenPGP key file, binary or armored: fingerprint (40 hexadecimal digits) to the key.

    Only keys of version 4 have such a fingerprint (RFC 9580, section 5.5.4.2). Raises ValueError for other data.
    """
    if b"-----BEGIN PGP PUBLIC KEY BLOCK-----" in data:
        data = b"".join(
            base64.b64decode("".join(line for line in block.split("\n\n", 1)[-1].splitlines() if line[:1] != "="))
            for block in re.findall(
                r"-----BEGIN PGP PUBLIC KEY BLOCK-----\n(.*?)\n?-----END", data.decode("ascii").replace("\r", ""), re.S
            )
        )
    found: dict[str, bytes] = {}
    at, print_, start = 0, "", 0
    while at < len(data):
        begin, tag, body = at, *_packet(data, at)
        at = body[1]
        if begin == 0 and tag != 6:
            break
        if tag == 6:
            if print_:
                found[print_] = data[start:begin]
            content = data[body[0] : body[1]]
            start = begin
            print_ = ""
            if content[:1] == b"\x04":
                head = b"\x99" + len(content).to_bytes(2, "big")
                print_ = hashlib.sha1(head + content, usedforsecurity=False).hexdigest().upper()
    if print_:
        found[print_] = data[start:]
    if not found:
        raise ValueError("not an OpenPGP key")
    return found


def _packet(data: bytes, at: int) -> tuple[int, tuple[int, int]]:
    """Tag of the packet that begins at `at`, and where its content begins and ends: RFC 9580, section 4.2."""
    try:
        head = data[at]
        if head >= 192:
            tag, size, width = head - 192, data[at + 1], 1
            if 192 <= size < 224:
                size, width = (size - 192) * 256 + data[at + 2] + 192, 2
            elif size == 255:
                size, width = int.from_bytes(data[at + 2 : at + 6], "big"), 5
            elif size >= 224:
                raise ValueError("not an OpenPGP key: it comes in pieces")
        elif head >= 128 and head % 4 < 3:
            tag, width = (head - 128) // 4, 2 ** (head % 4)
            size = int.from_bytes(data[at + 1 : at + 1 + width], "big")
        else:
            raise ValueError("not an OpenPGP key")
    except IndexError:
        raise ValueError("an OpenPGP key that is cut off") from None
    begin = at + 1 + width
    if begin + size > len(data):
        raise ValueError("an OpenPGP key that is cut off")
    return tag, (begin, begin + size)


def verified(signed: bytes, key: bytes) -> str:
    """Empty when gpgv says that the InRelease text `signed` is signed with `key` (binary), else what it says.

    Raises FileNotFoundError where there is no gpgv on this machine.
    """
    program = shutil.which("gpgv")
    if program is None:
        raise FileNotFoundError("gpgv")
    with tempfile.TemporaryDirectory() as folder:
        keyring, text = Path(folder, "key.gpg"), Path(folder, "InRelease")
        keyring.write_bytes(key)
        text.write_bytes(signed)
        done = subprocess.run(
            [program, "--homedir", folder, "--keyring", str(keyring), str(text)],
            capture_output=True,
            text=True,
            check=False,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        )
    # Several signatures may be there, of which one is the key's: gpgv then ends with 2 and names the good one.
    return "" if "Good signature" in done.stderr and "BAD signature" not in done.stderr else done.stderr.strip()
