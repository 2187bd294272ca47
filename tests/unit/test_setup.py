"""What `make` runs first, where the machine lacks something. The set-up that works is what runs these tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/setup", tmp_path / "scripts/setup")
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "date", "dirname", "touch"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


def program(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def setup(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts/setup"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(checkout / "bin"), "HOME": os.environ.get("HOME", "/")},
    )


def test_an_old_python_is_refused_with_the_way_out(checkout: Path) -> None:
    program(checkout, "python3", 'case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac')
    done = setup(checkout)
    assert done.returncode == 2
    assert "'python3' is Python 3.9.2" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_a_python_without_ensurepip_is_completed_by_apt(checkout: Path) -> None:
    here = checkout / "installed"
    program(checkout, "python3", f'case "$2" in *ensurepip*) [ -e {here} ];; *) exit 0;; esac; exit $?')
    program(checkout, "id", "echo 0")
    program(checkout, "env", 'shift; exec "$@"')
    program(checkout, "apt-get", f'case "$*" in *install*python3-venv*) : > {here};; esac')
    done = setup(checkout)
    assert here.exists()
    assert "installing python3-venv" in done.stderr
    assert "setting up .venv" in done.stderr


def test_a_python_without_ensurepip_and_no_way_to_get_it_is_said(checkout: Path) -> None:
    program(checkout, "python3", 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    program(checkout, "id", "echo 1000")
    done = setup(checkout)
    assert done.returncode == 2
    assert "apt-get install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()
