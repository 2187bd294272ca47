"""The registry's folder: every statement is checked with hashlib, json and tar, not with the code that wrote it."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from boxwright.lab.oci import Blob, ImageConfig, Registry, balanced

NAME = "ghcr.io/some/app"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def base(tmp_path: Path) -> Path:
    return tmp_path / "registry" / "docker" / "registry" / "v2"


def published(tmp_path: Path, registry: Registry, text: str = "one", tag: str = "v1") -> Blob:
    tree = tmp_path / "tree"
    (tree / "app").mkdir(parents=True, exist_ok=True)
    (tree / "app" / "file").write_text(text)
    layer = registry.add_tar(["tar", "--create", "--mtime=@0", f"--directory={tree}", "app"], "layer")
    config = ImageConfig("arm64", ("run",), {"A": "b=c"}, "/app", ("80/tcp",), health=("CMD", "true"))
    return registry.publish(f"{NAME}:{tag}", config, [layer])


def test_the_tag_leads_to_everything_that_a_client_asks_for(tmp_path: Path, registry: Registry) -> None:
    published(tmp_path, registry)
    repository = base(tmp_path) / "repositories" / NAME
    link = (repository / "_manifests" / "tags" / "v1" / "current" / "link").read_text()
    assert link.startswith("sha256:")

    def blob(reference: str) -> bytes:
        hexadecimal = reference.removeprefix("sha256:")
        data = (base(tmp_path) / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal / "data").read_bytes()
        assert digest(data) == hexadecimal
        return data

    manifest = json.loads(blob(link))
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    config_bytes, layer_bytes = blob(manifest["config"]["digest"]), blob(manifest["layers"][0]["digest"])
    assert manifest["config"]["size"] == len(config_bytes)
    assert manifest["layers"][0]["size"] == len(layer_bytes)
    config = json.loads(config_bytes)
    assert config["rootfs"]["diff_ids"] == ["sha256:" + digest(layer_bytes)]
    assert config["architecture"] == "arm64"
    assert config["config"]["Cmd"] == ["run"]
    assert config["config"]["Env"] == ["A=b=c"]
    assert config["config"]["Healthcheck"] == {"Test": ["CMD", "true"]}
    for part in (manifest["config"], manifest["layers"][0]):
        stored = repository / "_layers" / "sha256" / part["digest"].removeprefix("sha256:") / "link"
        assert stored.read_text() == part["digest"]
    revision = repository / "_manifests" / "revisions" / "sha256" / link.removeprefix("sha256:") / "link"
    assert revision.read_text() == link


def test_the_same_tree_gives_the_same_image(tmp_path: Path, registry: Registry) -> None:
    assert published(tmp_path, registry) == published(tmp_path, registry, tag="v2")


def test_a_layer_is_what_tar_says(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "hello").write_text("world")
    blob = registry.add_tar(["tar", "--create", f"--directory={tmp_path}", "hello"], "x")
    with tarfile.open(registry.blob_path(blob.sha256)) as archive:
        assert archive.getnames() == ["hello"]
    assert blob.size == registry.blob_path(blob.sha256).stat().st_size


def test_a_failing_tar_leaves_no_blob(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        registry.add_tar(["tar", "--create", f"--directory={tmp_path}/nowhere", "x"], "x")
    assert not list(tmp_path.glob("registry/docker/**/data"))
    assert not [path for path in tmp_path.glob("registry/partial/*") if path.is_file()]


def test_a_file_is_stored_without_being_changed(tmp_path: Path, registry: Registry) -> None:
    source = tmp_path / "rootfs.tar"
    source.write_bytes(b"x" * 3_000_000)
    blob = registry.add_file(source)
    assert blob == Blob(digest(b"x" * 3_000_000), 3_000_000)
    assert source.read_bytes() == registry.blob_path(blob.sha256).read_bytes()


@pytest.mark.parametrize("damage", ["missing layer", "short layer", "no tag", "no manifest"])
def test_a_damaged_image_is_not_taken_for_a_finished_one(tmp_path: Path, registry: Registry, damage: str) -> None:
    manifest = published(tmp_path, registry)
    assert registry.has(f"{NAME}:v1")
    layer = registry.blob_path(
        json.loads(registry.blob_path(manifest.sha256).read_bytes())["layers"][0]["digest"].removeprefix("sha256:")
    )
    if damage == "missing layer":
        layer.unlink()
    elif damage == "short layer":
        layer.write_bytes(layer.read_bytes()[:-1])
    elif damage == "no tag":
        (base(tmp_path) / "repositories" / NAME / "_manifests/tags/v1/current/link").unlink()
    else:
        registry.blob_path(manifest.sha256).unlink()
    assert not registry.has(f"{NAME}:v1")


def test_pruning_keeps_what_a_tag_needs_and_nothing_else(tmp_path: Path, registry: Registry) -> None:
    old = published(tmp_path, registry, "one")
    kept = published(tmp_path, registry, "two")
    other = published(tmp_path, registry, "three", tag="other")
    registry.prune()
    assert registry.has(f"{NAME}:v1")
    assert registry.has(f"{NAME}:other")
    assert not registry.blob_path(old.sha256).exists()
    # manifest, configuration and layer of each of the two
    assert len(list(base(tmp_path).glob("blobs/sha256/*/*/data"))) == 6
    assert registry.blob_path(kept.sha256).exists()
    assert registry.blob_path(other.sha256).exists()


@pytest.mark.parametrize("reference", ["no-tag", "Upper/case:v1", "../escape:v1", "name:../escape", "a//b:v1:x"])
def test_a_name_that_is_none_is_refused(registry: Registry, reference: str) -> None:
    with pytest.raises(ValueError, match="is not an image name"):
        registry.publish(reference, ImageConfig("amd64", ("x",)), [])
    assert not registry.has(reference)


def test_parts_are_of_about_the_same_size() -> None:
    sizes = {"a": 100, "b": 60, "c": 50, "d": 40, "e": 10, "f": 1}
    groups = balanced(sizes, 3)
    assert sorted(name for group in groups for name in group) == sorted(sizes)
    totals = [sum(sizes[name] for name in group) for group in groups]
    assert max(totals) - min(totals) <= 40
    assert balanced(dict(reversed(sizes.items())), 3) == groups
    assert balanced({"only": 1}, 3) == [["only"]]
