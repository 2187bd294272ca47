"""LM Studio as an engine, with a double in place of the publisher's program: see tests/doubles/lmstudio/README.md.

What the double cannot show is listed in docs/proven.md. Behind it computes llama.cpp's own server.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from kit import LIGHT, MODEL_ENTRY, Box, Lab, eventually
from lmstudio_mirror import Mirrored, in_mirror
from snapshots import made_of

pytestmark = pytest.mark.lab

QUESTION = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
CHAT = {**MODEL_ENTRY, "name": "local-llm", "context": 512, "parallel": 2}
# The lab has one model for both; the double takes one for embeddings by its name.
EMBED = {**CHAT, "name": "embedder", "kind": "embedding", "context": 256}
LMS = "runuser -u lmstudio -- env HOME=$(ls -d /var/lib/lmstudio/*) $(ls -d /var/lib/lmstudio/*)/.lmstudio/bin/lms"


@pytest.fixture(scope="module")
def versions(lab: Lab) -> tuple[Mirrored, Mirrored]:
    """Two versions. The box is there first: it fills the mirror."""
    lab.boxes.get("lmstudio") or lab.up("lmstudio", LIGHT)
    return in_mirror(1), in_mirror(2)


@pytest.fixture(scope="module")
def bare(lab: Lab, versions: tuple[Mirrored, Mirrored]) -> set[str]:
    """What the box was made of before the first run."""
    box = lab.boxes["lmstudio"]
    if lab.kept and box.succeeds("test -e /etc/boxwright"):
        box.run("boxwright", "remove", "--json", "--purge").expect()
    return made_of(box)


@pytest.fixture
def box(lab: Lab, versions: tuple[Mirrored, Mirrored], bare: set[str]) -> Box:
    """The box with LM Studio and both models, converged."""
    box = lab.boxes["lmstudio"]
    apply(box, versions[0])
    return box


def apply(box: Box, version: Mirrored, *models: dict[str, Any], **variables: Any) -> list[str]:
    """What a run with these models changed."""
    return box.changes(declared(box, version, *models, **variables))


def declared(box: Box, version: Mirrored, *models: dict[str, Any], **variables: Any) -> Any:
    """The inventory with LM Studio as its engine."""
    chosen = {"inference_engine": "lmstudio", "inference_models": list(models or (CHAT, EMBED)), **version.variables}
    return box.with_variables("lmstudio", **{**chosen, **variables})


def loaded(box: Box) -> dict[str, int]:
    """Context by identifier of every instance in memory, as LM Studio's native interface tells them."""
    found = json.loads(box.sh("curl --silent --fail http://127.0.0.1:1234/api/v1/models"))
    return {
        instance["id"]: instance["config"]["context_length"]
        for model in found["models"]
        for instance in model["loaded_instances"]
    }


def lms(box: Box, words: str) -> str:
    """What `lms` prints for its own account."""
    return box.sh(f"{LMS} {words} </dev/null")


def daemon(box: Box) -> int:
    return int(json.loads(lms(box, "daemon status --json"))["pid"])


def post(box: Box, path: str, body: dict[str, Any], **arguments: Any) -> Any:
    return box.http("POST", f"v1/{path}", auth=box.credentials, json=body, **arguments)


def answers(box: Box) -> bool:
    return box.answers() and post(box, "chat/completions", {"model": "local-llm", **QUESTION}).status_code == 200


def test_through_the_gateway(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    """Models, chat, a stream, embeddings and responses, with credentials; nothing without, and nothing else."""
    assert apply(box, versions[0]) == []
    assert loaded(box) == {"local-llm": 512, "embedder": 256}
    names = [model["id"] for model in box.http("GET", "v1/models", auth=box.credentials).json()["data"]]
    assert sorted(names) == ["embedder", "local-llm"]
    chat = post(box, "chat/completions", {"model": "local-llm", **QUESTION})
    assert chat.json()["choices"][0]["message"]["content"].strip()
    stream = post(box, "chat/completions", {"model": "local-llm", "stream": True, **QUESTION}, stream=True)
    pieces = [line for line in stream.iter_lines() if line.startswith(b"data: ")]
    assert pieces[-1] == b"data: [DONE]"
    assert len(pieces) > 3
    numbers = post(box, "embeddings", {"model": "embedder", "input": "hello"}).json()["data"][0]["embedding"]
    assert len(numbers) == 576
    answer = post(box, "responses", {"model": "local-llm", "input": "Say hello.", "max_output_tokens": 8}).json()
    assert answer["object"] == "response"
    assert box.http("GET", "v1/models").status_code == 401
    assert box.http("POST", "v1/chat/completions", json={"model": "local-llm", **QUESTION}).status_code == 401
    for path in ("api/v1/models", "lmstudio-greeting", "v1/../api/v1/models/load"):
        assert "models" not in box.http("GET", path, auth=box.credentials).text
    unknown = post(box, "chat/completions", {"model": "of-somebody-else", **QUESTION})
    assert unknown.status_code == 404


def test_checks_pass_on_the_box_and_see_what_is_wrong(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    inventory = declared(box, versions[0])

    def checks() -> list[str]:
        said = box.run("boxwright", "verify", inventory=inventory).text.splitlines()
        return [line.split()[0] for line in said if " lmstudio: " in line]

    assert checks() == ["ok"] * 4
    box.sh("systemctl stop lmstudio")
    assert set(checks()) == {"failed", "ok"}
    assert apply(box, versions[0]) == ["lmstudio: running"]
    assert answers(box)


def test_adding_a_model_restarts_nothing(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    """Daemon, server and the other models go on, and their streams; what is taken away is unloaded."""
    before = daemon(box), box.pid("lmstudio"), box.pid("caddy")
    question = {"model": "local-llm", "stream": True, **QUESTION, "max_tokens": 256}
    stream = post(box, "chat/completions", question, stream=True)
    lines = stream.iter_lines()
    next(lines)
    more = {**CHAT, "name": "second", "context": 1024}
    assert apply(box, versions[0], CHAT, EMBED, more) == ["lmstudio: write the list of models", "lmstudio: running"]
    assert loaded(box) == {"local-llm": 512, "embedder": 256, "second": 1024}
    assert [line for line in lines if line][-1] == b"data: [DONE]"
    assert post(box, "chat/completions", {"model": "second", **QUESTION}).status_code == 200
    apply(box, versions[0], CHAT, {**EMBED, "context": 512})
    assert loaded(box) == {"local-llm": 512, "embedder": 512}
    assert (daemon(box), box.pid("lmstudio"), box.pid("caddy")) == before
    assert apply(box, versions[0], CHAT, {**EMBED, "context": 512}) == []


def test_a_model_that_is_none_is_refused_and_the_others_go_on(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    """The list of models is taken back; the step fails with what is wrong."""
    box.put("/srv/broken.gguf", "<html>not found</html>")
    broken = {"name": "broken", "path": "/srv/broken.gguf"}
    before = daemon(box)
    done = box.apply(inventory=declared(box, versions[0], CHAT, EMBED, broken))
    assert done.code == 1
    assert "/srv/broken.gguf (broken) is not a GGUF file" in done.text
    assert loaded(box) == {"local-llm": 512, "embedder": 256}
    assert answers(box)
    assert daemon(box) == before
    # The list that is in force is the declared one.
    assert apply(box, versions[0]) == []


def test_what_was_changed_by_hand_is_put_right(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    """Without a run: a second instance goes, a model that was unloaded and a server that was stopped come back."""
    path = json.loads(lms(box, "ls --json --llm"))[0]["path"]
    lms(box, f"load --exact {path} -y -c 256 --identifier local-llm")
    assert "local-llm:2" in loaded(box)
    eventually("the second instance is gone", lambda: loaded(box) == {"local-llm": 512, "embedder": 256}, 90)
    lms(box, "unload local-llm")
    eventually("it is loaded again", lambda: loaded(box) == {"local-llm": 512, "embedder": 256}, 90)
    before = daemon(box)
    lms(box, "server stop")
    eventually("the server answers again", lambda: answers(box), 60)
    assert daemon(box) == before
    # With a run: what is in files.
    box.sh("sed -i 's/512/300/' /etc/boxwright/lmstudio-models.json")
    assert apply(box, versions[0]) == ["lmstudio: write the list of models"]
    box.sh("rm -rf /var/lib/lmstudio/*/.lmstudio/bin")
    assert apply(box, versions[0]) == [
        f"lmstudio: install version {versions[0].version}",
        "lmstudio: running",
    ]
    assert answers(box)
    assert loaded(box) == {"local-llm": 512, "embedder": 256}


@pytest.mark.parametrize("what", ["daemon", "supervisor", "everything"])
def test_it_comes_back_when_it_is_killed(box: Box, what: str) -> None:
    """However it ends, one instance of each model is there again."""
    killed = {
        "daemon": f"kill -9 {daemon(box)}",
        "supervisor": f"kill -9 {box.pid('lmstudio')}",
        "everything": "systemctl kill --signal=KILL --kill-whom=all lmstudio",
    }[what]
    before = box.pid("lmstudio")
    box.sh(killed)
    eventually("it was started again", lambda: box.restarted("lmstudio", before), 120)
    assert loaded(box) == {"local-llm": 512, "embedder": 256}
    eventually("it answers", lambda: answers(box))


def test_never_two_instances_after_restarts(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    for _ in range(3):
        box.sh("systemctl restart lmstudio")
        assert loaded(box) == {"local-llm": 512, "embedder": 256}
    assert apply(box, versions[0]) == []


def test_a_server_that_hangs_is_started_anew(box: Box) -> None:
    """The processes are there and say nothing."""
    before = box.pid("lmstudio")
    box.sh(f"kill -STOP {daemon(box)}")
    eventually("it was started again", lambda: box.restarted("lmstudio", before), 90)
    eventually("it answers", lambda: answers(box), 90)
    # By the program itself or by the watchdog, whichever notices first.
    said = box.sh("journalctl --sync; journalctl -u lmstudio -u boxwright-watchdog --no-pager -n 200")
    assert "has not answered" in said or "hangs, restart" in said


def test_after_a_reboot(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    box.container.restart()
    eventually("the box booted", lambda: box.succeeds("systemctl is-system-running | grep -E 'running|degraded'"), 180)
    eventually("it answers", lambda: answers(box), 120)
    assert loaded(box) == {"local-llm": 512, "embedder": 256}
    assert apply(box, versions[0]) == []


def test_another_version_and_back(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    """Each has a home of its own, and only the one that runs is left."""
    for version in (versions[1], versions[0]):
        changed = apply(box, version)
        assert f"lmstudio: fetch version {version.version}" in changed
        assert "lmstudio: running" in changed
        assert json.loads(lms(box, "daemon up --json"))["version"] == version.version.replace("-", "+")
        assert len(box.sh("ls /var/lib/lmstudio; ls /var/lib/boxwright/lmstudio").split()) == 2
        assert answers(box)
        assert apply(box, version) == []


def test_a_bundle_with_a_wrong_checksum_is_not_unpacked(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    """What serves goes on serving."""
    before = daemon(box)
    done = box.apply(inventory=declared(box, versions[1], lmstudio_sha512="0" * 128))
    assert done.code == 1
    assert "has the wrong checksum and was not used" in done.text
    assert f"found    sha512 {versions[1].sha512}" in done.text
    assert daemon(box) == before
    assert answers(box)
    # A bundle that is not what it should be inside.
    wrong = MODEL_ENTRY["size"]
    assert wrong != versions[1].size
    done = box.apply(inventory=declared(box, versions[1], lmstudio_size=versions[1].size - 1))
    assert done.code == 1
    assert daemon(box) == before
    apply(box, versions[0])
    assert apply(box, versions[0]) == []


def test_another_engine_and_back(box: Box, versions: tuple[Mirrored, Mirrored]) -> None:
    """One listener at a time, and the door follows."""
    inventory = box.with_variables("llamacpp", inference_models=[CHAT])
    box.apply(inventory=inventory).expect()
    assert not box.succeeds("ss -Hltn | grep -E ':1234 '")
    assert not box.succeeds("systemctl cat lmstudio 2>/dev/null || ls -d /var/lib/lmstudio /opt/boxwright/lmstudio")
    assert answers(box)
    assert box.changes(inventory) == []
    apply(box, versions[0])
    assert not box.succeeds("ss -Hltn | grep -E ':8081 '")
    assert answers(box)
    assert apply(box, versions[0]) == []


def test_removal_leaves_nothing_and_twice_is_no_change(
    box: Box, versions: tuple[Mirrored, Mirrored], bare: set[str]
) -> None:
    inventory = declared(box, versions[0])
    first = box.run("boxwright", "remove", "--json", "--purge", inventory=inventory).expect()
    assert "lmstudio: stop and remove the service" in first.json["hosts"][box.host]["changed"]
    left = [line for line in made_of(box) - bare if "lmstudio" in line.lower()]
    assert left == []
    assert not box.succeeds("pgrep -u lmstudio || getent passwd lmstudio || ls -d /var/lib/lmstudio")
    again = box.run("boxwright", "remove", "--json", "--purge", inventory=inventory).expect()
    assert again.json["hosts"][box.host]["changed"] == []
