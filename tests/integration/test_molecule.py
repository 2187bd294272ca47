"""The molecule scenarios, run as a contributor runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kit import ROOT, mirror_lock

pytestmark = pytest.mark.lab


_AFTER = ("converge", "idempotence", "side_effect", "converge", "idempotence", "verify", "destroy")
WITH_SIDE_EFFECT = ("destroy", "syntax", "create", *_AFTER)
# What the mirror must hold beside what every lab has is made first.
PREPARED = ("destroy", "syntax", "create", "prepare", *_AFTER)
SCENARIOS = {
    "default": ("destroy", "syntax", "create", "converge", "idempotence", "verify", "destroy"),
    "gateway": WITH_SIDE_EFFECT,
    "api": PREPARED,
    "ollama": WITH_SIDE_EFFECT,
    "lmstudio": PREPARED,
    "mlx": PREPARED,
    "vllm": PREPARED,
    "host": PREPARED,
    "tailnet": PREPARED,
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, tmp_path: Path) -> None:
    """Every step succeeds, a second convergence finds nothing to do, and nothing is left behind."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("BOXWRIGHT_", "MOLECULE_"))
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ANSIBLE_HOME": str(tmp_path),
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    with mirror_lock():
        done = subprocess.run(
            ["molecule", "test", "--scenario-name", scenario],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=1500,
        )
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, said
    recap = said.partition("DETAILS")[2]
    steps = re.findall(rf"{scenario} . (\w+): Executed: (\w+)", recap)
    assert steps == [(step, "Successful") for step in SCENARIOS[scenario]]
    # The second convergence found nothing to do, and the checks of every role were run.
    # Molecule words and orders its output otherwise under CI; the recaps of the box itself are the same in both.
    changed = re.findall(r"^.*\bmolecule[\w-]*\s+: ok=1\s+changed=(\d+)", said, re.MULTILINE)
    assert changed == ["1", "0"] * SCENARIOS[scenario].count("idempotence"), said
    passed = re.search(r"(\d+) passed", said)
    assert passed
    assert int(passed.group(1)) >= 25
    left = subprocess.run(
        ["docker", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, check=True
    )
    platforms = yaml.safe_load((ROOT / "molecule" / scenario / "molecule.yml").read_text())["platforms"]
    assert not {f"boxwright-{platform['name']}" for platform in platforms} & set(left.stdout.split())
