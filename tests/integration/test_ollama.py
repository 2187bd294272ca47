"""Ollama for real on a box of the lab: built from its Go module, asked through the gateway."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gateway_box import this_machine
from kit import LIGHT, MODEL_ENTRY, Box, Lab, eventually

from boxwright.lab import machine, ollama, wheels
from boxwright.lab.mirror import mirror_dir
from boxwright.lab.progress import Progress
from boxwright.models import Model
from tests.doubles.ollama_registry import BLOBS, OllamaRegistry

pytestmark = pytest.mark.lab

# One thread: the tests share the processor's cores, for which more would wait for each other.
VARIABLES: dict[str, Any] = {**LIGHT, "inference_engine": "ollama", "ollama_threads": 1, "host_packages": ["tree"]}
GGUF = Model(**MODEL_ENTRY).location
# Words in the header of that file, and what makes another model of it: Ollama keeps one file in memory only once.
PUBLISHER, ANOTHER = "HuggingFaceTB", "HuggingFaceT0"
STORE = "/var/lib/ollama/models"
# What Ollama's installer writes (scripts/install.sh of 0.24.0), for a program in /usr/local/bin.
THEIR_UNIT = """\
[Unit]
Description=Ollama Service
After=network-online.target

[Service]
ExecStart=/usr/local/bin/ollama serve
User=ollama
Group=ollama
Restart=always
RestartSec=3
Environment="PATH=/usr/local/bin:/usr/bin:/bin"

[Install]
WantedBy=default.target
"""
THEIRS = "/etc/systemd/system/ollama.service"


@pytest.fixture(scope="module")
def _box(lab: Lab) -> Box:
    return lab.up("ollama", VARIABLES)


@pytest.fixture
def box(_box: Box) -> Box:
    """The box of this file, converged. A test that breaks something sets `settled` to False first."""
    _box.settle()
    return _box


def prune(box: Box) -> None:
    """Models that the box's inventory does not name are taken away."""
    box.apply(inventory=box.with_variables("pruned", inference_prune=True)).expect()


def entry(**more: Any) -> dict[str, Any]:
    """The lab's model, served under another name, without its source when another one is given."""
    kept = {key: value for key, value in MODEL_ENTRY.items() if key not in ("hub", "revision", "file")}
    base = MODEL_ENTRY if not {"path", "ollama"} & set(more) else {"name": kept["name"]}
    return {**base, **more}


def tags(box: Box) -> set[str]:
    """Names of the models, as Ollama tells them."""
    return {model["name"] for model in json.loads(box.sh("curl -sf http://127.0.0.1:11434/api/tags"))["models"]}


def loaded(box: Box) -> dict[str, int]:
    """The models in memory, with the tokens of their context."""
    told = json.loads(box.sh("curl -sf http://127.0.0.1:11434/api/ps"))["models"]
    return {model["name"]: model["context_length"] for model in told}


def program(box: Box) -> str:
    """The program that runs."""
    return box.sh(f"readlink /proc/{box.pid('ollama')}/exe").strip()


def version(box: Box) -> str:
    """The version that answers."""
    return str(json.loads(box.sh("curl -sf http://127.0.0.1:11434/api/version"))["version"])


def chats(box: Box, model: str = "local-llm") -> bool:
    """Whether a question through the gateway is answered."""
    question = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    answer = box.http("POST", "v1/chat/completions", auth=box.credentials, json=question)
    assert answer.status_code == 200, answer.text
    # Tokens, not text: a model without a template for its prompts may end at once.
    return bool(answer.json()["usage"]["completion_tokens"])


# What clients get


def test_a_second_run_changes_nothing(box: Box) -> None:
    box.expect_settled()


def test_models_and_refusal(box: Box) -> None:
    answer = box.http("GET", "v1/models", auth=box.credentials)
    assert [model["id"] for model in answer.json()["data"]] == ["local-llm:latest"]
    for path in ("v1/models", "v1/chat/completions", "v1/embeddings", "v1/responses"):
        assert box.http("POST" if path != "v1/models" else "GET", path).status_code == 401


def test_chat_and_stream(box: Box) -> None:
    assert chats(box)
    question = {"model": "local-llm", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 8}
    answer = box.http(
        "POST", "v1/chat/completions", auth=box.credentials, json={**question, "stream": True}, stream=True
    )
    lines = [line for line in answer.iter_lines(decode_unicode=True) if line]
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert len([piece for piece in pieces if piece["choices"] and piece["choices"][0]["delta"].get("content")]) > 3


def test_embeddings_and_responses(box: Box) -> None:
    answer = box.http("POST", "v1/embeddings", auth=box.credentials, json={"model": "local-llm", "input": ["a", "b"]})
    first, second = (row["embedding"] for row in answer.json()["data"])
    assert len(first) == len(second) > 100
    assert first != second
    asked = {"model": "local-llm", "input": "Say hello.", "max_output_tokens": 4}
    answer = box.http("POST", "v1/responses", auth=box.credentials, json=asked)
    assert answer.json()["status"] in ("completed", "incomplete")
    assert answer.json()["output"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    "path", ["api/tags", "api/ps", "api/pull", "api/delete", "api/create", "api/generate", "v1/api/tags"]
)
def test_its_own_api_stays_inside(box: Box, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = box.http(method, path, auth=box.credentials, json={"model": "local-llm"})
        assert answer.status_code in (404, 405)
        assert "local-llm" not in answer.text
    assert tags(box) == {"local-llm:latest"}


# Drift and accidents


@dataclass(frozen=True)
class Drift:
    """Something that was changed by hand; `changed` are the steps that put it right, apart from `ollama: `."""

    label: str
    script: str
    changed: tuple[str, ...]
    restarts: bool = False


ENVIRONMENT = "/etc/boxwright/ollama.env"
DRIFTS = [
    Drift("stopped", "systemctl disable --now ollama", ("running",), restarts=True),
    Drift("environment", f"echo OLLAMA_HOST=0.0.0.0 >>{ENVIRONMENT}", ("write the environment",)),
    Drift("a readable environment", f"chmod 644 {ENVIRONMENT}", ("write the environment",)),
    Drift(
        "another environment in use",
        f"echo OLLAMA_NUM_PARALLEL=7 >>{ENVIRONMENT}; systemctl restart ollama",
        ("write the environment", "running"),
        restarts=True,
    ),
    Drift("unit", f"echo '# mine' >>{THEIRS}", ("write the unit",)),
    Drift(
        "drop-in",
        "rm /etc/systemd/system/ollama.service.d/boxwright.conf; systemctl daemon-reload; systemctl restart ollama",
        ("write the drop-in", "write the unit", "running"),
        restarts=True,
    ),
    Drift("list of models", "echo 'chat other' >>/etc/boxwright/ollama.models", ("write the list of models",)),
    Drift("program", "rm /opt/boxwright/ollama/*/bin/ollama", ("install version 0.24.0", "running"), restarts=True),
    Drift(
        "exchanged program",
        "cd /opt/boxwright/ollama/0.24.0-*/bin && cp ollama other && echo >>other && mv other ollama",
        ("install version 0.24.0", "running"),
        restarts=True,
    ),
    Drift("manifest", f"rm -r {STORE}/manifests/*", ("model local-llm",)),
    Drift("part of a model", f"find {STORE}/blobs -size +1M -delete", ("model local-llm",)),
]


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: drift.label)
def test_drift_is_repaired(box: Box, drift: Drift) -> None:
    box.settled = False
    before = box.pid("ollama")
    box.sh(drift.script)
    assert box.changes() == [f"ollama: {step}" for step in drift.changed]
    assert (box.pid("ollama") != before) is drift.restarts
    box.expect_settled()
    assert chats(box)


def test_it_comes_back_when_it_is_killed(box: Box) -> None:
    before = box.pid("ollama")
    box.sh(f"kill -9 {before}")
    eventually("another process answers", lambda: box.restarted("ollama", before) and box.answers())
    assert loaded(box) == {"local-llm:latest": 4096}
    box.expect_settled()


def test_a_server_that_hangs_is_started_anew(box: Box) -> None:
    box.expect_new_process_when_it_hangs("ollama")
    assert loaded(box) == {"local-llm:latest": 4096}
    box.expect_settled()


def test_after_a_reboot_the_model_is_in_memory_before_it_counts_as_started(box: Box) -> None:
    box.container.restart()
    eventually("the service is started", lambda: box.succeeds("systemctl is-active --quiet ollama"), 180)
    assert loaded(box) == {"local-llm:latest": 4096}
    eventually("the box answers", box.answers)
    box.expect_settled()


# Models


@pytest.fixture
def copies(box: Box) -> Iterator[None]:
    """Another file with a model on the box, and files that are none."""
    box.sh(
        f"""
        mkdir -p /srv/models && cd /srv/models
        LC_ALL=C sed '0,/{PUBLISHER}/s//{ANOTHER}/' {GGUF} >good.gguf
        echo 'not a model at all' >text.gguf
        (printf GGUF; head -c 3000 /dev/zero | tr '\\0' '\\377') >noise.gguf
        head -c 20000000 {GGUF} >half.gguf
        LC_ALL=C sed '0,/llama/s//llamb/' {GGUF} >future.gguf
        printf GGUF >endless.gguf && truncate -s 10T endless.gguf
        """
    )
    yield
    box.settled = False
    box.sh(f"rm -r /srv/models; rm -rf {STORE}/manifests/registry.ollama.ai/library/own")
    prune(box)
    assert tags(box) == {"local-llm:latest"}


@pytest.mark.usefixtures("copies")
def test_another_model_restarts_nothing(box: Box) -> None:
    box.settled = False
    before = box.pid("ollama")
    second = entry(name="second:v1", path="/srv/models/good.gguf", context=512, kind="embedding")
    inventory = box.with_variables("two", inference_models=[MODEL_ENTRY, second])
    assert box.changes(inventory) == ["ollama: write the list of models", "ollama: model second:v1"]
    assert box.pid("ollama") == before
    box.expect_settled(inventory)
    assert tags(box) == {"local-llm:latest", "second:v1"}
    eventually("it is in memory", lambda: loaded(box).get("second:v1") == 512)
    answer = box.http("POST", "v1/embeddings", auth=box.credentials, json={"model": "second:v1", "input": "a"})
    assert len(answer.json()["data"][0]["embedding"]) > 100

    # Another context, still without a restart.
    longer = box.with_variables("longer", inference_models=[MODEL_ENTRY, {**second, "context": 1024}])
    assert box.changes(longer) == ["ollama: model second:v1"]
    assert box.pid("ollama") == before
    eventually("it is in memory anew", lambda: loaded(box).get("second:v1") == 1024)
    # A file without a checksum that is another one now.
    box.sh("touch /srv/models/good.gguf")
    assert box.changes(longer) == ["ollama: model second:v1"]

    # A model that somebody else made is not ours to remove; one that is no longer declared goes when that is wanted.
    box.sh(f"cd {STORE}/manifests/registry.ollama.ai/library && rm -rf own && cp -a second own")
    assert box.changes() == ["ollama: write the list of models"]
    assert tags(box) == {"local-llm:latest", "second:v1", "own:v1"}
    pruned = box.with_variables("pruned", inference_prune=True)
    assert box.changes(pruned) == ["ollama: remove other models"]
    assert tags(box) == {"local-llm:latest", "own:v1"}
    assert box.pid("ollama") == before
    box.expect_settled(pruned)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("text", "is not a GGUF file"),
        ("noise", "its reader of model files gave up: panic"),
        ("half", ""),
        ("future", "unknown model architecture"),
        ("endless", "MiB) free"),
        ("none", "BW116"),
    ],
)
def test_a_file_that_is_no_model_harms_nothing(box: Box, file: str, words: str) -> None:
    """Under a name of its own, and under the name of the model that serves."""
    before, blobs = box.pid("ollama"), set(box.sh(f"ls {STORE}/blobs").split())
    for name in ("broken", "local-llm"):
        wrong = entry(name=name, path=f"/srv/models/{file}.gguf")
        models = [MODEL_ENTRY, wrong] if name == "broken" else [wrong]
        done = box.apply(inventory=box.with_variables("wrong", inference_models=models))
        assert done.code in (1, 2), done.text
        assert words in done.text
        assert f"the model {name}" in done.text or f"`{name}`" in done.text
        assert box.pid("ollama") == before
        assert tags(box) == {"local-llm:latest"}
        assert chats(box)
    assert set(box.sh(f"ls {STORE}/blobs").split()) <= blobs


def test_a_model_with_a_wrong_checksum_is_not_used(box: Box) -> None:
    box.settled = False
    before = box.pid("ollama")
    inventory = box.with_variables("checksum", inference_models=[{**MODEL_ENTRY, "sha256": "0" * 64}])
    done = box.apply(inventory=inventory).expect(1)
    assert "wrong checksum" in done.text
    assert "0" * 64 in done.text
    assert box.pid("ollama") == before
    assert chats(box)


# Names in a registry


@pytest.fixture(scope="module")
def registry(_box: Box, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaRegistry]:
    model = wheels.mirrored(Model(**MODEL_ENTRY).file_url, mirror_dir() / "files")
    folder = tmp_path_factory.mktemp("registry")
    with OllamaRegistry(folder, this_machine(_box), changed(model, folder / "another.gguf", ANOTHER)) as found:
        _box.put("/etc/ssl/registry.pem", found.authority.root.read_text())
        _box.sh(f"grep -q {BLOBS} /etc/hosts || echo '{this_machine(_box)} {BLOBS}' >>/etc/hosts")
        yield found


def changed(model: Path, target: Path, word: str) -> Path:
    """A copy of a model with another word in its header."""
    target.write_bytes(model.read_bytes().replace(PUBLISHER.encode(), word.encode(), 1))
    return target


def pulling(box: Box, registry: OllamaRegistry, label: str = "pulled", **variables: Any) -> Path:
    """An inventory with a model of the registry beside the other one."""
    return box.with_variables(
        label,
        inference_models=[MODEL_ENTRY, entry(name="pulled", ollama=registry.name, context=512)],
        ollama_environment={"SSL_CERT_FILE": "/etc/ssl/registry.pem"},
        **variables,
    )


@pytest.mark.parametrize("status", [401, 404, 429])
def test_a_registry_that_refuses(box: Box, registry: OllamaRegistry, status: int) -> None:
    box.settled = False
    with registry.refusing(status):
        done = box.apply(inventory=pulling(box, registry)).expect(1)
    assert f"cannot pull {registry.name} for the model pulled" in done.text
    assert {401: "401", 404: "file does not exist", 429: "429"}[status] in done.text
    assert tags(box) == {"local-llm:latest"}
    assert chats(box)


def test_a_model_of_a_registry(box: Box, registry: OllamaRegistry) -> None:
    box.settled = False
    inventory = pulling(box, registry)
    assert "ollama: model pulled" in box.changes(inventory)
    assert tags(box) == {"local-llm:latest", "pulled:latest"}
    assert loaded(box)["pulled:latest"] == 512
    assert chats(box, "pulled")
    asked = len(registry.asked)
    box.expect_settled(inventory)
    assert len(registry.asked) == asked
    prune(box)
    assert tags(box) == {"local-llm:latest"}


@contextmanager
def asking(box: Box, model: str) -> Iterator[list[int]]:
    """While it lasts, the model is asked again and again; the statuses of the answers."""
    found: list[int] = []
    over = threading.Event()
    question = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}

    def ask() -> None:
        while not over.is_set():
            found.append(box.http("POST", "v1/chat/completions", auth=box.credentials, json=question).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def test_a_model_of_a_registry_is_updated_when_the_new_one_answers(
    box: Box, registry: OllamaRegistry, tmp_path: Path
) -> None:
    box.settled = False
    own = wheels.mirrored(Model(**MODEL_ENTRY).file_url, mirror_dir() / "files")
    registry.offer(changed(own, tmp_path / "former.gguf", ANOTHER))
    if "pulled:latest" in tags(box):  # of a first try of this test
        prune(box)
    inventory = pulling(box, registry, "updated", ollama_update="Sun 04:00")
    done = box.changes(inventory)
    assert "ollama: update scheduled" in done
    box.expect_settled(inventory)
    process, digest = box.pid("ollama"), f"sha256sum <{STORE}/manifests/registry.ollama.ai/library/pulled/latest"
    first = box.sh(digest)

    def update() -> str:
        """What the update says."""
        ended = box.sh("systemctl start ollama-update; echo", check=False)
        identity = box.sh("systemctl show --value --property=InvocationID ollama-update").strip()
        return ended + box.sh(f"journalctl --sync; journalctl --output=cat _SYSTEMD_INVOCATION_ID={identity}")

    assert "pulled is what the registry has" in update()
    assert box.sh(digest) == first

    # A newer one: nobody is refused meanwhile, nothing is restarted, and nothing of the former one is left.
    former = box.sh(f"ls {STORE}/blobs").split()
    with asking(box, "pulled") as statuses:
        registry.offer(changed(own, tmp_path / "newer.gguf", "HuggingFaceT1"))
        assert "pulled was updated" in update()
    assert statuses
    assert set(statuses) == {200}
    second = box.sh(digest)
    assert second != first
    assert tags(box) == {"local-llm:latest", "pulled:latest"}
    assert loaded(box) == {"local-llm:latest": 4096, "pulled:latest": 512}
    assert len(box.sh(f"ls {STORE}/blobs").split()) == len(former)
    assert box.pid("ollama") == process
    box.expect_settled(inventory)
    assert box.run("boxwright", "verify", "-k", "ollama", inventory=inventory).expect().code == 0

    # One that cannot answer, and a registry that does not: what served serves on, and it is told.
    half = tmp_path / "half.gguf"
    half.write_bytes(own.read_bytes()[:20_000_000])
    registry.offer(half)
    assert "pulled was not updated" in update()
    assert "ollama-update" in box.run("boxwright", "verify", "-k", "ollama", inventory=inventory).expect(1).text
    with registry.refusing(404):
        assert "cannot pull" in update()
    assert box.sh(digest) == second
    assert chats(box, "pulled")
    assert len(box.sh(f"ls {STORE}/blobs").split()) == len(former)

    # A change that was cut off in the middle is cleaned up by the next run.
    box.sh(f"cd {STORE}/manifests/registry.ollama.ai && cp -a library boxwright-candidate")
    assert box.changes(inventory) == ["ollama: model local-llm"]
    assert tags(box) == {"local-llm:latest", "pulled:latest"}

    gone = box.changes(pulling(box, registry))
    assert gone == ["ollama: stop and remove the update of models", "ollama: remove the program of the update"]
    prune(box)


# Versions


def built(number: str) -> dict[str, Any]:
    """The variables for a version that the lab builds."""
    with Progress(io.StringIO(), plain=True) as progress:
        return ollama.variables(mirror_dir() / "files", {"ollama_version": number}, progress)


def test_downgrade_and_upgrade(box: Box) -> None:
    box.settled = False
    older = box.with_variables("older", **built(ollama.EARLIER))
    changed = box.changes(older)
    assert f"ollama: install version {ollama.EARLIER}" in changed
    assert changed[-2:] == ["ollama: running", "ollama: remove older versions"]
    assert version(box) == ollama.EARLIER
    assert box.sh("ls -d /opt/boxwright/ollama/*/").count("\n") == 1
    assert loaded(box) == {"local-llm:latest": 4096}
    assert chats(box)
    box.expect_settled(older)
    assert "ollama: running" in box.changes()
    assert version(box) == ollama.VERSION
    assert chats(box)
    box.expect_settled()


def test_an_archive_with_a_wrong_checksum_is_not_used(box: Box) -> None:
    box.settled = False
    before = box.pid("ollama")
    right = box.variables["ollama_archive"]
    wrong = box.with_variables("wrong", ollama_archive={**right, "sha256": "0" * 64})
    done = box.apply(inventory=wrong).expect(1)
    for words in ("Ollama 0.24.0 has the wrong checksum", "0" * 64, right["sha256"], machine.architecture()):
        assert words in done.text
    assert box.pid("ollama") == before
    assert chats(box)
    box.settle()
    assert "0.24.0" in box.sh("ls /opt/boxwright/ollama")


def test_an_environment_with_which_it_does_not_start_is_taken_back(box: Box) -> None:
    box.settled = False
    broken = box.with_variables("environment", ollama_environment={"GOMEMLIMIT": "plenty"})
    done = box.apply(inventory=broken).expect(1)
    assert "GOMEMLIMIT" in done.text
    assert "runs again with its last good configuration" in done.text
    assert chats(box)
    assert box.changes() == []


# Ollama's own installer


def test_the_installer_is_run_on_a_box_that_has_it(box: Box) -> None:
    """It writes the unit anew and restarts it; the service stays ours at once, and whole at the next run."""
    box.settled = False
    ours = program(box)
    box.put(THEIRS, THEIR_UNIT)
    box.sh("systemctl daemon-reload; systemctl enable ollama; systemctl restart ollama")
    assert program(box) == ours
    assert "SAFE" in box.sh("systemd-analyze security --no-pager ollama | tail -n 1")
    assert loaded(box) == {"local-llm:latest": 4096}
    assert chats(box)
    assert box.changes() == ["ollama: write the unit", "ollama: running"]
    box.expect_settled()


def test_a_box_where_the_installer_came_first(box: Box) -> None:
    """Its service, in use, with an account and models elsewhere: taken over, and its models left alone."""
    box.settled = False
    ours = program(box)
    box.sh(f"cp {ours} /usr/local/bin/ollama")
    box.run("boxwright", "remove", "--json").expect()
    box.sh("useradd -r -s /bin/false -U -m -d /usr/share/ollama ollama")
    box.put(THEIRS, THEIR_UNIT)
    box.sh("systemctl daemon-reload; systemctl enable --now ollama")
    eventually("theirs answers", lambda: box.succeeds("curl -sf http://127.0.0.1:11434/api/version"))
    assert program(box) == "/usr/local/bin/ollama"
    box.apply().expect()
    assert program(box) == ours
    assert chats(box)
    box.expect_settled()
    assert box.succeeds("ls /usr/share/ollama/.ollama")
    box.sh("rm -r /usr/local/bin/ollama /usr/share/ollama")


# Other engines, and the way back


def test_another_engine_takes_over_and_gives_back(box: Box) -> None:
    box.settled = False
    other = box.with_variables("llamacpp", inference_engine="llamacpp")
    box.apply(inventory=other).expect()
    assert box.answers()
    assert not box.succeeds("ls /opt/boxwright/ollama || systemctl cat ollama")
    box.expect_settled(other)
    changed = box.changes()
    assert "ollama: running" in changed
    # Its store was left.
    assert "ollama: model local-llm" not in changed
    assert chats(box)


def test_removal(box: Box) -> None:
    box.settled = False
    removed = box.run("boxwright", "remove", "--json").expect().json["hosts"][box.host]["changed"]
    assert "ollama: stop and remove the service" in removed
    assert box.sh("ls -d /etc/systemd/system/ollama* /etc/boxwright/ollama* /opt/boxwright", check=False) == ""
    assert not box.succeeds("getent passwd ollama || pgrep -x ollama")
    assert box.succeeds(f"ls {STORE}/blobs/*")
    assert box.run("boxwright", "remove", "--json").expect().json["hosts"][box.host]["changed"] == []
    purged = box.run("boxwright", "remove", "--purge", "--json").expect().json["hosts"][box.host]["changed"]
    assert "ollama: remove the models" in purged
    assert box.sh("ls -d /var/lib/ollama /var/lib/boxwright/ollama", check=False) == ""
