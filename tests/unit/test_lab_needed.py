"""What the mirror holds for boxes with an engine that installs many packages."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from boxwright.artifacts import Wheel, pinned
from boxwright.lab import mirror, needed, wheels
from boxwright.lab.progress import Progress


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[Wheel]]:
    """Lists of wheels that would have been downloaded."""
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"BOXWRIGHT_{name}_DIR", str(tmp_path / name.lower()))
    calls: list[list[Wheel]] = []

    def fetch(wanted: list[Wheel], target: Path, python: str) -> None:
        calls.append(list(wanted))
        # Of what was asked for it is the Python for which that matters.
        (target / f"asked-1-cp{python.replace('.', '')}-none-any.whl").touch()

    monkeypatch.setattr(wheels, "fetch", fetch)
    return calls


def fill(variables: dict[str, Any]) -> None:
    """What `lab up` does for a box with these variables."""
    for program in needed.programs(variables):
        assert program(mirror.mirror_dir() / "files", Progress(io.StringIO(), plain=True)) == {}


def test_mlx_comes_into_the_mirror_with_a_box_that_runs_it(fetched: list[list[Wheel]]) -> None:
    fill({"inference_engine": "mlx"})
    (wanted,) = fetched
    assert {"mlx", "mlx-cpu", "mlx-lm", "transformers", "numpy"} <= {wheel.name for wheel in wanted}
    assert "index.html" in {path.name for path in (mirror.mirror_dir() / "files" / "wheels").iterdir()}


def test_open_webui_comes_for_a_python_that_it_works_with(fetched: list[list[Wheel]]) -> None:
    fill({"openwebui_run": "native"})
    (wanted,) = fetched
    assert {"open-webui", "chromadb", "uvicorn"} <= {wheel.name for wheel in wanted}
    assert (mirror.mirror_dir() / "files" / "wheels" / "asked-1-cp311-none-any.whl").exists()
    fill({"openwebui_run": "container"})
    assert len(fetched) == 1


def test_the_packages_of_the_api_service_come_with_a_box_that_runs_it(fetched: list[list[Wheel]]) -> None:
    fill({"api_enabled": True})
    (wanted,) = fetched
    assert {"fastapi", "uvicorn", "aiohttp", "asyncpg", "alembic", "redis"} <= {wheel.name for wheel in wanted}
    fill({"api_enabled": False})
    assert len(fetched) == 1


@pytest.mark.parametrize(
    ("name", "python", "fits"),
    [
        ("a-1-py3-none-any.whl", "3.11", True),
        ("a-1-py2.py3-none-any.whl", "3.11", True),
        ("a-1-cp310-abi3-manylinux2014_x86_64.whl", "3.13", True),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "3.11", True),
        ("a-1-cp313-cp313-manylinux_2_17_x86_64.whl", "3.11", False),
        ("a-1-2-cp313-cp313t-manylinux_2_17_x86_64.whl", "3.11", False),
    ],
)
def test_a_wheel_for_another_python_is_not_there(name: str, python: str, fits: bool) -> None:
    assert wheels.is_for(name, python) is fits


def test_nothing_of_it_comes_with_other_boxes(fetched: list[list[Wheel]]) -> None:
    fill({})
    fill({"inference_engine": "llamacpp", "inference_models": [{"name": "a"}]})
    assert fetched == []
    assert "mlx-lm" not in {wheel.name for wheel in needed.wheels()}


def test_the_pinned_packages_are_those_of_the_source() -> None:
    path = needed.requirements_of("mlx")
    found = {wheel.name: wheel.version for wheel in pinned(path.read_text())}
    asked = re.findall(r"^([a-z-]+)(?:\[.*\])?==(\S+)$", path.with_suffix(".in").read_text(), re.MULTILINE)
    assert len(asked) == 2
    assert {name: found[name] for name, _ in asked} == dict(asked)
