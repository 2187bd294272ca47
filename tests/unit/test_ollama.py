"""The ollama role from settings alone: what is refused, what its process is told, its unit and the drop-in above it."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from boxwright.engines import OPENAI_PATHS
from boxwright.errors import Refused
from boxwright.facts.ollama import manifest_path
from boxwright.operations.ollama import Definition
from boxwright.paths import repository_root
from boxwright.preflight import Machine
from boxwright.settings import parse_box
from boxwright.systemd import systemd_timer, systemd_unit
from roles.inference.tasks import watched
from roles.ollama import tasks
from roles.ollama.settings import RELEASES
from roles.registry import Box

MODEL: dict[str, Any] = {
    "name": "local-llm",
    "url": "https://models.example/a/tiny.gguf",
    "sha256": "ab" * 32,
    "size": 1000,
}
SMALL = {**MODEL, "name": "small"}
PULLED = {"name": "pulled", "ollama": "smollm2:135m"}


def a_box(**variables: Any) -> Box:
    given = {
        "gateway_names": ["llm.example"],
        "inference_engine": "ollama",
        "inference_models": [MODEL],
        "openwebui_enabled": False,
        **variables,
    }
    return parse_box(Box, "box", (), given, None, None)


def refused(**variables: Any) -> list[tuple[str, str]]:
    """Codes and messages with which a box is refused."""
    with pytest.raises(Refused) as caught:
        a_box(**variables)
    return [(problem.code, problem.message) for problem in caught.value.problems]


# What is refused


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"inference_models": [{"name": "a", "path": "/srv/folder"}]}, "BW026", "/srv/folder"),
        ({"inference_models": [{**MODEL, "name": "a:b:c"}]}, "BW026", "a:b:c"),
        ({"inference_models": [MODEL, {**SMALL, "keep_alive": 60}]}, "BW026", "keep_alive"),
        ({"inference_models": [{"name": "a", "ollama": "https://h/x:y"}]}, "BW022", "smollm2:135m"),
        ({"inference_models": [{"name": "a", "ollama": "h/a/b/x:y"}]}, "BW022", "smollm2:135m"),
        ({"inference_models": [{**MODEL, "ollama": "x"}]}, "BW022", "url and ollama"),
        ({"inference_engine": "llamacpp", "inference_models": [{"name": "a", "ollama": "x"}]}, "BW026", "llamacpp"),
        ({"inference_models": [MODEL, {**MODEL, "name": "b", "context": 512}]}, "BW026", "in memory only once"),
        ({"inference_models": [SMALL, {**SMALL, "name": "b", "gpu_layers": 0}]}, "BW026", "in memory only once"),
        ({"inference_models": [MODEL, {**MODEL, "name": f"{MODEL['name']}:latest"}]}, "BW022", "have the name"),
        ({"ollama_version": "0.30.0"}, "BW022", "0.30.0"),
        ({"ollama_environment": {"OLLAMA_HOST": "0.0.0.0"}}, "BW022", "OLLAMA_HOST"),
        ({"ollama_origins": ["app.example"]}, "BW011", "origin"),
    ],
)
def test_what_does_not_fit(variables: dict[str, Any], code: str, words: str) -> None:
    found = refused(**variables)
    assert [one for one in found if one[0] == code and words in one[1]], found


def test_nothing_is_refused_on_a_box_without_it() -> None:
    models = [{**MODEL, "name": "a"}]
    assert not a_box(inference_engine="llamacpp", inference_models=models, ollama_version="9.9.9").inference.runs(
        "ollama"
    )


def test_two_names_of_one_file_that_is_loaded_alike_are_served() -> None:
    assert len(a_box(inference_models=[MODEL, {**MODEL, "name": "b"}]).inference.served) == 2


def test_models_may_differ_in_what_ollama_is_told_once() -> None:
    box = a_box(inference_models=[MODEL, {**SMALL, "keep_alive": 60}], ollama_keep_alive=120)
    assert tasks.environment(box)["OLLAMA_KEEP_ALIVE"] == "120s"


# What the process is told


def test_the_environment_by_default() -> None:
    found = tasks.environment(a_box())
    assert found["OLLAMA_HOST"] == "127.0.0.1:11434"
    assert found["OLLAMA_NO_CLOUD"] == found["OLLAMA_NOPRUNE"] == "1"
    assert found["OLLAMA_MODELS"] == "/var/lib/ollama/models"
    assert found["OLLAMA_KEEP_ALIVE"] == "-1"
    assert found["OLLAMA_NUM_PARALLEL"] == "2"
    assert not {"OLLAMA_ORIGINS", "OLLAMA_KV_CACHE_TYPE", "OLLAMA_MAX_QUEUE"} & set(found)


def test_it_follows_the_models() -> None:
    models = [{**MODEL, "parallel": 3, "keep_alive": 60}] + [
        {**SMALL, "name": f"m{number}", "keep_alive": 60} for number in range(4)
    ]
    found = tasks.environment(a_box(inference_models=models, ollama_port=4000))
    assert (found["OLLAMA_NUM_PARALLEL"], found["OLLAMA_KEEP_ALIVE"], found["OLLAMA_HOST"]) == (
        "3",
        "60s",
        "127.0.0.1:4000",
    )
    assert found["OLLAMA_MAX_LOADED_MODELS"] == "5"


def test_the_profile_of_a_gateway() -> None:
    found = tasks.environment(a_box(ollama_profile="gateway"))
    wanted = {
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_NUM_PARALLEL": "10",
        "OLLAMA_MAX_QUEUE": "10",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_CONTEXT_LENGTH": "4096",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
    }
    assert {name: found[name] for name in wanted} == wanted
    overridden = tasks.environment(
        a_box(
            ollama_profile="gateway",
            ollama_keep_alive=30,
            ollama_parallel=4,
            ollama_queue=5,
            ollama_loaded_models=2,
            ollama_context=8192,
            ollama_flash_attention=False,
            ollama_kv_cache="f16",
            ollama_origins=["https://a.example", "app://*"],
            ollama_environment={"OLLAMA_DEBUG": "1", "OLLAMA_MAX_QUEUE": "6"},
        )
    )
    assert overridden["OLLAMA_KEEP_ALIVE"] == "30s"
    assert [overridden[name] for name in list(wanted)[1:]] == ["4", "6", "2", "8192", "0", "f16"]
    assert overridden["OLLAMA_ORIGINS"] == "https://a.example,app://*"
    assert overridden["OLLAMA_DEBUG"] == "1"


def test_the_environment_file_is_what_systemd_reads() -> None:
    value = 'a "quoted" $HOME `id` \\ back, and blanks '
    text = tasks.environment_file(a_box(ollama_environment={"ODD": value}))
    assert text.splitlines()[-1] == 'ODD="a \\"quoted\\" \\$HOME \\`id\\` \\\\ back, and blanks "'


def test_a_model_in_ollamas_words() -> None:
    box = a_box(
        inference_models=[
            {**MODEL, "context": 512, "gpu_layers": 0},
            {"name": "e:v1", "kind": "embedding", "ollama": "smollm2:135m"},
        ],
        ollama_threads=3,
    )
    first, second = (tasks.definition(box, model) for model in tasks.models(box))
    assert json.loads(first.request) == {
        "model": "local-llm",
        "files": {"model.gguf": "sha256:@DIGEST@"},
        "parameters": {"num_ctx": 512, "num_gpu": 0, "num_thread": 3},
        "stream": False,
    }
    assert first.file.startswith("/var/lib/boxwright/models/abababababab-")
    assert json.loads(second.request)["from"] == "smollm2:135m"
    assert (first.question[0], second.question[0]) == ("/v1/chat/completions", "/v1/embeddings")


def test_the_watchdog_asks_for_the_model_as_it_is_in_memory() -> None:
    """By its own API, in which the context can be named; an embedding has no text."""
    (chat,) = watched(a_box(inference_models=[MODEL]))
    assert chat["question"]["url"] == "http://127.0.0.1:11434/api/chat"
    assert chat["question"]["body"]["options"] == {"num_predict": 1}
    assert chat["question"]["loaded"] == {"url": "http://127.0.0.1:11434/api/ps", "name": "local-llm:latest"}
    embedder = {**MODEL, "name": "e:v1", "kind": "embedding"}
    (embedding,) = watched(a_box(inference_models=[embedder, MODEL]))
    assert embedding["question"]["url"] == "http://127.0.0.1:11434/api/embed"
    assert embedding["question"]["body"] == {"model": "e:v1", "input": "Hi", "options": {}}
    assert embedding["question"]["loaded"]["name"] == "e:v1"


def test_another_definition_is_seen() -> None:
    one = Definition(name="a", file="/m.gguf", sha256="1" * 64, parameters={"num_ctx": 1})
    others = [
        Definition(name="b", file="/m.gguf", sha256="1" * 64, parameters={"num_ctx": 1}),
        Definition(name="a", file="/m.gguf", sha256="2" * 64, parameters={"num_ctx": 1}),
        Definition(name="a", file="/m.gguf", sha256="1" * 64, parameters={"num_ctx": 2}),
        Definition(name="a", pulled="m", parameters={"num_ctx": 1}),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5
    # The same file under another path is the same model.
    assert Definition(name="a", file="/n.gguf", sha256="1" * 64, parameters={"num_ctx": 1}).digest == one.digest


@pytest.mark.parametrize(("name", "path"), [("tiny", "tiny/latest"), ("tiny:135m", "tiny/135m")])
def test_where_a_model_is(name: str, path: str) -> None:
    assert manifest_path("/s", name) == f"/s/manifests/registry.ollama.ai/library/{path}"


# The update


@pytest.mark.parametrize("update", ["04:00", "Sun 23:59"])
def test_the_update_is_of_models_of_registries(update: str) -> None:
    box = a_box(inference_models=[MODEL, PULLED, {"name": "it", "ollama": "h:5/a/b:c"}], ollama_update=update)
    text = tasks.update_text(box)
    calls = text.partition("failed=0\n")[2].split("\nupdate ")[1:]
    called = [shlex.split(call.partition(" <<'REQUEST'\n")[0]) for call in calls]
    assert [words[0] for words in called] == ["pulled", "it"]
    assert "h:5/a/b:c" in called[1]
    assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0
    assert f"OnCalendar={update}\n" in systemd_timer(tasks.update_service(update))


def test_no_update_without_models_of_a_registry_or_a_time() -> None:
    assert tasks.update_text(a_box(ollama_update="04:00")) == ""
    assert tasks.update_text(a_box(inference_models=[MODEL, PULLED])) == ""


@pytest.mark.parametrize("update", ["4:00", "24:00", "daily", "Sunday 04:00", "04:00\n", "*-*-* 04:00"])
def test_times_that_are_none(update: str) -> None:
    assert [code for code, _ in refused(ollama_update=update)] == ["BW011"]


# The service


def test_another_archive_is_another_folder() -> None:
    archive = {"sha256": "1" * 64, "size": 5}
    folders = {
        tasks.folder(box)
        for box in (
            a_box(),
            a_box(ollama_archive=archive),
            a_box(ollama_archive={**archive, "sha256": "2" * 64}),
            a_box(ollama_archive=archive, ollama_version="0.23.2"),
        )
    }
    assert len(folders) == 4
    assert all(re.fullmatch(r"/opt/boxwright/ollama/[0-9.]+-[0-9a-f]{12}", folder) for folder in folders)
    assert {len(one.sha256) for release in RELEASES.values() for one in release.values()} == {64}


def test_its_sandbox() -> None:
    unit = systemd_unit(tasks.service(a_box()))
    assert "ReadOnlyPaths=-/var/lib/ollama/models\n" in unit
    assert "IPAddressDeny=any\n" in unit
    assert "PrivateDevices=yes\n" in unit
    with_card = systemd_unit(tasks.service(a_box(ollama_graphics="nvidia")))
    assert "PrivateDevices=no\n" in with_card
    assert "DeviceAllow=char-nvidia* rw\n" in with_card
    # No secret that a proxy's address may hold.
    assert "HTTPS_PROXY" not in systemd_unit(tasks.service(a_box(ollama_environment={"HTTPS_PROXY": "http://u:p@h"})))


def test_the_drop_in_replaces_every_command_of_the_unit_below() -> None:
    unit = tasks.service(a_box())
    lines = tasks.dropin(unit).splitlines()
    assert lines[1] == "[Service]"
    assert not [line for line in lines[2:] if line.startswith("[")]
    for name in ("ExecStart", "ExecStartPre", "ExecStartPost"):
        settings = [line for line in lines if line.startswith(f"{name}=")]
        assert settings[0] == f"{name}="
        assert len(settings) > 1
    section = systemd_unit(unit).partition("\n[Service]\n")[2].partition("\n[Install]\n")[0]
    assert set(section.splitlines()) <= set(lines)


def test_only_what_asks_models_is_offered() -> None:
    paths = a_box().ollama.paths
    assert set(paths) <= set(OPENAI_PATHS)
    assert "/v1/chat/completions" in paths
    assert a_box().ollama.listed("local-llm") == "local-llm:latest"
    assert a_box().ollama.listed("local:v1") == "local:v1"


def test_the_room_that_it_needs() -> None:
    box = a_box()
    need = tasks.need(box)
    assert need.ports == {11434: ("ollama_port", ("ollama",))}
    assert need.downloads[tasks.program(box)] > RELEASES["0.24.0"]["x86_64"].size
    assert need.downloads[f"/var/lib/ollama/models/blobs/sha256-{'ab' * 32}"] == 1000
    without = a_box(inference_engine="llamacpp")
    assert (tasks.need(without).ports, tasks.need(without).downloads) == ({}, {})
    assert tasks.BASE in tasks.need(without).files
    assert Machine


def test_the_question_at_start_is_a_script_that_sh_accepts() -> None:
    path = Path(repository_root()) / "templates" / "ollama" / "ready.sh"
    subprocess.run(["sh", "-n", str(path)], check=True)
