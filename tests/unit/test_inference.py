"""Models and engines as an inventory declares them, what follows for the gateway, and how the watchdog decides."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from boxwright.errors import Problem, Refused
from boxwright.models import MODELS
from boxwright.paths import repository_root
from boxwright.preflight import Machine
from boxwright.settings import parse_box
from boxwright.systemd import systemd_unit
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
    """The program, with a clock and answers of the test."""
    path = repository_root() / "templates" / "inference" / "watchdog.py"
    spec = importlib.util.spec_from_file_location("watchdog", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.now = 1000.0  # type: ignore[attr-defined]
    module.faults, module.answers, module.asked = {}, {}, []  # type: ignore[attr-defined]

    def ask(url: str, within: float, body: object = None, key: str = "") -> str:
        if fault := module.faults.get(url):  # type: ignore[attr-defined]
            module.now += within  # type: ignore[attr-defined]
            raise module.Fault(fault)
        module.asked.append((url, body))  # type: ignore[attr-defined]
        return str(module.answers.get(url, "ok"))  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module.time, "monotonic", lambda: module.now)  # type: ignore[attr-defined]
    return module


class Services:
    """What the watchdog's program asks of the system, as the test says it."""

    def __init__(self, watchdog: Any) -> None:
        self.watchdog, self.process, self.load, self.started = watchdog, "/x", 0.0, float("-inf")
        self.restarts: list[str] = []

    def job(self, unit: str, session: str) -> str:
        return unit

    def running(self, job: str) -> str:
        return self.process

    def age(self, process: str) -> float:
        return float(self.watchdog.now - self.started)

    def work(self, process: str, account: str) -> float:
        return float(self.watchdog.now * self.load)

    def restart(self, job: str, process: str, account: str) -> list[str]:
        self.restarts.append(job)
        return []


@pytest.fixture
def services(watchdog: ModuleType) -> Services:
    return Services(watchdog)


SETTINGS = {"unit": "e", "health": "h", "body": "ok", "question": {"url": "q", "body": {}}}


def look(watchdog: Any, engine: Any, times: int = 1) -> None:
    for _ in range(times):
        engine.look()
        watchdog.now += watchdog.EVERY


def test_one_failure_is_none(watchdog: Any, services: Services) -> None:
    engine = watchdog.Engine(SETTINGS, services)
    watchdog.faults["h"] = "no answer"
    look(watchdog, engine)
    watchdog.faults.clear()
    look(watchdog, engine)
    watchdog.faults["h"] = "no answer"
    look(watchdog, engine)
    assert services.restarts == []


@pytest.mark.parametrize("url", ["h", "q"])
def test_two_failures_restart_it_within_a_minute(
    watchdog: Any, services: Services, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = watchdog.Engine(SETTINGS, services)
    look(watchdog, engine)
    begun, watchdog.faults[url] = watchdog.now, "no answer"
    while not services.restarts:
        look(watchdog, engine)
    assert watchdog.now - begun <= 60
    assert services.restarts == ["e"]
    assert capsys.readouterr().out == "e hangs, restart number 1: no answer\n"


def test_a_busy_engine_is_left_alone(watchdog: Any, services: Services) -> None:
    engine = watchdog.Engine(SETTINGS, services)
    watchdog.faults["q"], services.load = "no answer", 0.9
    look(watchdog, engine, 20)
    assert services.restarts == []
    services.load = 0.001
    look(watchdog, engine, 3)
    assert services.restarts == ["e"]


def test_an_engine_that_computes_has_longer_to_say_that_it_works(watchdog: Any, services: Services) -> None:
    engine = watchdog.Engine(SETTINGS, services)
    watchdog.faults["h"], services.load = "no answer", 0.9
    look(watchdog, engine, watchdog.FAILURES_BUSY - 1)
    assert services.restarts == []
    look(watchdog, engine)
    assert services.restarts == ["e"]


def test_what_does_not_run_is_left_alone(watchdog: Any, services: Services) -> None:
    engine = watchdog.Engine(SETTINGS, services)
    watchdog.faults["h"], services.process = "no answer", ""
    look(watchdog, engine, 20)
    assert services.restarts == []


def test_a_process_that_loads_its_model_is_left_alone_until_it_has_answered(watchdog: Any, services: Services) -> None:
    engine = watchdog.Engine(SETTINGS, services)
    watchdog.faults["h"], services.started = "Loading model", watchdog.now
    look(watchdog, engine, 20)
    assert services.restarts == []
    watchdog.faults.clear()
    look(watchdog, engine)
    watchdog.faults["h"] = "no answer"
    look(watchdog, engine, 2)
    assert services.restarts == ["e"]
    # The one that was started in its place is another.
    services.process, services.started = "/y", watchdog.now
    look(watchdog, engine, 20)
    assert services.restarts == ["e"]
    look(watchdog, engine, int(watchdog.STARTING / watchdog.EVERY))
    assert len(services.restarts) > 1


def test_an_answer_that_does_not_say_that_it_works(watchdog: Any, services: Services) -> None:
    engine = watchdog.Engine({**SETTINGS, "body": '"ready"'}, services)
    look(watchdog, engine, 2)
    assert services.restarts == ["e"]


def test_without_a_lasting_model_no_question_is_asked(watchdog: Any, services: Services) -> None:
    engine = watchdog.Engine({**SETTINGS, "question": None}, services)
    watchdog.faults["q"] = "no answer"
    look(watchdog, engine, 20)
    assert services.restarts == []


def test_a_model_is_asked_as_it_is_in_memory(watchdog: Any, services: Services) -> None:
    """A client may have loaded it with another context; one that is not there may be on its way."""
    question = {"url": "q", "body": {"options": {"num_predict": 1}}, "loaded": {"url": "ps", "name": "a:latest"}}
    engine = watchdog.Engine({**SETTINGS, "question": question}, services)

    def asked(*models: tuple[str, int]) -> list[Any]:
        """The bodies of the next question, whose engine has these models in memory."""
        told = [{"name": name, "context_length": context} for name, context in models]
        watchdog.answers["ps"] = json.dumps({"models": told})
        watchdog.asked.clear()
        look(watchdog, engine, int(watchdog.QUESTION_EVERY / watchdog.EVERY))
        return [body for url, body in watchdog.asked if url == "q"]

    assert asked(("b:latest", 9), ("a:latest", 512)) == [{"options": {"num_predict": 1, "num_ctx": 512}}]
    assert asked(("a:latest", 4096)) == [{"options": {"num_predict": 1, "num_ctx": 4096}}]
    assert asked(("b:latest", 9)) == []
    assert asked() == [question["body"]]
    assert asked(("a:latest", 4096)) == [{"options": {"num_predict": 1, "num_ctx": 4096}}]
    assert asked() == []
    watchdog.answers["ps"] = "[]"
    look(watchdog, engine, 4)
    assert services.restarts == ["e"]


def test_restarts_become_rarer_and_quiet_takes_that_back(
    watchdog: Any, services: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = watchdog.Engine(SETTINGS, services)
    watchdog.faults["h"] = "no answer"
    began, restarts = watchdog.now, []
    while len(restarts) < 7:
        known = len(services.restarts)
        look(watchdog, engine)
        if len(services.restarts) > known:
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


PRINTED = """system/boxwright.e = {
	active count = 1
	type = LaunchDaemon
	state = running
	arguments = {
		/bin/sh
		-c
		echo
	pid = 9
	state = waiting
	}
	pid = 54109
	resource coalition = {
		state = active
	}
}
"""


@pytest.mark.parametrize(
    ("printed", "code", "found"),
    [
        (PRINTED, 0, "54109"),
        (PRINTED.replace("state = running", "state = spawn scheduled"), 0, ""),
        ('Could not find service "boxwright.e" in domain for system', 113, ""),
        # Between two processes there is none.
        (PRINTED.replace("\tpid = 54109\n", "").replace("\tpid = 9\n", ""), 0, ""),
    ],
)
def test_a_service_of_launchd_is_known_by_its_process(
    watchdog: Any, monkeypatch: pytest.MonkeyPatch, printed: str, code: int, found: str
) -> None:
    asked = _commands(watchdog, monkeypatch, {"/bin/launchctl": (printed, code)})
    launchd = watchdog.Launchd()
    assert launchd.running(launchd.job("e", "")) == found
    assert asked == [["/bin/launchctl", "print", "system/boxwright.e"]]


def test_launchd_counts_what_comes_from_the_process_and_what_is_of_the_account(
    watchdog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = """
        1     0     0  9:59.00
       10     1   301  0:01.50
       11    10   301  1:00.25
       12    11   301  1-02:00:03
       20     1   301  0:04.00
       30     1   302  0:08.00
    """
    _commands(watchdog, monkeypatch, {"/bin/ps": (rows, 0)})
    monkeypatch.setattr(watchdog.pwd, "getpwnam", lambda name: type("Entry", (), {"pw_uid": 301})())
    launchd = watchdog.Launchd()
    assert launchd.processes("10", "") == {10: 1.5, 11: 60.25, 12: 93603.0}
    assert launchd.work("10", "_e") == 1.5 + 60.25 + 93603.0 + 4


@pytest.mark.parametrize(
    ("text", "found"), [("00:05", 5), ("02:00:01", 7201), ("3-00:00:00", 259200), ("0:00.31", 0.31)]
)
def test_times_of_ps(watchdog: Any, text: str, found: float) -> None:
    assert watchdog.seconds(text) == pytest.approx(found)


def test_launchd_is_told_to_start_again_what_was_killed(watchdog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _commands(watchdog, monkeypatch, {"/bin/launchctl": ("", 113)})
    killed: list[int] = []
    monkeypatch.setattr(watchdog.os, "kill", lambda process, number: killed.append(process))
    monkeypatch.setattr(watchdog.Launchd, "processes", lambda *_: {10: 0.0, 11: 0.0})
    # Of a LaunchAgent, in the session of its user.
    monkeypatch.setattr(watchdog.pwd, "getpwnam", lambda name: type("Entry", (), {"pw_uid": {"ada": 502}[name]})())
    launchd = watchdog.Launchd()
    for session, job in (("", "system/boxwright.e"), ("ada", "gui/502/boxwright.e")):
        (problem,) = launchd.restart(launchd.job("e", session), "10", "")
        assert asked.pop() == ["/bin/launchctl", "kickstart", "-k", job]
        assert "kickstart failed" in problem
    assert killed == [10, 11, 10, 11]


def test_systemd_is_asked_whether_a_service_is_ready(watchdog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for state, found in (("active", "/system.slice/e.service"), ("activating", "")):
        _commands(
            watchdog, monkeypatch, {"systemctl": (f"ControlGroup=/system.slice/e.service\nActiveState={state}\n", 0)}
        )
        assert watchdog.Systemd().running("e.service") == found
    asked = _commands(watchdog, monkeypatch, {"systemctl": ("", 0)})
    systemd = watchdog.Systemd()
    assert systemd.restart(systemd.job("e", ""), "/x", "") == []
    assert [(command[1], command[-1]) for command in asked] == [("kill", "e.service"), ("restart", "e.service")]


def _commands(watchdog: Any, monkeypatch: pytest.MonkeyPatch, answers: dict[str, tuple[str, int]]) -> list[list[str]]:
    """Answers commands by the program that is called; what was asked."""
    asked: list[list[str]] = []

    class Done:
        stderr = "no"

        def __init__(self, stdout: str, returncode: int) -> None:
            self.stdout, self.returncode = stdout, returncode

    def run(command: list[str], **_: Any) -> Done:
        asked.append(command)
        return Done(*answers[command[0]])

    monkeypatch.setattr(watchdog.subprocess, "run", run)
    return asked
