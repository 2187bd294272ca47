"""Models and engines as an inventory declares them, what follows for the gateway, and how the watchdog decides."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from boxwright.errors import Problem, Refused
from boxwright.models import MODELS
from boxwright.paths import repository_root
from boxwright.preflight import Machine
from boxwright.services import systemd_unit
from boxwright.settings import parse_box
from roles.gateway.common import ways
from roles.inference import tasks
from roles.llamacpp import tasks as llamacpp
from roles.registry import Box

SHA, OTHER = "ab" * 32, "cd" * 32
GIB = 2**30
CHAT = {"name": "talker", "url": "https://models.example/a/b/talker.gguf", "sha256": SHA, "size": 1000}
EMBEDDING = {**CHAT, "name": "embedder", "kind": "embedding", "sha256": OTHER}


def a_box(*models: dict[str, Any], **variables: Any) -> Box:
    values = {"gateway_names": ["llm.example"], "inference_models": list(models or [CHAT]), **variables}
    return parse_box(Box, "box", (), values, None, None)


def refused(*models: dict[str, Any], **variables: Any) -> Problem:
    with pytest.raises(Refused) as caught:
        a_box(*models, **variables)
    (problem,) = caught.value.problems
    return problem


# Where a model comes from


def test_a_file_of_the_hub() -> None:
    (model,) = a_box(
        {"name": "m", "hub": "owner/repository", "file": "q4/m.gguf", "sha256": SHA, "size": 7}
    ).inference.models
    assert model.file_url == "https://huggingface.co/owner/repository/resolve/main/q4/m.gguf"
    assert model.location == f"{MODELS}/abababababab-m.gguf"
    ((path, download),) = model.downloads
    assert (path, download.url, download.sha256, download.size) == (model.location, model.file_url, SHA, 7)


def test_a_file_that_is_there() -> None:
    (model,) = a_box({"name": "m", "path": "/srv/m.gguf"}).inference.models
    assert (model.location, model.downloads) == ("/srv/m.gguf", ())


def test_two_files_of_one_name_have_places_of_their_own() -> None:
    first, second = a_box(CHAT, EMBEDDING).inference.models
    assert first.location != second.location


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": ""}, "no source"),
        ({"path": "/srv/m.gguf"}, "url and path"),
        ({"hub": "owner/repository", "url": ""}, "exactly one of `file` and `files`"),
        ({"file": "m.gguf"}, "without `hub`"),
        ({"sha256": None}, "needs `sha256` and `size`"),
        ({"size": None}, "needs `sha256` and `size`"),
    ],
)
def test_a_source_that_is_none(change: dict[str, Any], said: str) -> None:
    problem = refused({**CHAT, **change})
    assert (problem.code, problem.variable) == ("BW022", "inference_models")
    assert said in problem.message
    assert "talker" in problem.message


@pytest.mark.parametrize(
    "change",
    [
        {"url": "https://models.example/m.bin"},
        {"url": "file:///etc/m.gguf"},
        {"path": "relative.gguf", "url": ""},
        {"hub": "no-owner", "url": ""},
        {"hub": "a/b", "file": "../m.gguf", "url": ""},
        {"name": "has space"},
        {"name": "quote'"},
        {"context": 10},
        {"parallel": 0},
        {"gpu_layers": "some"},
        {"kind": "image"},
        {"engine": "unheard-of"},
        {"temperature": 1},
    ],
)
def test_a_value_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        a_box({**CHAT, **change})
    assert {problem.variable for problem in caught.value.problems} == {"inference_models"}


# What fits together


def test_two_models_with_one_name() -> None:
    assert "two models of llamacpp have the name talker" in {
        problem.message for problem in _all(CHAT, {**EMBEDDING, "name": "talker"})
    }


def _all(*models: dict[str, Any], **variables: Any) -> tuple[Problem, ...]:
    with pytest.raises(Refused) as caught:
        a_box(*models, **variables)
    return tuple(caught.value.problems)


def test_an_engine_without_a_chat_model() -> None:
    problem = refused(EMBEDDING)
    assert "no chat model is declared for `inference_engine` llamacpp" in problem.message
    assert "inference_engine: none" in (problem.help or "")


def test_more_than_llama_cpp_serves() -> None:
    problem = refused(CHAT, {**CHAT, "name": "second", "sha256": OTHER})
    assert problem.code == "BW026"
    assert "talker and second" in problem.message


def test_what_llama_cpp_cannot_read() -> None:
    problem = refused({"name": "m", "path": "/srv/folder"})
    assert problem.code == "BW026"
    assert "/srv/folder" in problem.message


@pytest.mark.parametrize("how", [{"keep_alive": 60}, {"preload": False}])
def test_llama_cpp_has_its_model_in_memory(how: dict[str, Any]) -> None:
    problem = refused({**CHAT, **how})
    assert problem.code == "BW026"
    assert "keep_alive" in (problem.help or "")


WHEEL = f"xllamacpp==2026.10.11549 --hash=sha256:{'1' * 64}\n"


def test_llama_cpp_on_a_graphics_card() -> None:
    assert "llamacpp_requirements" in (refused(CHAT, llamacpp_graphics="nvidia").help or "")
    plain = a_box(CHAT)
    box = a_box(
        CHAT, llamacpp_graphics="nvidia", llamacpp_requirements=WHEEL, llamacpp_index="https://wheels.example/cu"
    )
    assert (plain.llamacpp.on_graphics, box.llamacpp.on_graphics) == (False, True)
    assert llamacpp.environment(box) != llamacpp.environment(plain)
    (server,) = box.llamacpp.servers(box)
    unit = systemd_unit(llamacpp.service(box, server))
    assert "DeviceAllow=char-nvidia* rw\n" in unit
    assert "/dev/nvidiactl" in unit, "at a boot the driver may be late"
    assert "PrivateDevices=yes" in systemd_unit(llamacpp.service(plain, server))
    amd = a_box(CHAT, llamacpp_graphics="amd", llamacpp_requirements=WHEEL)
    assert "SupplementaryGroups=render video\n" in systemd_unit(llamacpp.service(amd, server))


@pytest.mark.parametrize(("files", "codes"), [((), ["BW117"]), (("/dev/nvidiactl",), [])])
def test_llama_cpp_is_refused_a_card_that_is_not_there(files: tuple[str, ...], codes: list[str]) -> None:
    need = llamacpp.need(a_box(CHAT, llamacpp_graphics="nvidia", llamacpp_requirements=WHEEL))
    assert "/dev/nvidiactl" in need.files
    machine = Machine("Linux", "x86_64", "debian", "13", True, 0, 0, files=frozenset(files))
    assert [problem.code for condition in need.conditions for problem in condition(machine)] == codes


@pytest.mark.parametrize("text", ["xllamacpp\n", "xllamacpp==1\n", f"xllamacpp>=1 --hash=sha256:{'1' * 64}"])
def test_a_wheel_without_a_version_and_a_checksum_is_refused(text: str) -> None:
    assert refused(CHAT, llamacpp_requirements=text).code == "BW011"


def test_declared_memory_and_disk_hold_for_all_models_together() -> None:
    assert [p.code for p in _all(CHAT, EMBEDDING, host_memory="1500B", host_disk="1500B")] == ["BW021", "BW021"]
    assert a_box(CHAT, host_memory="1500B", host_disk="1500B").inference.main


def test_no_engine_serves_nothing() -> None:
    box = a_box(CHAT, inference_engine="none", llamacpp_port=443)
    assert (box.inference.running, box.inference.served, box.inference.main) == ((), (), None)
    assert tasks.need(box).downloads == {}
    assert [way.name for way in ways(box)] == []


def test_ports_of_servers_that_run() -> None:
    assert refused(CHAT, EMBEDDING, llamacpp_embedding_port=8081).code == "BW024"
    assert a_box(CHAT, llamacpp_embedding_port=8081)


# What follows


def test_embeddings_are_asked_of_their_own_server() -> None:
    found = ways(a_box(CHAT, EMBEDDING))
    assert [(way.path, way.upstreams, way.main) for way in found] == [
        ("/v1/embeddings", ("127.0.0.1:8082",), True),
        ("/v1", ("127.0.0.1:8081",), True),
    ]
    assert [way.path for way in ways(a_box(CHAT))] == ["/v1"]
    # What the gateway does not offer, it offers from no server.
    assert [way.path for way in ways(a_box(CHAT, EMBEDDING, gateway_paths=["/v1/models"]))] == ["/v1"]


def test_what_the_machine_must_have() -> None:
    need = tasks.need(a_box({**CHAT, "size": 10}, {**EMBEDDING, "path": "/srv/e.gguf", "url": "", "size": None}))
    assert need.memory == 10 + tasks.OVERHEAD
    assert need.downloads == {f"{MODELS}/abababababab-talker.gguf": 10}
    assert "/srv/e.gguf" in need.files
    condition, _ = need.conditions
    machine = Machine("Linux", "x86_64", "debian", "13", systemd=True, memory=1, disk_free=1)
    (problem,) = condition(machine)
    assert problem.code == "BW116"
    assert "/srv/e.gguf does not exist" in problem.message
    with_file = Machine(
        "Linux", "x86_64", "debian", "13", systemd=True, memory=1, disk_free=1, files=frozenset({"/srv/e.gguf"})
    )
    assert list(condition(with_file)) == []


@pytest.mark.parametrize(
    ("variables", "layers", "memory", "said"),
    [
        ({"inference_engine": "ollama", "ollama_graphics": "nvidia"}, "all", 24 * GIB, "30.0 GiB"),
        ({"inference_engine": "ollama", "ollama_graphics": "nvidia"}, "all", 40 * GIB, None),
        ({"inference_engine": "ollama", "ollama_graphics": "nvidia"}, 20, 24 * GIB, None),
        ({"inference_engine": "ollama"}, "all", 24 * GIB, None),
        # A card that is there and is not to be used.
        ({}, "all", 24 * GIB, None),
        # Without a driver nobody can tell.
        ({"inference_engine": "ollama", "ollama_graphics": "nvidia"}, "all", 0, None),
    ],
)
def test_a_model_that_is_larger_than_the_graphics_cards(
    variables: dict[str, Any], layers: Any, memory: int, said: str | None
) -> None:
    box = a_box({**CHAT, "size": 30 * GIB, "gpu_layers": layers}, **variables)
    machine = Machine(
        "Linux", "x86_64", "debian", "13", systemd=True, memory=64 * GIB, disk_free=1, graphics_memory=memory
    )
    problems = [problem for condition in tasks.need(box).conditions for problem in condition(machine)]
    assert [problem.code for problem in problems] == (["BW118"] if said else [])
    assert not said or said in problems[0].message


def test_a_server_of_llama_cpp_is_told_what_it_serves() -> None:
    import json

    box = a_box({**CHAT, "context": 512, "parallel": 3, "gpu_layers": 12}, EMBEDDING)
    chat, embedding = (json.loads(llamacpp.settings(server)) for server in box.llamacpp.servers(box))
    assert (chat["context"], chat["parallel"], chat["gpu_layers"], chat["embedding"]) == (512, 3, 12, False)
    assert (embedding["port"], embedding["gpu_layers"], embedding["embedding"]) == (8082, 999, True)


def test_every_server_is_watched() -> None:
    watched = tasks.watched(a_box(CHAT, EMBEDDING))
    assert [(one["unit"], one["health"], one["question"]["url"].rpartition("/v1/")[2]) for one in watched] == [
        ("llamacpp", "http://127.0.0.1:8081/health", "chat/completions"),
        ("llamacpp-embedding", "http://127.0.0.1:8082/health", "embeddings"),
    ]


# The watchdog


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with a clock, units and answers of the test."""
    path = repository_root() / "templates" / "inference" / "watchdog.py"
    spec = importlib.util.spec_from_file_location("watchdog", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.now = 1000.0  # type: ignore[attr-defined]
    module.state = "active"  # type: ignore[attr-defined]
    module.faults = {}  # type: ignore[attr-defined]
    module.work = 0.0  # type: ignore[attr-defined]
    module.ran = []  # type: ignore[attr-defined]

    def ask(url: str, within: float, body: object = None, key: str = "") -> str:
        if fault := module.faults.get(url):  # type: ignore[attr-defined]
            module.now += within  # type: ignore[attr-defined]
            raise module.Fault(fault)
        return "ok"

    class Done:
        returncode, stdout, stderr = 0, "", ""

    def run(command: list[str], **_: Any) -> Done:
        module.ran.append(command[1])  # type: ignore[attr-defined]
        return Done()

    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module, "unit_state", lambda unit: (module.state, "/x"))  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "processor_time", lambda group: module.now * module.work)  # type: ignore[attr-defined]
    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module.time, "monotonic", lambda: module.now)  # type: ignore[attr-defined]
    return module


SETTINGS = {"unit": "e", "health": "h", "body": "ok", "question": {"url": "q", "body": {}}}


def look(watchdog: Any, engine: Any, times: int = 1) -> None:
    for _ in range(times):
        engine.look()
        watchdog.now += watchdog.EVERY


def test_one_failure_is_none(watchdog: Any) -> None:
    engine = watchdog.Engine(SETTINGS)
    watchdog.faults["h"] = "no answer"
    look(watchdog, engine)
    watchdog.faults.clear()
    look(watchdog, engine)
    watchdog.faults["h"] = "no answer"
    look(watchdog, engine)
    assert watchdog.ran == []


@pytest.mark.parametrize("url", ["h", "q"])
def test_two_failures_restart_it_within_a_minute(watchdog: Any, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    engine = watchdog.Engine(SETTINGS)
    look(watchdog, engine)
    begun, watchdog.faults[url] = watchdog.now, "no answer"
    while not watchdog.ran:
        look(watchdog, engine)
    assert watchdog.now - begun <= 60
    assert watchdog.ran == ["kill", "restart"]
    assert capsys.readouterr().out == "e hangs, restart number 1: no answer\n"


def test_a_busy_engine_is_left_alone(watchdog: Any) -> None:
    engine = watchdog.Engine(SETTINGS)
    watchdog.faults["q"], watchdog.work = "no answer", 0.9
    look(watchdog, engine, 20)
    assert watchdog.ran == []
    watchdog.work = 0.001
    look(watchdog, engine, 3)
    assert watchdog.ran == ["kill", "restart"]


def test_an_engine_that_computes_has_longer_to_say_that_it_works(watchdog: Any) -> None:
    engine = watchdog.Engine(SETTINGS)
    watchdog.faults["h"], watchdog.work = "no answer", 0.9
    look(watchdog, engine, watchdog.FAILURES_BUSY - 1)
    assert watchdog.ran == []
    look(watchdog, engine)
    assert watchdog.ran == ["kill", "restart"]


@pytest.mark.parametrize("state", ["activating", "inactive", "failed", "deactivating"])
def test_what_does_not_run_is_left_alone(watchdog: Any, state: str) -> None:
    engine = watchdog.Engine(SETTINGS)
    watchdog.faults["h"], watchdog.state = "no answer", state
    look(watchdog, engine, 20)
    assert watchdog.ran == []


def test_an_answer_that_does_not_say_that_it_works(watchdog: Any) -> None:
    engine = watchdog.Engine({**SETTINGS, "body": '"ready"'})
    look(watchdog, engine, 2)
    assert watchdog.ran == ["kill", "restart"]


def test_without_a_lasting_model_no_question_is_asked(watchdog: Any) -> None:
    engine = watchdog.Engine({**SETTINGS, "question": None})
    watchdog.faults["q"] = "no answer"
    look(watchdog, engine, 20)
    assert watchdog.ran == []


def test_restarts_become_rarer_and_quiet_takes_that_back(watchdog: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine = watchdog.Engine(SETTINGS)
    watchdog.faults["h"] = "no answer"
    began, restarts = watchdog.now, []
    while len(restarts) < 7:
        known = len(watchdog.ran)
        look(watchdog, engine)
        if len(watchdog.ran) > known:
            restarts.append(watchdog.now - began)
    gaps = [later - earlier for earlier, later in pairwise(restarts)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= watchdog.PAUSE
    assert 480 <= gaps[4] < 600
    assert max(gaps) < watchdog.LONGEST_PAUSE + 60
    # Said once for each wait, not at each look.
    assert len(capsys.readouterr().out.splitlines()) <= 2 * 7
    watchdog.faults.clear()
    look(watchdog, engine, int(watchdog.QUIET / watchdog.EVERY) + 2)
    assert "answers again" in capsys.readouterr().out
    assert engine.restarts == 0
