"""Tailscale's programs and packages in the lab, without building anything."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from boxwright.lab import needed, tailnet

PROGRAMS = (tailnet.TAILSCALE, tailnet.HEADSCALE)


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"tailscale_enabled": False}, False),
        ({"tailscale_enabled": True}, True),
        ({"tailscale_enabled": True, "tailscale_repository": False}, False),
    ],
)
def test_only_a_box_with_tailscale_has_it_built(variables: dict, wanted: bool) -> None:
    assert (tailnet.fill in needed.programs(variables)) is wanted


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_the_pinned_module_has_the_version_that_is_named(program: tailnet.Program) -> None:
    text = (tailnet.SOURCES / program.name / "go.mod").read_text()
    assert f"{program.module} v{program.version}" in text
    assert (tailnet.SOURCES / program.name / "go.sum").stat().st_size > 1000


def test_what_a_program_is_made_from_decides_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = tailnet.folder(tailnet.TAILSCALE)
    assert tailnet.folder(tailnet.TAILSCALE) == before != tailnet.folder(tailnet.HEADSCALE)
    for program in PROGRAMS:
        (tmp_path / program.name).mkdir()
        for name in ("go.mod", "go.sum"):
            (tmp_path / program.name / name).write_bytes((tailnet.SOURCES / program.name / name).read_bytes() + b"\n")
    monkeypatch.setattr(tailnet, "SOURCES", tmp_path)
    assert tailnet.folder(tailnet.TAILSCALE) != before


def test_a_release_names_its_indexes_by_their_checksums() -> None:
    text = tailnet.release("trixie", {"main/binary-amd64/Packages": b"hello"}, "amd64").decode()
    assert f" {hashlib.sha256(b'hello').hexdigest()} 5 main/binary-amd64/Packages" in text.splitlines()
    assert "Suite: trixie" in text


def test_a_package_has_the_programs_the_unit_and_the_publishers_scripts(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    for name in ("tailscale", "tailscaled", "tailscaled.service", "tailscaled.defaults"):
        (built / name).write_text(name)
    for script in ("postinst", "prerm", "postrm"):
        (built / f"debian.{script}.sh").write_text("#!/bin/sh\n")
    made = tailnet.pack(built, tmp_path, "amd64", tmp_path / "log")
    listed = subprocess.run(["dpkg-deb", "--contents", made], capture_output=True, text=True, check=True).stdout
    places = {line.split()[5]: line.split()[:2] for line in listed.splitlines()}
    assert places["./usr/sbin/tailscaled"] == ["-rwxr-xr-x", "root/root"]
    assert places["./usr/lib/systemd/system/tailscaled.service"] == ["-rw-r--r--", "root/root"]
    assert "./etc/default/tailscaled" in places
    field = subprocess.run(["dpkg-deb", "--field", made, "Version"], capture_output=True, text=True, check=True).stdout
    assert field.strip() == tailnet.TAILSCALE.version
    info = subprocess.run(["dpkg-deb", "--info", made], capture_output=True, text=True, check=True).stdout
    assert {"conffiles", "postinst", "prerm", "postrm"} <= set(info.split())
