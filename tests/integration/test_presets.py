"""The preset for a Linux machine with a card, in a lab that has none: everything of it that can be there is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kit import LIGHT, Box, Lab
from lmstudio_mirror import in_mirror

pytestmark = pytest.mark.lab

PRESET = "ubuntu-gpu-lmstudio"


@pytest.fixture(scope="module")
def box(lab: Lab) -> Box:
    """A box of that preset, as `lab up` makes it; Docker and Open WebUI are the business of others."""
    return lab.boxes.get("reference") or lab.up("reference", None, "--preset", PRESET)


@pytest.fixture(scope="module")
def inventory(box: Box) -> Path:
    """The preset's own, with a double in place of LM Studio's bundle."""
    path = box.with_variables("reference", **LIGHT, **in_mirror(1).variables)
    shutil.copytree(box.inventory.parent / "group_vars", path.parent / "group_vars", dirs_exist_ok=True)
    return path


def test_it_is_valid_in_the_lab_without_anybodys_secrets(box: Box) -> None:
    box.run("boxwright", "validate").expect()


def test_the_engine_answers_and_what_is_not_there_is_said(box: Box, inventory: Path) -> None:
    done = box.apply("-v", inventory=inventory).expect()
    assert "there is no card" in done.text
    assert not box.succeeds("dpkg-query --show 'nvidia-*' 2>/dev/null | grep .")
    assert box.http("GET", "v1/models").status_code == 401
    listed = box.http("GET", "v1/models", auth=box.credentials).json()["data"]
    assert "local-llm" in [model["id"] for model in listed]
    # As the preset says: `lms load --context-length 8192 --identifier local-llm`.
    chat = {"model": "local-llm", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    assert box.http("POST", "v1/chat/completions", auth=box.credentials, json=chat).status_code == 200
    box.expect_settled(inventory)
