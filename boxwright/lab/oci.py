"""Container images without an engine: layers, image configuration, manifest, and the folders of a registry.

Building an image with an engine, pushing it and compressing it on the way took 150 s for Open WebUI; a layer is just a
tar file and a manifest just JSON, so the lab writes both where the registry looks for them. Formats: the OCI image
specification 1.0 (config.md, manifest.md) and the storage paths of the `distribution` registry 2
(registry/storage/paths.go).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
# Every time in an image is this one, so that the same input gives the same digest.
EPOCH = "1970-01-01T00:00:00Z"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A finished blob: its SHA-256 as 64 hexadecimal digits, and its length in bytes."""

    sha256: str
    size: int

    @property
    def digest(self) -> str:
        """As manifests write it."""
        return f"sha256:{self.sha256}"


@dataclass(frozen=True)
class ImageConfig:
    """How a container starts: fields of the OCI image configuration, and `health`, Docker's addition to it."""

    architecture: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = "/"
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    user: str = ""
    health: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


def config_json(config: ImageConfig, layers: Sequence[Blob]) -> bytes:
    """The image configuration. The layers are uncompressed, so their digests are also their content's."""
    run: dict[str, Any] = {
        "Cmd": list(config.command),
        "Env": [f"{name}={value}" for name, value in config.environment.items()],
        "WorkingDir": config.working_dir,
        "ExposedPorts": {port: {} for port in config.ports},
        "Labels": dict(config.labels),
        "User": config.user,
    }
    if config.volumes:
        run["Volumes"] = {path: {} for path in config.volumes}
    if config.health:
        run["Healthcheck"] = {"Test": list(config.health)}
    return _canonical(
        {
            "architecture": config.architecture,
            "os": "linux",
            "created": EPOCH,
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            "history": [{"created": EPOCH, "created_by": "boxwright lab"} for _ in layers],
        }
    )


def manifest_json(config: Blob, layers: Sequence[Blob]) -> bytes:
    """The image manifest over a configuration and its layers, lowest first."""
    return _canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config.digest, "size": config.size},
            "layers": [{"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size} for layer in layers],
        }
    )


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def balanced(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """The names in at most `parts` groups of about the same total size; the same for the same input."""
    groups: list[tuple[int, list[str]]] = [(0, []) for _ in range(parts)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        smallest = min(range(parts), key=lambda index: groups[index][0])
        total, members = groups[smallest]
        groups[smallest] = (total + sizes[name], [*members, name])
    return [sorted(members) for _, members in groups if members]


_REFERENCE = re.compile(r"(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*):(?P<tag>[\w][\w.-]{0,127})")


class Registry:
    """The folder of a registry: `root` is what its configuration calls `rootdirectory`.

    Every file appears complete or not at all, and a tag only after all that it leads to.
    """

    def __init__(self, root: Path) -> None:
        self._base = root / "docker" / "registry" / "v2"

    def blob_path(self, sha256: str) -> Path:
        """Where a blob lies."""
        return self._base / "blobs" / "sha256" / sha256[:2] / sha256 / "data"

    def temporary(self, name: str) -> Path:
        """A path on the same file system for a blob that is still being written."""
        folder = self._base.parents[2] / "partial"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.{os.getpid()}"

    def add_bytes(self, data: bytes) -> Blob:
        """Store a small blob (configuration, manifest)."""
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        path = self.temporary(blob.sha256[:16])
        path.write_bytes(data)
        return self._settle(path, blob)

    def add_file(self, source: Path) -> Blob:
        """Store a copy of a file, as a hard link where the file systems allow it."""
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as handle:
            while chunk := handle.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
        blob = Blob(digest.hexdigest(), size)
        path = self.temporary(blob.sha256[:16])
        path.unlink(missing_ok=True)
        try:
            os.link(source, path)
        except OSError:
            path.write_bytes(source.read_bytes())
        return self._settle(path, blob)

    def add_tar(self, command: Sequence[str], name: str) -> Blob:
        """Store what a command (GNU tar) writes to its standard output, hashed on the way.

        Raises RuntimeError with the command's words when it fails.
        """
        path = self.temporary(name)
        digest, size = hashlib.sha256(), 0
        with (
            path.open("wb") as target,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        ):
            if process.stdout is None or process.stderr is None:
                raise RuntimeError("pipes were asked for")  # what Popen promises
            while chunk := process.stdout.read(CHUNK):
                digest.update(chunk)
                target.write(chunk)
                size += len(chunk)
            complaint = process.stderr.read().decode(errors="replace").strip()
        if process.returncode != 0:
            path.unlink()
            raise RuntimeError(f"{command[0]} ended with status {process.returncode}: {complaint}")
        return self._settle(path, Blob(digest.hexdigest(), size))

    def _settle(self, path: Path, blob: Blob) -> Blob:
        final = self.blob_path(blob.sha256)
        final.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o644)
        path.rename(final)
        return blob

    def publish(self, reference: str, config: ImageConfig, layers: Sequence[Blob]) -> Blob:
        """Make stored layers an image named `reference` (name:tag); its manifest. Raises ValueError for a bad name."""
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise ValueError(f"{reference!r} is not an image name with a tag")
        config_blob = self.add_bytes(config_json(config, layers))
        manifest = self.add_bytes(manifest_json(config_blob, layers))
        for path, blob in self.links(match["name"], match["tag"], manifest, [manifest], [*layers, config_blob]).items():
            _link(path, blob)
        return manifest

    def links(
        self, name: str, tag: str, top: Blob, manifests: Sequence[Blob], parts: Sequence[Blob]
    ) -> dict[Path, Blob]:
        """The files that lead to an image, in the order in which they must appear: each holds the digest of its blob.

        `top` is the manifest that the tag names, `parts` are layers and configurations.
        """
        repository = self._base / "repositories" / name
        revisions, tagged = repository / "_manifests/revisions/sha256", repository / "_manifests/tags" / tag
        return {
            **{repository / "_layers/sha256" / blob.sha256 / "link": blob for blob in parts},
            **{revisions / blob.sha256 / "link": blob for blob in manifests},
            tagged / "index/sha256" / top.sha256 / "link": top,
            tagged / "current/link": top,
        }

    def prune(self) -> None:
        """Delete the blobs that no tag leads to: those of images that were published again with other content."""
        kept: set[str] = set()
        for link in self._base.glob("repositories/**/_manifests/tags/*/current/link"):
            sha256 = link.read_text(encoding="ascii").removeprefix("sha256:")
            manifest = json.loads(self.blob_path(sha256).read_bytes())
            entries = (manifest["config"], *manifest["layers"])
            kept.update((sha256, *(entry["digest"].removeprefix("sha256:") for entry in entries)))
        for data in self._base.glob("blobs/sha256/*/*/data"):
            if data.parent.name not in kept:
                data.unlink()
                data.parent.rmdir()

    def has(self, reference: str) -> bool:
        """True when the tag exists and all blobs of its manifest are there in full length."""
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            return False
        link = self._base / "repositories" / match["name"] / "_manifests" / "tags" / match["tag"] / "current" / "link"
        if not link.exists():
            return False
        manifest_path = self.blob_path(link.read_text(encoding="ascii").removeprefix("sha256:"))
        if not manifest_path.exists():
            return False
        manifest = json.loads(manifest_path.read_bytes())
        for entry in (manifest["config"], *manifest["layers"]):
            path = self.blob_path(entry["digest"].removeprefix("sha256:"))
            if not path.exists() or path.stat().st_size != entry["size"]:
                return False
        return True


def _link(path: Path, blob: Blob) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".link.{os.getpid()}")
    temporary.write_text(blob.digest, encoding="ascii")
    temporary.rename(path)
