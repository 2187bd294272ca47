"""The workflows of this repository: what their steps call exists, and the inventories that they use are right."""

import shlex
from pathlib import Path

import pytest
import yaml
from test_docs import boxwright_problem, has_target

from boxwright import masking
from boxwright.inventory import load
from boxwright.paths import repository_root

ROOT = repository_root()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# What a step may call beside our own: of the system.
KNOWN = {"test", "sudo", "true"}
# Labels of GitHub's runners with Apple silicon on which the releases run that boxwright supports; macos-15-intel and
# the -large ones are Intel. github.com/actions/runner-images, README.md
APPLE_SILICON = {"macos-15", "macos-26"}


def steps(workflow):
    """The steps of all its jobs."""
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def commands(workflow):
    """The words of every command that its steps run, one for each line and each part of a list or pipe."""
    found = []
    for step in steps(workflow):
        for line in step.get("run", "").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                ends = [place for place, word in enumerate(words) if word in ("&&", "||", "|")]
                part = words[: ends[0]] if ends else words
                words = words[len(part) + 1 :]
                found.append([word for word in part if not word.startswith((">", "2>"))])
    return found


def wrong(words):
    """What is wrong with a command; None when nothing is."""
    match words:
        case [".venv/bin/boxwright", *rest]:
            return boxwright_problem(rest)
        case ["make", *targets]:
            return next((f"make has no target {target}" for target in targets if not has_target(target)), None)
        case ["bash", path, *_]:
            return None if (ROOT / path).is_file() else f"there is no {path}"
        case ["grep", *_]:
            return None
        case [program, *_]:
            return None if program in KNOWN else f"nobody knows {program}"
    return "an empty command"


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


every = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


@every
def test_its_commands_exist(path):
    found = commands(read(path))
    assert found
    assert [problem for words in found if (problem := wrong(words))] == []


@every
def test_it_may_read_alone_and_its_actions_have_versions(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert {name.partition("@")[0] for name in used} == {"actions/checkout", "actions/setup-python"}
    assert all(name.partition("@")[2].startswith("v") for name in used)


def test_wrong_commands_are_found():
    text = "bash .ci/none\n.venv/bin/boxwright appply\nmake none && .venv/bin/boxwright plan --none | curl x\n"
    found = commands({"jobs": {"job": {"steps": [{"run": text}]}}})
    assert found == [
        ["bash", ".ci/none"],
        [".venv/bin/boxwright", "appply"],
        ["make", "none"],
        [".venv/bin/boxwright", "plan", "--none"],
        ["curl", "x"],
    ]
    assert [bool(wrong(words)) for words in found] == [True] * 5


@pytest.fixture
def mac(tmp_path, monkeypatch):
    """The workflow for a Mac, and what its inventory says."""
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    workflow = read(ROOT / ".github" / "workflows" / "macos.yml")
    (host,) = load(ROOT / Path(workflow["env"]["BOXWRIGHT_INVENTORY"]))
    yield workflow, host
    masking.forget()


def test_on_a_mac_a_box_is_made_looked_at_and_taken_away(mac):
    workflow, host = mac
    # PyYAML takes `on` for true.
    assert workflow[True]["workflow_dispatch"]["inputs"]["runner"]["default"] in APPLE_SILICON
    said = [" ".join(words[1:]) for words in commands(workflow) if words[0] == ".venv/bin/boxwright"]
    order = ["validate", "plan", "apply", "verify", "plan --exit-code", "token add workflow", "remove --purge"]
    assert [said.index(words) for words in order] == sorted(said.index(words) for words in order)
    assert said.count("apply") == said.count("remove --purge") == 2
    # What comes over SSH has no Full Disk Access there; `local` does not.
    assert host.variables["ansible_connection"] == "local"
    assert host.box.system == "darwin"
    assert not host.box.gateway.public_addresses
    assert [model.gpu_layers for model in host.box.inference.models] == [0]


def test_its_model_is_the_labs(mac):
    """So that what a real Mac answers can be compared with what the double of one does."""
    _, host = mac
    (lab,) = yaml.safe_load((ROOT / "group_vars" / "lab.yml").read_text(encoding="utf-8"))["inference_models"]
    (model,) = host.box.inference.models
    assert (model.hub, model.file, model.sha256, model.size) == (lab["hub"], lab["file"], lab["sha256"], lab["size"])
