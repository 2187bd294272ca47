"""The engines on a Mac, from settings alone: accounts, programs, jobs of launchd, memory, and programs in the way."""

from __future__ import annotations

import plistlib
import shlex
import subprocess
from typing import Any

import pytest

from boxwright import launchd, strays, systems, unattended
from boxwright.errors import Problem, Refused
from boxwright.facts.accounts import AccountState
from boxwright.facts.listeners import Listener, Listeners
from boxwright.facts.unattended import StartState
from boxwright.graphics import lent
from boxwright.operations import ollama as store_operations
from boxwright.preflight import Machine
from boxwright.services import Service
from boxwright.settings import parse_box
from boxwright.site_mirror.supply import Target, wanted
from roles.inference import tasks as inference
from roles.llamacpp import tasks as llamacpp
from roles.lmstudio import tasks as lmstudio
from roles.mlx import tasks as mlx
from roles.ollama import tasks as ollama
from roles.registry import Box

GIB = 2**30
SHA = "ab" * 32
MODEL: dict[str, Any] = {"name": "local-llm", "url": "https://models.example/a/m.gguf", "sha256": SHA, "size": 1000}
FILES = [
    {"name": name, "sha256": SHA, "size": 1000} for name in ("config.json", "tokenizer_config.json", "m.safetensors")
]
FOLDER: dict[str, Any] = {"name": "local-llm", "hub": "owner/model", "files": FILES}
PYTHON = "/opt/homebrew/opt/python@3.13/bin/python3.13"
BREW = frozenset({"/opt/homebrew/bin/brew"})


def a_box(*models: dict[str, Any], groups: tuple[str, ...] = ("darwin",), **variables: Any) -> Box:
    engine = variables.get("inference_engine", "llamacpp")
    given = list(models) or [FOLDER if engine == "mlx" else MODEL]
    return parse_box(
        Box, "box", groups, {"gateway_names": ["llm.example"], "inference_models": given, **variables}, None, None
    )


def refused(*models: dict[str, Any], **variables: Any) -> list[Problem]:
    with pytest.raises(Refused) as caught:
        a_box(*models, **variables)
    return list(caught.value.problems)


def a_mac(memory: int = 64 * GIB, files: frozenset[str] = BREW) -> Machine:
    return Machine("Darwin", "arm64", "macos", "26.5", False, memory, 10**12, files=files)


def services(box: Box) -> list[Service]:
    """What an engine is there."""
    match box.inference.engine:
        case "llamacpp":
            return [llamacpp.service(box, server) for server in box.llamacpp.servers(box)]
        case "mlx":
            return [mlx.service(box, server) for server in box.mlx.servers(box)]
        case "ollama":
            return [ollama.service(box)]
        case _:
            return [lmstudio.service(box)]


# Jobs of launchd


@pytest.mark.parametrize("engine", ["llamacpp", "mlx", "ollama", "lmstudio"])
def test_each_engine_is_a_job_of_an_account_of_its_own(engine: str) -> None:
    (service,) = services(a_box(inference_engine=engine))
    job = plistlib.loads(launchd.plist(service).encode())
    words = job["ProgramArguments"]
    assert job["Label"] == f"boxwright.{engine}"
    assert (words[words.index("--user") + 1], words[words.index("--group") + 1]) == (f"_{engine}", f"_{engine}")
    assert job["KeepAlive"]
    assert job["RunAtLoad"]
    assert "/usr/bin/python3" not in words
    assert not [word for word in words if "/var/lib/" in word and "/var/lib/boxwright" not in word]
    assert not [word for word in words if word.startswith("/run/")]


@pytest.mark.parametrize("engine", ["llamacpp", "mlx", "ollama"])
def test_each_engine_can_be_an_agent_of_somebody(engine: str) -> None:
    box = a_box(inference_engine=engine, inference_agent_user="ada")
    (service,) = services(box)
    job = plistlib.loads(launchd.plist(service).encode())
    words = job["ProgramArguments"]
    assert launchd.plist_path(service) == f"/Library/LaunchAgents/boxwright.{engine}.plist"
    assert words[words.index("--user") + 1] == "ada"
    assert not [word for word in words if word.startswith("_")]
    assert "--folder" not in words
    # The watchdog serves from the boot on, and looks for the engine in that session.
    assert not inference.watchdog(box).agent
    assert [one["session"] for one in inference.watched(box)] == ["ada"]
    assert "session" not in inference.watched(a_box(inference_engine=engine))[0]


def test_ollama_as_an_agent_has_the_home_of_its_user_and_the_same_models() -> None:
    agent = a_box(inference_engine="ollama", inference_agent_user="ada")
    daemon = a_box(inference_engine="ollama")
    assert "HOME" not in ollama.environment(agent)
    assert {**ollama.environment(agent), "HOME": ollama.state(daemon)} == ollama.environment(daemon)
    # The store is still another account's: who asks changes nothing.
    assert ollama.store(agent).user == "_ollamastore"
    assert ollama.store(agent).session == "ada"


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"inference_agent_user": "root"}, "BW123", "no person's account"),
        ({"inference_agent_user": "Guest"}, "BW123", "no person's account"),
        ({"inference_agent_user": "ada", "inference_engine": "lmstudio"}, "BW022", "LM Studio"),
        ({"inference_agent_user": "ada", "groups": ()}, "BW027", "inference_agent_user"),
    ],
)
def test_who_cannot_have_the_engines(variables: dict[str, Any], code: str, said: str) -> None:
    (problem,) = refused(**variables)
    assert (problem.code, problem.variable) == (code, "inference_agent_user")
    assert said in problem.message
    assert problem.help


@pytest.mark.parametrize("name", ["_www", "a b", "ada;id", "-u", "ada\n"])
def test_what_is_no_name_of_an_account(name: str) -> None:
    (problem,) = refused(inference_agent_user=name)
    assert problem.variable == "inference_agent_user"


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({}, "who is not on the Mac"),
        ({"ada": AccountState(200, "staff", "/var/empty", "/usr/bin/false", frozenset())}, "no person's account"),
        ({"ada": AccountState(-1, "", "", "", frozenset())}, "no person's account"),
        ({"ada": AccountState(502, "staff", "/Users/ada", "/bin/zsh", frozenset())}, ""),
    ],
)
def test_who_is_asked_for_on_the_mac(there: dict[str, AccountState], said: str) -> None:
    problems = list(inference.nobody("ada", lambda user: there))
    assert [problem.code for problem in problems] == (["BW123"] if said else [])
    assert all(said in problem.message for problem in problems)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (None, "until ada signs in at its screen"),
        (StartState("off", ""), "until ada signs in at its screen"),
        (StartState("on", ""), "until it is unlocked and ada signs in"),
        (StartState("off", "", login="bob"), "until ada signs in"),
        (StartState("off", "", login="ada"), "until it has signed ada in by itself"),
    ],
)
def test_what_it_means_for_who_asks_is_said(start: StartState | None, said: str) -> None:
    text = unattended.agents(start, "ada")
    assert "nothing is served after a start of the Mac" in text
    assert said in text
    # That nobody needs to be signed in would be wrong then.
    if start and start.login:
        told = " ".join(unattended.words(start, "ada"))
        assert ("boxwright needs nobody to be signed in" in told) == (start.login != "ada")


@pytest.mark.parametrize("engine", ["llamacpp", "mlx"])
def test_an_agent_reads_models_in_the_home_of_its_user(engine: str) -> None:
    path = "/Users/ada/models/m" + ("" if engine == "mlx" else ".gguf")
    model = {"name": "m", "path": path}
    assert a_box(model, inference_engine=engine, inference_agent_user="ada")
    (problem,) = refused(model, inference_engine=engine, inference_agent_user="bob")
    assert problem.code == "BW026"


@pytest.mark.parametrize("engine", ["llamacpp", "mlx", "lmstudio"])
def test_programs_run_with_the_python_of_homebrew(engine: str) -> None:
    box = a_box(inference_engine=engine)
    if engine == "lmstudio":
        assert lmstudio.service(box).command[0] == PYTHON
    else:
        module = {"llamacpp": llamacpp, "mlx": mlx}[engine]
        linux = a_box(inference_engine=engine, groups=())
        # Its environment is made with that Python, and so is another one than a Linux machine's.
        assert module.environment(box) != module.environment(linux)
    watchdog = inference.watchdog(box)
    assert watchdog.command[0] == PYTHON
    assert "/usr/local" not in " ".join(watchdog.command)


def test_the_wheel_of_llama_cpp_is_the_one_that_pip_takes_on_the_box() -> None:
    """One list for all: pip compares what the index has with the machine, and then with these digests."""
    assert llamacpp.packages(a_box()) == llamacpp.packages(a_box(groups=()))
    assert llamacpp.packages(a_box()).count("--hash=") == len(llamacpp.XLLAMACPP.sha256) == 3


def test_mlx_is_the_one_for_metal() -> None:
    box = a_box(inference_engine="mlx")
    mac, linux = mlx.requirements(box), mlx.requirements(a_box(inference_engine="mlx", groups=()))
    assert "mlx-metal==" in mac
    assert "mlx-cpu==" not in mac
    assert "mlx-metal==" not in linux
    # The same versions of everything else.
    pinned = [{line for line in text.splitlines() if "==" in line and "mlx-" not in line} for text in (mac, linux)]
    assert pinned[0] == pinned[1]
    (server,) = box.mlx.servers(box)
    assert mlx.service(box, server).environment == {}


def test_a_model_of_mlx_is_looked_at_by_the_account_that_reads_it() -> None:
    assert systems.as_account("darwin", "mlx") == "sudo -n -H -u _mlx --"
    assert systems.as_account("linux", "mlx") == "runuser -u mlx --"


# What has no meaning there


@pytest.mark.parametrize(
    ("variable", "value", "engine"),
    [
        ("llamacpp_graphics", "nvidia", "llamacpp"),
        ("ollama_graphics", "amd", "ollama"),
        ("lmstudio_bundle", "arm64", "lmstudio"),
    ],
)
def test_settings_of_graphics_cards_are_refused_by_name(variable: str, value: str, engine: str) -> None:
    problems = refused(inference_engine=engine, **{variable: value})
    assert [problem.code for problem in problems if problem.variable == variable][:1] == ["BW027"]


@pytest.mark.parametrize("engine", ["llamacpp", "lmstudio", "mlx"])
def test_a_model_in_a_persons_home_is_refused(engine: str) -> None:
    path = "/Users/ada/models/m" + ("" if engine == "mlx" else ".gguf")
    (problem,) = refused({"name": "m", "path": path}, inference_engine=engine)
    assert problem.code == "BW026"
    assert "/Users/Shared" in (problem.help or "")
    assert a_box({"name": "m", "path": path.replace("ada", "Shared")}, inference_engine=engine)


def test_nothing_of_linux_is_asked_of_a_mac() -> None:
    for engine in ("llamacpp", "mlx", "ollama", "lmstudio"):
        box = a_box(inference_engine=engine)
        module = {"llamacpp": llamacpp, "mlx": mlx, "ollama": ollama, "lmstudio": lmstudio}[engine]
        need = module.need(box)
        # Who listens there is told by its account, not by a name that others have too.
        assert need.ports == {}
        assert len(need.conditions) == 1
        assert not [path for path in need.files if path.startswith(("/dev/", "/etc/systemd"))]


# Ollama


def test_the_archive_of_ollama() -> None:
    box = a_box(inference_engine="ollama")
    archive = ollama._archive(box, "arm64")
    assert archive.url.endswith("/v0.24.0/ollama-darwin.tgz")
    assert (archive.size, len(archive.sha256)) == (133395504, 64)
    assert ollama.program(box) == f"{ollama.folder(box)}/ollama"
    assert ollama.folder(box) != ollama.folder(a_box(inference_engine="ollama", groups=()))
    (problem,) = refused(inference_engine="ollama", ollama_version="0.33.0")
    assert problem.variable == "ollama_version"
    own = {"sha256": "1" * 64, "size": 5}
    assert (
        ollama._archive(a_box(inference_engine="ollama", ollama_version="0.33.0", ollama_archive=own), "arm64").size
        == 5
    )


def test_who_serves_may_not_write_the_models_of_ollama() -> None:
    """There is no sandbox: the store belongs to another account."""
    box = a_box(inference_engine="ollama")
    store = ollama.store(box)
    serving = ollama.service(box).user
    assert store.user not in (serving, "root")
    assert store.user.startswith("_")
    # Nothing of it is below a folder that is the serving account's.
    assert not store.folder.startswith(f"{ollama.state(box)}/")
    assert ollama.environment(box)["OLLAMA_MODELS"] == store.folder
    words = list(store.beside())
    assert words[words.index("--user") + 1] == store.user
    assert words[words.index("--environment") + 1] == ollama.ENVIRONMENT
    assert words[-1] == "--"
    assert "systemd-run" not in words


def test_models_are_fetched_anew_by_a_script_for_both_systems() -> None:
    box = a_box({"name": "pulled", "ollama": "smollm2:135m"}, inference_engine="ollama", ollama_update="Sun 04:00")
    text = ollama.update_text(box)
    assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0
    (call,) = text.partition("failed=0\n")[2].split("\nupdate ")[1:]
    assert ollama.store(box).user in shlex.split(call.partition(" <<'REQUEST'\n")[0])
    job = plistlib.loads(launchd.plist(ollama.update_service("Sun 04:00")).encode())
    assert job["StartCalendarInterval"] == [{"Weekday": 0, "Hour": 4, "Minute": 0}]
    for words in ("flock", "sha256sum", "mv -fT", "stat -c"):
        # In the part for Linux alone.
        assert words not in store_operations.MAKE


# LM Studio


def test_lm_studio_is_the_one_for_macs() -> None:
    box = a_box(inference_engine="lmstudio")
    download = box.lmstudio.download(box.system)
    assert download.url == "https://llmster.lmstudio.ai/download/0.0.25-1-darwin-arm64.full.tar.gz"
    assert (len(download.sha512), download.size) == (128, 615370329)
    assert '"gpu": "max"' in lmstudio.models(box)
    assert '"gpu": "off"' in lmstudio.models(a_box({**MODEL, "gpu_layers": 0}, inference_engine="lmstudio"))
    assert '"graphics": false' in lmstudio.settings(box)


def test_lm_studio_is_asked_whether_it_is_ready() -> None:
    service = lmstudio.service(a_box(inference_engine="lmstudio"))
    assert not service.notify
    assert service.probe[2:] == ("ready", "$MAINPID", "/var/run/lmstudio/state")
    assert lmstudio.home(a_box(inference_engine="lmstudio")).startswith("/var/lib/boxwright/lmstudio/")
    assert not lmstudio.bundle(a_box(inference_engine="lmstudio")).startswith("/var/lib/boxwright/lmstudio/")


# Memory


@pytest.mark.parametrize(
    ("memory", "limit", "share"),
    [
        (16 * GIB, None, 16 * GIB * 2 // 3),
        (32 * GIB, None, 32 * GIB * 2 // 3),
        (36 * GIB, None, 27 * GIB),
        (128 * GIB, None, 96 * GIB),
        (128 * GIB, 112 * GIB, 112 * GIB),
    ],
)
def test_what_macos_lends_its_graphics_processor(memory: int, limit: int | None, share: int) -> None:
    assert lent(memory, limit) == share


@pytest.mark.parametrize(
    ("model", "variables", "codes"),
    [
        ({"size": 40 * GIB}, {}, []),
        ({"size": 50 * GIB}, {}, ["BW118"]),
        ({"size": 50 * GIB}, {"host_wired_memory": "56GiB"}, []),
        ({"size": 50 * GIB, "gpu_layers": 20}, {}, []),
        ({"size": 50 * GIB, "preload": False}, {"inference_engine": "ollama"}, []),
    ],
)
def test_a_model_must_fit_into_what_is_lent(model: dict[str, Any], variables: dict[str, Any], codes: list[str]) -> None:
    box = a_box({**MODEL, **model}, **variables)
    problems = [problem for condition in inference.need(box).conditions for problem in condition(a_mac())]
    assert [problem.code for problem in problems] == codes
    for problem in problems:
        assert "50.0 GiB" in problem.message
        assert "48.0 GiB of the 64.0 GiB" in problem.message
        assert "host_wired_memory" in (problem.help or "")


def test_the_declared_memory_is_compared_before_anything_is_asked() -> None:
    (problem,) = refused({**MODEL, "size": 50 * GIB}, host_memory="64GiB")
    assert (problem.code, problem.variable) == ("BW021", "inference_models")
    assert "48.0 GiB of the 64.0 GiB" in problem.message
    # What is larger than all of it is said once.
    (problem,) = refused({**MODEL, "size": 70 * GIB}, host_memory="64GiB")
    assert "70" in problem.message
    assert a_box({**MODEL, "size": 50 * GIB}, groups=(), host_memory="64GiB")


def test_a_mac_without_homebrew_is_refused() -> None:
    need = inference.need(a_box())
    assert set(need.files) >= BREW
    problems = [problem for condition in need.conditions for problem in condition(a_mac(files=frozenset()))]
    assert [problem.code for problem in problems] == ["BW122"]
    assert BREW.isdisjoint(inference.need(a_box(groups=())).files)


def test_a_mirror_for_linux_gets_the_files_of_a_mac_and_none_of_its_wheels() -> None:
    """Which wheels a Mac takes, pip cannot be asked for a release of Linux."""
    mac, targets = a_box(inference_engine="mlx"), [Target("debian-13", "amd64")]
    assert {one.sha256 for one in wanted([mac], targets).common.files} == {SHA}
    assert not any(wanted([mac], targets).wheels.values())
    assert any(wanted([a_box(inference_engine="mlx", groups=())], targets).wheels.values())


# Programs in the way


def in_the_way(*listeners: Listener) -> list[Problem]:
    asked: list[tuple[int, ...]] = []

    def ask(ports: tuple[int, ...]) -> tuple[Listener, ...]:
        asked.append(ports)
        return listeners

    found = list(strays.condition({11434: "ollama_port"}, ask)(a_mac()))
    assert asked == [(11434,)]
    return found


def test_ours_is_not_in_the_way() -> None:
    assert in_the_way() == []
    assert in_the_way(Listener(11434, 7, "_ollama", "/opt/boxwright/ollama/0.24.0-0/ollama")) == []
    # A LaunchAgent of ours: launchd has told that the process is its.
    assert in_the_way(*Listeners().process(["examined", "11434 7"])) == []
    # The engine that gives way in this run.
    assert in_the_way(Listener(11434, 7, "_mlx", PYTHON)) == []


@pytest.mark.parametrize(
    ("program", "named", "way"),
    [
        ("/Applications/Ollama.app/Contents/Resources/ollama", "Ollama.app", "Login Items"),
        ("/Applications/LM Studio.app/Contents/MacOS/LM Studio", "LM Studio's own server", "quit LM Studio"),
        ("/Users/ada/.lmstudio/llmster/0.0.25/llmster", "LM Studio's daemon", "as ada: `lms daemon down`"),
        ("/opt/homebrew/Cellar/ollama/0.30/bin/ollama", "a program of Homebrew", "brew services stop"),
        ("/usr/local/bin/ollama", "another program", "end it"),
    ],
)
def test_another_program_on_the_port_is_named(program: str, named: str, way: str) -> None:
    (problem,) = in_the_way(Listener(11434, 512, "ada", program))
    assert (problem.code, problem.variable) == ("BW113", "ollama_port")
    assert problem.message == f"TCP port 11434 of the box is taken by {named}: process 512 of ada, {program}"
    assert way in (problem.help or "")
    assert "`ollama_port`" in (problem.help or "")


def test_who_listens_as_the_mac_says_it() -> None:
    fact = Listeners()
    lines = ["examined", "11434 512 ada /Applications/LM Studio.app/Contents/MacOS/LM Studio", "1234 7 _lmstudio "]
    assert fact.process(lines) == (
        Listener(11434, 512, "ada", "/Applications/LM Studio.app/Contents/MacOS/LM Studio"),
        Listener(1234, 7, "_lmstudio", ""),
    )
    assert fact.process(["examined"]) == ()
    for wrong in (["nothing"], ["examined", "x y z"]):
        with pytest.raises(Exception, match="not a list"):
            fact.process(wrong) if wrong == ["nothing"] else fact.process([wrong[1], *wrong])


# The watchdog


def test_the_watchdog_is_told_what_it_cannot_find_out() -> None:
    (one,) = inference.watched(a_box(inference_engine="lmstudio"))
    assert one["account"] == "_lmstudio"
    (one,) = inference.watched(a_box())
    # Two servers of llama.cpp have one account: what one computes must not excuse the other.
    assert one["account"] == ""
