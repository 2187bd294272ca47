"""The program that keeps LM Studio running, with the double of LM Studio in front of it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from boxwright.paths import repository_root
from tests.unit.lmstudio_home import Installed, gguf, until

PROGRAM = repository_root() / "templates/lmstudio/supervise.py"


def load_program() -> ModuleType:
    """The program as a module."""
    specification = importlib.util.spec_from_file_location("supervise", PROGRAM)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["supervise"] = module
    specification.loader.exec_module(module)
    return module


supervise = load_program()


def model(name: str, file: Path | str, **other: Any) -> dict[str, Any]:
    return {"name": name, "file": str(file), "kind": "chat", "context": 512, "parallel": 2, "gpu": "off"} | other


class Service:
    """The program as systemd would run it."""

    def __init__(self, lm: Installed, folder: Path) -> None:
        self.lm = lm
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.models = folder / "models.json"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(folder / "notify"))
        self.notify.settimeout(60)
        self.said: list[str] = []
        self.settings(graphics=False)

    def settings(self, graphics: bool) -> None:
        values = {"home": str(self.lm.user), "port": self.lm.port, "graphics": graphics}
        (self.folder / "settings.json").write_text(json.dumps(values))

    def declare(self, *models: dict[str, Any]) -> None:
        self.models.write_text(json.dumps(models))

    def launch(self) -> None:
        words = ["run", str(self.folder / "settings.json"), str(self.models), str(self.folder / "state")]
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *words],
            env={**self.lm.environment, "NOTIFY_SOCKET": str(self.folder / "notify")},
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self.listen, args=(self.process,), daemon=True).start()

    def listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        for line in process.stderr:
            self.said.append(line.rstrip())

    def start(self) -> None:
        """Returns when it says that it is ready."""
        self.launch()
        assert self.notify.recv(4096).startswith(b"READY=1\nSTATUS"), self.said

    def fails(self) -> str:
        """What it says at last, when it ends by itself."""
        self.launch()
        assert self.process
        assert self.process.wait(60) == 1
        until(lambda: self.said)
        time.sleep(0.1)
        return "\n".join(self.said)

    def reload(self) -> subprocess.CompletedProcess[str]:
        assert self.process
        return subprocess.run(
            [sys.executable, str(PROGRAM), "reload", str(self.process.pid), str(self.folder / "state")],
            capture_output=True,
            text=True,
            timeout=60,
        )

    def loaded(self) -> dict[str, tuple[int, int | None]]:
        """Identifiers with context and requests at a time, as the native interface tells them."""
        return {
            instance["id"]: (instance["config"]["context_length"], instance["config"].get("parallel"))
            for found in self.lm.ask("GET", "/api/v1/models")[1]["models"]
            for instance in found["loaded_instances"]
        }

    def end(self) -> int:
        assert self.process
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture
def service(lm: Installed, tmp_path: Path) -> Iterator[Service]:
    running = Service(lm, tmp_path)
    yield running
    if running.process and running.process.poll() is None:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return gguf(tmp_path / "models" / "a.gguf")


def test_ready_means_that_the_models_answer(service: Service, file: Path) -> None:
    """Loaded by exact path with the declared settings; nothing is loaded on demand, nothing of a request is logged."""
    service.declare(model("local-llm", file), model("a:b", file, context=256, parallel=1))
    service.start()
    assert service.loaded() == {"local-llm": (512, 2), "a:b": (256, 1)}
    assert {one["id"] for one in service.lm.ask("GET", "/v1/models")[1]["data"]} == {"local-llm", "a:b"}
    assert service.lm.ask("POST", "/v1/chat/completions", {"model": "local-llm", "secret": "in the body"})[0] == 200
    assert "in the body" not in "".join(path.read_text() for path in (service.lm.home / "server-logs").glob("*/*.log"))
    assert file.exists()
    assert file.stat().st_nlink == 1
    assert service.end() == 0
    assert service.lm.lms("daemon", "status", "--json").json == {"status": "not-running"}


def test_readiness_can_be_asked_for(service: Service, file: Path) -> None:
    """launchd hears nothing from a service: whoever waits for one asks."""

    def ask() -> subprocess.Popen[str]:
        assert service.process
        words = ["ready", str(service.process.pid), str(service.folder / "state")]
        return subprocess.Popen([sys.executable, str(PROGRAM), *words], stderr=subprocess.PIPE, text=True)

    service.declare(model("local-llm", file))
    # What an earlier process has noted says nothing about this one.
    (service.folder / "state").write_text(json.dumps({"process": 1, "reloads": 3, "problem": ""}))
    service.launch()
    assert ask().wait(60) == 0
    assert service.lm.ask("POST", "/v1/chat/completions", {"model": "local-llm"})[0] == 200
    service.end()
    service.declare(model("local-llm", file.with_name("none.gguf")))
    service.launch()
    asked = ask()
    assert service.process
    assert service.process.wait(60) == 1
    assert asked.wait(60) == 1
    assert asked.stderr
    assert "ended before it was ready" in asked.stderr.read()


def test_a_daemon_that_hangs_does_not_outlive_it(service: Service, file: Path) -> None:
    service.declare(model("local-llm", file))
    service.start()
    daemon = service.lm.pid()
    os.kill(daemon, signal.SIGSTOP)
    assert service.end() == 0
    assert not supervise.alive(daemon)


def test_processes_are_seen_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no /proc."""
    monkeypatch.setattr(supervise.Path, "exists", lambda path: False)
    sleeper = subprocess.Popen(["sleep", "60"])
    assert supervise.alive(sleeper.pid)
    sleeper.kill()
    # Ended, and not waited for yet.
    until(lambda: not supervise.alive(sleeper.pid))
    sleeper.wait()
    assert not supervise.alive(sleeper.pid)


def test_never_two_instances_after_restarts(service: Service, file: Path) -> None:
    service.declare(model("local-llm", file))
    for _ in range(3):
        service.start()
        assert list(service.loaded()) == ["local-llm"]
        service.end()


def test_a_daemon_that_runs_already_is_replaced(service: Service, file: Path) -> None:
    """It has read other settings, and may hold other models."""
    service.lm.has("someone/theirs")
    assert service.lm.lms("load", "theirs", "-y", "--identifier", "local-llm").code == 0
    before = service.lm.pid()
    service.declare(model("local-llm", file))
    service.start()
    assert service.loaded() == {"local-llm": (512, 2)}
    assert service.lm.pid() != before


def test_a_reload_loads_what_is_missing_and_unloads_the_rest(service: Service, file: Path) -> None:
    """The daemon and the other models go on."""
    service.declare(model("one", file), model("two", file))
    service.start()
    before = service.lm.pid()
    other = gguf(file.with_name("other.gguf"))
    service.declare(model("one", file), model("three", other, context=1024))
    assert service.reload().returncode == 0
    assert service.loaded() == {"one": (512, 2), "three": (1024, 2)}
    assert service.lm.pid() == before
    assert not any(line.startswith("unloading one") for line in service.said)
    assert sorted(path.name for path in (service.lm.home / "models/boxwright").iterdir()) == ["one", "three"]
    service.declare(model("one", other), model("three", other, gpu="max"))
    assert service.reload().returncode == 0
    said = "\n".join(service.said)
    assert "unloading one" in said
    assert "unloading three" in said
    link = service.lm.home / "models/boxwright/one"
    assert [path.readlink() for path in link.iterdir()] == [other]


def test_a_reload_that_fails_says_so_and_leaves_the_others(service: Service, file: Path, tmp_path: Path) -> None:
    service.declare(model("one", file))
    service.start()
    broken = tmp_path / "broken.gguf"
    broken.write_text("<html>no such model</html>")
    service.declare(model("one", file), model("two", broken))
    done = service.reload()
    assert done.returncode == 1
    assert f"{broken} (two) is not a GGUF file" in done.stderr
    assert service.loaded() == {"one": (512, 2)}
    service.declare(model("one", file))
    assert service.reload().returncode == 0


def test_a_server_that_is_stopped_comes_back_with_the_models_still_loaded(service: Service, file: Path) -> None:
    service.declare(model("local-llm", file))
    service.start()
    before = service.lm.pid()
    assert service.lm.lms("server", "stop").code == 0
    until(lambda: service.lm.lms("server", "status", "--json").json["running"])
    assert service.loaded() == {"local-llm": (512, 2)}
    assert service.lm.pid() == before


def test_what_is_put_right_without_being_asked(
    service: Service, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second instance goes and a missing one comes back; the list counts as it was when it was last read."""
    program, text = tmp_path / "impatient.py", PROGRAM.read_text()
    for patient, impatient in (
        ("EACH, COMPARE = 10, 2, 30", "EACH, COMPARE = 10, 0.2, 1"),
        ("120, 3600, 60", "60, 60, 2"),
    ):
        assert patient in text
        text = text.replace(patient, impatient)
    program.write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", program)
    service.declare(model("local-llm", file))
    service.start()
    service.declare()
    path = "boxwright/local-llm/a.gguf"
    assert service.lm.lms("load", "--exact", path, "-y", "-c", "256", "--identifier", "local-llm").code == 0
    until(lambda: list(service.loaded()) == ["local-llm"])
    assert service.lm.lms("unload", "local-llm").code == 0
    until(lambda: service.loaded() == {"local-llm": (512, 2)})
    # A file that is gone takes nothing from memory, and what cannot be put right ends nothing.
    file.unlink()
    service.lm.lms("load", "--exact", path, "-y", "-c", "256", "--identifier", "theirs")
    # The native interface tells of files that are there.
    until(lambda: [one["identifier"] for one in service.lm.lms("ps", "--json").json] == ["local-llm"])
    service.lm.lms("unload", "local-llm")
    until(lambda: any("does not list" in line for line in service.said))
    assert service.process
    assert service.process.poll() is None


def test_it_ends_when_the_daemon_is_gone(service: Service, file: Path) -> None:
    """systemd then starts everything anew; the daemon is not woken by the very question for it."""
    service.declare(model("local-llm", file))
    service.start()
    os.kill(service.lm.pid(), signal.SIGKILL)
    assert service.process
    assert service.process.wait(30) == 1
    until(lambda: any("is gone" in line for line in service.said))
    assert service.lm.lms("daemon", "status", "--json").json == {"status": "not-running"}


def test_a_bundle_without_an_engine_for_the_card_is_refused(service: Service, file: Path) -> None:
    service.declare(model("local-llm", file))
    service.settings(graphics=True)
    assert "has no engine for graphics cards" in service.fails()


def test_a_model_of_the_other_kind_is_refused(service: Service, file: Path) -> None:
    service.declare(model("local-llm", file, kind="embedding"))
    assert "takes" in (said := service.fails())
    assert "kind chat" in said


def test_an_answer_that_is_no_json_is_named(service: Service, file: Path) -> None:
    service.declare(model("local-llm", file))
    command = service.lm.home / "bin" / "lms"
    command.write_text("#!/bin/sh\necho 'Usage: lms [options]'\n")
    assert (
        "`lms daemon status --json` did not answer as documented (exit code 0): Usage: lms [options]" in service.fails()
    )


# What must be unloaded and loaded, without any LM Studio.

ONE = supervise.Model(name="one", file="/m/a.gguf", kind="chat", context=512, parallel=2, gpu="max")


def instance(identifier: str, **other: Any) -> dict[str, Any]:
    return {"identifier": identifier, "contextLength": 512, "parallel": 2, "ttlMs": None} | other


@pytest.mark.parametrize(
    ("loaded", "ours", "unload", "load"),
    [
        ([], {}, [], ["one"]),
        ([instance("one")], {"one": ONE}, [], []),
        ([instance("one"), instance("one:2")], {"one": ONE}, ["one:2"], []),
        ([instance("one")], {}, ["one"], ["one"]),
        ([instance("one", contextLength=4096)], {"one": ONE}, ["one"], ["one"]),
        ([instance("one", parallel=4)], {"one": ONE}, ["one"], ["one"]),
        ([instance("one", parallel=None)], {"one": ONE}, [], []),
        ([instance("one", ttlMs=60000)], {"one": ONE}, ["one"], ["one"]),
        ([instance("theirs")], {}, ["theirs"], ["one"]),
    ],
)
def test_differences(loaded: list[dict[str, Any]], ours: dict[str, Any], unload: list[str], load: list[str]) -> None:
    found, missing = supervise.differences([ONE], loaded, ours)
    assert (found, [one.name for one in missing]) == (unload, load)


def test_two_names_never_share_a_folder() -> None:
    """A colon cannot be part of LM Studio's names of folders everywhere."""
    names = ("a:b", "a-b", "a/b", "a.b")
    folders = {supervise.Model(name, "/m/a.gguf", "chat", 512, 2, "max").repository for name in names}
    assert len(folders) == len(names)
    assert all(":" not in folder and "/" not in folder for folder in folders)
