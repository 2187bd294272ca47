"""The tools that keep the code uniform agree with it: style, types, YAML, generated pages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    ["ruff check", "ruff format --check", "mypy", "yamllint --strict .", "boxwright docs --check"],
)
def test_tool_agrees(command: str) -> None:
    program, *arguments = command.split()
    done = subprocess.run([TOOLS / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
