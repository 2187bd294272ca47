"""The lab's Ollama, with a script in place of the compiler: what is built when, what a box is told, what is refused.

tests/integration/test_ollama.py builds and runs the real one.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from boxwright import caddy_build
from boxwright.caddy_build import builder
from boxwright.errors import Failed, Problem, Refused
from boxwright.lab import inventory_text, machine, needed, ollama, wheels
from boxwright.lab.progress import Progress

PROGRAM = b"#!/bin/sh\necho ollama version is $0\n"


class Compiler:
    """What stands in for pip, Go and apt: notes what it is asked for, and writes the program that Go would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[list[str]] = []
        self.environments: list[Mapping[str, str]] = []
        self.fails = ""
        self.source = "miniaudio-1.71/miniaudio/miniaudio.h"

    def run(
        self,
        command: Sequence[str],
        *,
        what: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        code: str = "BW307",
    ) -> None:
        self.commands.append(list(command))
        if self.fails and self.fails in what:
            raise Failed(Problem(code, f"{what} failed"))
        if command[0] == "tar":
            subprocess.run(command, check=True)
        elif "pip" in command:
            target = Path(command[command.index("--dest") + 1])
            with tarfile.open(target / "miniaudio-1.71.tar.gz", "w:gz") as archive:
                entry = tarfile.TarInfo(self.source)
                entry.size = 1
                archive.addfile(entry, io.BytesIO(b"/"))
        else:
            self.environments.append(environment or {})
            made = Path(command[command.index("-o") + 1])
            made.write_bytes(PROGRAM)
            made.chmod(0o755)

    @property
    def builds(self) -> list[list[str]]:
        """The commands of Go."""
        return [command for command in self.commands if command[1] == "build"]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"BOXWRIGHT_{name}_DIR", str(tmp_path / name.lower()))
    found = Compiler(tmp_path)
    monkeypatch.setattr(machine, "run", found.run)
    monkeypatch.setattr(machine, "install_packages", lambda packages, **_: False)
    monkeypatch.setattr(builder, "toolchain", lambda folder, temporary: "go")
    return found


def progress() -> Progress:
    return Progress(io.StringIO(), plain=True)


def test_the_pinned_versions_can_be_built() -> None:
    assert {ollama.VERSION, ollama.EARLIER} == set(ollama.versions())
    for version in ollama.versions():
        text = (ollama.SOURCES / version / "go.mod").read_text()
        assert f"\t{ollama.MODULE} v{version} // indirect\n" in text
        assert f"\ntool {ollama.MODULE}\n" in text
        sums = (ollama.SOURCES / version / "go.sum").read_text()
        assert f"{ollama.MODULE} v{version} h1:" in sums


def test_the_archive_is_as_the_publisher_packs_it(compiler: Compiler, tmp_path: Path) -> None:
    made = ollama.fill(tmp_path / "mirror", "0.24.0", progress())
    name = f"ollama-linux-{machine.architecture()}.tar.zst"
    assert made.url == f"https://github.com/ollama/ollama/releases/download/v0.24.0/{name}"
    path = wheels.mirrored(made.url, tmp_path / "mirror")
    assert path == tmp_path / "mirror/github.com/ollama/ollama/releases/download/v0.24.0" / name
    assert (made.size, made.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert path.stat().st_mode & 0o777 == 0o644
    target = tmp_path / "unpacked"
    target.mkdir()
    subprocess.run(["tar", "--extract", "--file", str(path), "--directory", str(target)], check=True)
    assert [str(found.relative_to(target)) for found in sorted(target.rglob("*"))] == ["bin", "bin/ollama"]
    assert (target / "bin/ollama").read_bytes() == PROGRAM
    assert (target / "bin/ollama").stat().st_mode & 0o777 == 0o755


def test_it_is_compiled_with_its_own_version_and_headers(compiler: Compiler) -> None:
    ollama.build("0.23.2", progress())
    (command,), (environment,) = compiler.builds, compiler.environments
    assert "-ldflags=-s -w -buildid= -X=github.com/ollama/ollama/version.Version=0.23.2" in command
    assert command[command.index("-C") + 1] == str(ollama.SOURCES / "0.23.2")
    assert environment["CGO_ENABLED"] == "1"
    assert environment["CGO_CFLAGS"] == environment["CGO_CXXFLAGS"]
    assert f"-I{ollama.home()}/work/headers " in environment["CGO_CFLAGS"]
    (pip,) = [command for command in compiler.commands if "pip" in command]
    assert "--require-hashes" in pip


def test_it_is_built_once_and_what_only_a_build_needs_goes(compiler: Compiler, tmp_path: Path) -> None:
    first = ollama.fill(tmp_path / "mirror", "0.24.0", progress())
    again = ollama.fill(tmp_path / "mirror", "0.24.0", progress())
    assert first == again
    assert len(compiler.builds) == 1
    assert not (ollama.home() / "work").exists()
    ollama.fill(tmp_path / "mirror", "0.23.2", progress())
    assert len(compiler.builds) == 2


def test_a_mirror_with_another_build_gets_this_one(compiler: Compiler, tmp_path: Path) -> None:
    made = ollama.fill(tmp_path / "mirror", "0.24.0", progress())
    path = wheels.mirrored(made.url, tmp_path / "mirror")
    path.unlink()
    path.write_bytes(b"of another machine")
    assert ollama.fill(tmp_path / "mirror", "0.24.0", progress()) == made
    assert hashlib.sha256(path.read_bytes()).hexdigest() == made.sha256


@pytest.mark.parametrize("step", ["compiling", "packing", "miniaudio"])
def test_a_build_that_fails_leaves_nothing_that_counts(compiler: Compiler, step: str) -> None:
    compiler.fails = step
    with pytest.raises(Failed) as caught:
        ollama.build("0.24.0", progress())
    assert step in caught.value.problems[0].message
    assert not ollama.archive("0.24.0").exists()
    assert list((ollama.home() / "work").glob("tmp-*")) == []
    compiler.fails = ""
    assert ollama.build("0.24.0", progress()).exists()


def test_a_source_without_the_header_is_named(compiler: Compiler) -> None:
    compiler.source = "miniaudio-1.71/src/other.h"
    with pytest.raises(Failed) as caught:
        ollama.build("0.24.0", progress())
    assert "miniaudio==1.71" in caught.value.problems[0].message


def test_another_version_is_refused(compiler: Compiler) -> None:
    with pytest.raises(Refused) as caught:
        ollama.build("0.30.0", progress())
    (problem,) = caught.value.problems
    assert problem.code == "BW308"
    assert "0.23.2 or 0.24.0" in (problem.help or "")
    assert compiler.commands == []


def test_two_at_once_build_once(compiler: Compiler) -> None:
    threads = [threading.Thread(target=ollama.build, args=("0.24.0", progress())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiler.builds) == 1


def test_the_place_follows_what_decides_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {ollama.archive(version) for version in ollama.versions()}
    assert len(before) == 2
    monkeypatch.setattr(caddy_build, "GO_VERSION", "1.0.0")
    between = {ollama.archive(version) for version in ollama.versions()}
    monkeypatch.undo()
    monkeypatch.setattr(ollama, "HEADER", "miniaudio==1.72 --hash=sha256:0")
    after = {ollama.archive(version) for version in ollama.versions()}
    assert len(before | between | after) == 6


# Which boxes need it, and what they are told


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 0),
        ({"inference_engine": "llamacpp", "inference_models": [{"name": "a", "engine": "vllm"}]}, 0),
        ({"inference_engine": "ollama"}, 1),
        ({"inference_engine": "llamacpp", "inference_models": [{"name": "a"}, {"name": "b", "engine": "ollama"}]}, 1),
        ({"inference_engine": "ollama", "inference_models": [{"name": "b", "engine": "ollama"}]}, 1),
        ({"inference_models": ["not a mapping"]}, 0),
    ],
)
def test_only_a_box_that_runs_it_has_it_built(variables: dict[str, Any], expected: int) -> None:
    assert len(needed.programs(variables)) == expected


def test_a_box_is_told_what_was_built(compiler: Compiler, tmp_path: Path) -> None:
    for given, version in (({}, ollama.VERSION), ({"ollama_version": "0.23.2"}, "0.23.2")):
        (fill,) = needed.programs({"inference_engine": "ollama", **given})
        told = fill(tmp_path / "mirror", progress())
        path = wheels.mirrored(ollama.url(version, machine.architecture()), tmp_path / "mirror")
        archive = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        assert told == {"ollama_version": version, "ollama_archive": archive}


def test_variables_are_known_before_there_is_an_inventory(tmp_path: Path) -> None:
    folder = tmp_path / "preset"
    (folder / "group_vars" / "engines").mkdir(parents=True)
    (folder / "hosts.yml").write_text("linux: {hosts: {box: {inference_engine: ollama}}}\n")
    (folder / "group_vars" / "all.yml").write_text("inference_engine: vllm\nollama_version: 0.23.2\n")
    (folder / "group_vars" / "engines" / "vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    (folder / "group_vars" / "secret.yml").write_text("key: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n")
    found = inventory_text.known_variables(folder)
    assert found["inference_engine"] == "ollama"
    assert found["ollama_version"] == "0.23.2"
    shipped = yaml.safe_load((Path(inventory_text.__file__).parents[2] / "group_vars/all.yml").read_text()) or {}
    assert set(shipped) <= set(inventory_text.known_variables(None))
    (folder / "hosts.yml").write_text("linux: {hosts: {one: {}, other: {}}}\n")
    with pytest.raises(Refused):
        inventory_text.known_variables(folder)


def test_a_build_is_known_by_its_content_wherever_the_checkout_lies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = ollama.digest(ollama.VERSION)
    shutil.copytree(ollama.SOURCES, tmp_path / "elsewhere")
    monkeypatch.setattr(ollama, "SOURCES", tmp_path / "elsewhere")
    assert ollama.digest(ollama.VERSION) == here
    with (tmp_path / "elsewhere" / ollama.VERSION / "go.sum").open("a") as file:
        file.write("\n")
    assert ollama.digest(ollama.VERSION) != here
