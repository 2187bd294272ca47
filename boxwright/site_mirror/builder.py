"""Fills a folder with what boxes fetch: sizes first, then the files, each checked before it has its name.

What is complete is noted in `.boxwright-mirror.json` beside it with size and modification time, so that a second run
reads no file of many gigabytes again, and sees one that somebody changed. Bytes arrive in `<name>.part`, from which an
interrupted run goes on.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import requests

from boxwright.artifacts import AptRepository, Download, Wheel
from boxwright.artifacts import requirements as requirements_file
from boxwright.errors import Problem, Refused
from boxwright.lab import machine, wheels
from boxwright.paths import state_dir
from boxwright.site_mirror import debian, images
from boxwright.site_mirror.items import FETCH_HELP, TIMEOUT, Item, failed
from boxwright.site_mirror.supply import Packages, Target, Wanted
from boxwright.sizes import human

NOTES = ".boxwright-mirror.json"
# How apt's lists may be packed; apt takes the first of its own order that the Release file names.
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.decompress,
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    "": bytes,
}
TRIES = 3


@dataclass(frozen=True)
class Plan:
    """What a mirror shall hold. `images` are those that it leaves to the site's registry."""

    items: tuple[Item, ...]
    wheels: tuple[tuple[Target, tuple[Wheel, ...]], ...]
    images: tuple[str, ...]
    missing: frozenset[str]
    remarks: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of everything, as far as it is known."""
        return sum(item.size or 0 for item in self.items)

    @property
    def to_fetch(self) -> int:
        """Bytes that are not there yet, as far as they are known."""
        return sum(item.size or 0 for item in self.items if item.path in self.missing)


def digest_of(path: Path, kind: str) -> str:
    """SHA-256 or SHA-512 of a file, hexadecimal; `kind` is a digest of that length."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha512" if len(kind) == 128 else "sha256").hexdigest()


class Notes:
    """What of a mirror's folder was seen to be right, by path: size, modification time (ns) and digest."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NOTES
        try:
            self.known: dict[str, list[object]] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def right(self, path: str, digest: str, read: bool = False) -> bool:
        """Whether the file at `path` has `digest`; it is read when it is not as it was noted, or with `read`."""
        place = self.folder / path
        if not place.is_file():
            return False
        status = place.stat()
        seen = [status.st_size, status.st_mtime_ns, digest]
        if self.known.get(path) == seen and not read:
            return True
        if digest_of(place, digest) != digest:
            return False
        self.note(path, digest)
        return True

    def note(self, path: str, digest: str) -> None:
        """The file at `path` was seen to have `digest`."""
        status = (self.folder / path).stat()
        self.known[path] = [status.st_size, status.st_mtime_ns, digest]

    def keep(self) -> None:
        """Write the notes, atomically."""
        _write(self.path, json.dumps(self.known, indent=0, sort_keys=True).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.chmod(0o644)
    temporary.replace(path)


class Site:
    """The folder of a mirror, and how it is filled. `say` is given a line now and then."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.say = folder, say
        self.notes = Notes(folder)
        self.session = requests.Session()
        self.tokens = images.Tokens()

    # What there is to fetch

    def plan(self, wanted: Wanted, read: bool = False, with_images: bool = True) -> Plan:
        """Every file with its size; asks publishers for lists and sizes, and writes nothing.

        `read` reads every file that is there again. Raises Failed (BW163, BW164, BW166).
        """
        items: dict[str, Item] = {}
        remarks: list[str] = []
        for file in wanted.common.files:
            path = _path(file.url)
            size = file.size or self._size(path, file.digest, file.url)
            items[path] = Item("file", _called(file), path, file.url, file.digest, size, token=file.token)
        for packages in wanted.common.packages:
            for item in self._repository(packages, remarks):
                items.setdefault(item.path, item)
        for target, wheels_of_target in wanted.wheels.items():
            for item in self._wheels(target, wheels_of_target):
                items.setdefault(item.path, item)
        for reference in wanted.common.images if with_images else ():
            for item in images.items(self.session, self.tokens, reference, wanted.architectures):
                items.setdefault(item.path, item)
        found = tuple(items.values())
        missing = frozenset(item.path for item in found if not self._there(item, read))
        asked = tuple((target, several) for target, several in wanted.wheels.items() if several)
        left = () if with_images else wanted.common.images
        return Plan(found, asked, left, missing, tuple(dict.fromkeys(remarks)))

    def _there(self, item: Item, read: bool) -> bool:
        if item.text is not None:
            place = self.folder / item.path
            return place.is_file() and place.read_bytes() == item.text
        return self.notes.right(item.path, item.digest, read)

    def _get(self, url: str, what: str, optional: bool = False) -> bytes | None:
        """The content at `url`, which is small; None when it is `optional` and not there."""
        try:
            answer = self.session.get(url, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise failed("BW163", f"{what} cannot be fetched from {url}: {error}", FETCH_HELP) from None
        if optional and answer.status_code in (403, 404):
            return None
        if answer.status_code != 200:
            raise failed("BW163", f"{what} cannot be fetched from {url}: HTTP {answer.status_code}", FETCH_HELP)
        return answer.content

    def _repository(self, packages: Packages, remarks: list[str]) -> list[Item]:
        """The publisher's signed lists as they are, its key, and of its packages those that are needed."""
        repository, name = packages.repository, packages.repository.name
        key = self._get(repository.key_url, f"the key of {name}") or b""
        signed, lists = self._signed(repository, key, remarks)
        found = [Item("key", f"key of {name}", _path(repository.key_url), size=len(key), text=key)]
        index: list[debian.Paragraph] = []
        for stem in _stems(repository, packages.architecture):
            texts = self._list(repository, stem, lists)
            for entry, text in texts.items():
                path = f"{_base(repository)}/{entry.path}"
                found.append(Item("list", f"{name}: {entry.path}", _path(path), size=len(text), text=text))
                # Where the Release file says so, apt asks for a list by its digest.
                by_hash = f"{path.rpartition('/')[0]}/by-hash/SHA256/{entry.sha256}"
                found.append(Item("list", f"{name}: {entry.path}", _path(by_hash), size=len(text), text=text))
            if texts and "/Translation" not in stem:
                entry, text = next(iter(texts.items()))
                index += debian.paragraphs(UNPACK[Path(entry.path).suffix if "." in entry.path else ""](text).decode())
        try:
            chosen = debian.needed(packages.names, index)
        except KeyError as error:
            raise failed(
                "BW164",
                f"the package repository {name} has no package {error.args[0]} for {packages.architecture}",
                "name another version, or release, or leave the role out of this mirror",
            ) from None
        for package in chosen:
            url = f"{repository.url}/{package['filename']}"
            label = f"{package['package']} {package['version']}"
            found.append(Item("package", label, _path(url), url, package["sha256"], int(package["size"])))
        # Last: whoever reads it finds everything that it names.
        release = f"{_base(repository)}/InRelease"
        found.append(Item("list", f"{name}: InRelease", _path(release), size=len(signed), text=signed))
        return found

    def _signed(
        self, repository: AptRepository, key: bytes, remarks: list[str]
    ) -> tuple[bytes, dict[str, debian.Entry]]:
        """The InRelease file, signed with the pinned key, and the lists that it names."""
        name = repository.name
        try:
            keys = debian.keys(key)
        except ValueError as error:
            raise failed("BW164", f"{repository.key_url} is {error}", _KEY_HELP) from None
        if (pinned := keys.get(repository.key_fingerprint)) is None:
            raise failed(
                "BW164",
                f"{repository.key_url} holds another key than the pinned one of {name}: expected "
                f"{repository.key_fingerprint}, found {', '.join(keys)}",
                _KEY_HELP,
            )
        signed = self._get(f"{_base(repository)}/InRelease", f"the signed lists of {name}") or b""
        try:
            if wrong := debian.verified(signed, pinned):
                raise failed("BW164", f"the lists of {name} are not signed with its key: {wrong}", _KEY_HELP)
        except FileNotFoundError:
            remarks.append(
                "gpgv is not installed here: signatures of package repositories are checked by the boxes alone"
            )
        try:
            return signed, debian.released(signed.decode())
        except ValueError as error:
            raise failed("BW164", f"the signed lists of {name} cannot be used: {error}", FETCH_HELP) from None

    def _list(self, repository: AptRepository, stem: str, lists: dict[str, debian.Entry]) -> dict[debian.Entry, bytes]:
        """A list in every form that the repository hands out."""
        found: dict[debian.Entry, bytes] = {}
        for suffix in UNPACK:
            if (entry := lists.get(stem + suffix)) is None:
                continue
            text = self._get(f"{_base(repository)}/{entry.path}", f"{stem} of {repository.name}", optional=True)
            if text is None:  # an unpacked list is often named, and handed out by nobody
                continue
            if hashlib.sha256(text).hexdigest() != entry.sha256:
                raise failed(
                    "BW164",
                    f"{entry.path} of {repository.name} is not the one that its signed lists name",
                    "they are just being replaced, or were altered: try again in a few minutes",
                )
            found[entry] = text
        if not found and stem.endswith("/Packages") and "binary-all" not in stem:
            raise failed("BW164", f"{repository.name} hands out no {stem}", FETCH_HELP)
        return found

    def _wheels(self, target: Target, wanted: Sequence[Wheel]) -> list[Item]:
        """The wheels that pip would take for `target`, as its index names them."""
        if not wanted:
            return []
        with tempfile.TemporaryDirectory(prefix="boxwright-mirror-") as folder:
            report = Path(folder, "report.json")
            command = [
                *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps"),
                *("--require-hashes", "--report", str(report), "--target", str(Path(folder, "nowhere"))),
                *wheels.for_python(target.python, target.glibc, target.architecture),
            ]
            self._pip(command, wanted, folder, f"asking for the wheels of {target.release}")
            told = json.loads(report.read_text(encoding="utf-8"))["install"]
        found = []
        for one in told:
            info, meta = one["download_info"], one["metadata"]
            digest = info["archive_info"]["hashes"]["sha256"]
            name = info["url"].partition("#")[0].rpartition("/")[2].partition("?")[0]
            path = f"wheels/{unquote(name)}"
            size = self._size(path, digest, info["url"])
            found.append(Item("wheel", f"{meta['name']} {meta['version']}", path, digest=digest, size=size))
        return found

    def _size(self, path: str, digest: str, url: str) -> int | None:
        """Of the right file that is there, else what the server of `url` says of it; None when it does not."""
        if self.notes.right(path, digest):
            return (self.folder / path).stat().st_size
        if url.startswith("file://"):
            return Path(unquote(url.removeprefix("file://"))).stat().st_size
        try:
            answer = self.session.head(url, timeout=TIMEOUT, allow_redirects=True)
        except requests.RequestException:
            return None
        length = answer.headers.get("Content-Length", "")
        return int(length) if answer.status_code == 200 and length.isdigit() else None

    @staticmethod
    def _pip(command: Sequence[str], wanted: Sequence[Wheel], folder: str, what: str) -> None:
        listed = Path(folder, "requirements.txt")
        listed.write_text(requirements_file(wanted), encoding="utf-8")
        log = state_dir() / "log" / "mirror-pip.log"
        machine.run([*command, "--requirement", str(listed)], what=what, log=log, environment=wheels.PIP, code="BW163")

    # Fetching it

    def require_space(self, plan: Plan) -> None:
        """Raise Refused (BW162) when the disk has too little room for what is missing; a tenth stays free."""
        free = machine.free_bytes(self.folder)
        if plan.to_fetch * 1.1 > free:
            raise Refused(
                Problem(
                    code="BW162",
                    message=f"{human(plan.to_fetch)} are to be fetched, and {human(free)} are free in {self.folder}",
                    help="free some space, name a folder on another disk, or fewer boxes with --limit",
                )
            )

    def fill(self, plan: Plan) -> int:
        """Fetch what is missing of `plan`; the number of files. Raises Failed (BW163).

        What was fetched before an interruption stays, and counts.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        todo = [item for item in plan.items if item.path in plan.missing]
        try:
            for item in todo:
                if item.text is not None or item.kind == "wheel":
                    continue
                self.say(f"{item.name}: {human(item.size)}")
                self._download(item)
                self.notes.note(item.path, item.digest)
                self.notes.keep()
            self._fill_wheels(plan)
            # Lists after the packages that they name, and the signed ones, which name them, last; so is an image's tag.
            for item in sorted(todo, key=lambda one: one.path.endswith(("/InRelease", "/current/link"))):
                if item.text is not None:
                    _write(self.folder / item.path, item.text)
        finally:
            self.notes.keep()
        return len(todo)

    def _fill_wheels(self, plan: Plan) -> None:
        wanted = {item.path: item for item in plan.items if item.kind == "wheel"}
        if not wanted:
            return
        missing = {item.digest for path, item in wanted.items() if path in plan.missing}
        place = self.folder / "wheels"
        place.mkdir(exist_ok=True)
        for target, several in plan.wheels:
            asked = [wheel for wheel in several if missing & set(wheel.sha256.values())]
            if not asked:
                continue
            self.say(f"{len(asked)} wheels for {target.release}")
            with tempfile.TemporaryDirectory(prefix=".part-", dir=place) as folder:
                command = [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, "--no-deps"),
                    *("--require-hashes", *wheels.for_python(target.python, target.glibc, target.architecture)),
                ]
                self._pip(command, asked, folder, f"downloading the wheels of {target.release}")
                for made in Path(folder).glob("*.whl"):
                    made.chmod(0o644)
                    made.replace(place / made.name)
        for path, item in wanted.items():
            if not self.notes.right(path, item.digest):
                raise failed("BW163", f"pip did not fetch {path} as the list of wheels names it", FETCH_HELP)
        present = {
            path.name: wheels.sha256_of(path) for path in place.glob("*.whl") if f"wheels/{path.name}" not in wanted
        }
        wheels.write_index(place, {**present, **{Path(path).name: item.digest for path, item in wanted.items()}})

    def _download(self, item: Item) -> None:
        """`item` at its place, by way of `<name>.part`, from which an interrupted one goes on."""
        place = self.folder / item.path
        part = place.with_name(place.name + ".part")
        place.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.exists()
        for turn in range(TRIES):
            self._receive(item, part)
            found = digest_of(part, item.digest)
            if found == item.digest:
                part.chmod(0o644)
                part.replace(place)
                return
            size = part.stat().st_size
            part.unlink()
            # What was left of an earlier run may belong to another file: once more, from the start.
            if not (resumed and turn == 0):
                break
        raise failed(
            "BW163",
            f"{item.name} has the wrong checksum and was not used: {item.url}: expected {item.digest} "
            f"({item.size} bytes), found {found} ({size} bytes)",
            "the published file was replaced, or something on the way alters it; correct its checksum if the new one "
            "is to be trusted",
        )

    def _receive(self, item: Item, part: Path) -> None:
        """Bytes into `part` until all are there, going on after interruptions as long as some arrive."""
        tries = 0
        while not part.exists() or part.stat().st_size < (item.size or 0):
            before = part.stat().st_size if part.exists() else 0
            headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={before}-"} if before else {})}
            if item.token:
                headers["Authorization"] = f"Bearer {item.token}"
            said = "the connection ended early"
            try:
                auth = self.tokens if item.kind == "image" else None
                with self.session.get(item.url, headers=headers, auth=auth, stream=True, timeout=TIMEOUT) as answer:
                    if answer.status_code == 416 or (before and answer.status_code == 200):
                        part.unlink(missing_ok=True)
                        before = 0
                    elif answer.status_code not in (200, 206):
                        raise failed(
                            "BW163",
                            f"{item.name} cannot be fetched from {item.url}: HTTP {answer.status_code}",
                            "it wants a token, or its terms to be accepted by the token's owner"
                            if answer.status_code in (401, 403)
                            else FETCH_HELP,
                        )
                    if answer.status_code != 416:
                        with part.open("ab") as handle:
                            for chunk in answer.iter_content(1 << 16):
                                handle.write(chunk)
                                if item.size is not None and handle.tell() > item.size:
                                    break
            except requests.RequestException as error:
                said = str(error)
            arrived = part.stat().st_size if part.exists() else 0
            tries = 0 if arrived > before else tries + 1
            if tries >= TRIES:
                raise failed("BW163", f"{item.name} cannot be fetched from {item.url}: {said}", FETCH_HELP)
            if item.size is None and arrived:
                return


_KEY_HELP = (
    "whoever can replace a key can replace the packages: find out from the publisher why it changed, then correct the "
    "fingerprint that is pinned"
)


def _path(url: str) -> str:
    """Where a mirror's folder holds what is published at `url`."""
    return str(wheels.mirrored(url, Path())).removeprefix("./")


def _called(file: Download) -> str:
    """What a file is called in the list: also by the name that it is published under."""
    published = _path(file.url).rpartition("/")[2]
    return file.name if published in file.name else f"{file.name}: {published}"


def _base(repository: AptRepository) -> str:
    """Address of the folder with the signed lists."""
    url = repository.url.rstrip("/")
    return (
        f"{url}/{repository.suite.strip('/')}" if repository.suite.endswith("/") else f"{url}/dists/{repository.suite}"
    )


def _stems(repository: AptRepository, architecture: str) -> Iterable[str]:
    """The lists that apt reads, without the ending that says how they are packed."""
    if repository.suite.endswith("/"):
        return ["Packages"]
    return [
        stem
        for component in repository.components
        for stem in (
            f"{component}/binary-{architecture}/Packages",
            f"{component}/binary-all/Packages",
            f"{component}/i18n/Translation-en",
        )
    ]


# Kinds whose files interest nobody one by one.
_TOGETHER = {"list": "lists of package repositories", "key": "keys of package repositories"}


def table(plan: Plan) -> list[str]:
    """The plan for people: one line each, the largest first, then what it comes to."""
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in plan.items:
        groups.setdefault((item.kind, _TOGETHER.get(item.kind, item.name)), []).append(item)
    sizes = {key: sum(item.size or 0 for item in several) for key, several in groups.items()}
    rows = []
    for key in sorted(groups, key=lambda key: (key[0] in _TOGETHER, -sizes[key])):
        several = groups[key]
        known = any(item.size is not None for item in several)
        number = f" ({len(several)})" if key[0] in _TOGETHER else ""
        there = "" if any(item.path in plan.missing for item in several) else "there"
        rows.append((key[0], f"{key[1]}{number}", human(sizes[key] if known else None), there))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [
        f"{kind:<{widths[0]}}  {name:<{widths[1]}}  {size:>{widths[2]}}  {there}".rstrip()
        for kind, name, size, there in rows
    ]
    unknown = sum(1 for item in plan.items if item.size is None)
    more = f" and {unknown} of unknown size" if unknown else ""
    return [*lines, f"in all {human(plan.bytes)}{more}, to fetch {human(plan.to_fetch)}"]
