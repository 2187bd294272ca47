"""The double of LM Studio answers as the publisher's program is documented to: see tests/doubles/lmstudio/README.md."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path

from tests.doubles.lmstudio import bundle
from tests.unit.lmstudio_home import Installed, gguf, until


def test_the_bundle_is_as_published(made: bundle.Bundle, wheel: Path, tmp_path: Path) -> None:
    """Name, checksum beside it, two members at the top, and the same bytes each time."""
    assert made.url == "https://llmster.lmstudio.ai/download/0.0.25-1-linux-x64.full.tar.gz"
    digest = hashlib.sha512(made.path.read_bytes()).hexdigest()
    assert made.sha512 == digest == (made.path.parent / "0.0.25-1-linux-x64.full.sha512").read_text()
    with tarfile.open(made.path) as archive:
        assert {Path(name).parts[0] for name in archive.getnames()} == {"llmster", ".bundle"}
    assert bundle.make(tmp_path, "0.0.25-1", wheel).sha512 == digest


def test_exit_codes_carry_no_state(lm: Installed) -> None:
    """Asking for the state succeeds whatever it is; asking twice for an end does not."""
    down = lm.lms("daemon", "status", "--json")
    assert (down.code, down.json) == (0, {"status": "not-running"})
    assert lm.lms("server", "status", "--json").json == {"running": False}
    assert lm.lms("daemon", "down").code == 1
    up = lm.lms("daemon", "up", "--json")
    assert up.json.keys() == {"status", "pid", "isDaemon", "version"}
    assert up.json["version"] == "0.0.25+1"
    assert lm.lms("daemon", "status", "--json").json == {"status": "running", "pid": up.json["pid"], "isDaemon": True}
    assert lm.lms("daemon", "up", "--json").json == up.json
    assert lm.lms("server", "stop").code == 1
    lm.serve()
    assert lm.lms("server", "status", "--json", "--quiet").json == {"running": True, "port": lm.port}
    assert lm.lms("server", "stop").code == 0
    assert lm.lms("server", "status", "--json").json == {"running": False, "port": lm.port}
    assert lm.lms("daemon", "down").code == 0
    until(lambda: lm.lms("daemon", "status", "--json").json == {"status": "not-running"})


def test_any_command_wakes_the_daemon(lm: Installed) -> None:
    assert lm.lms("ps", "--json").json == []
    assert lm.lms("daemon", "status", "--json").json["status"] == "running"


def test_each_load_makes_another_instance(lm: Installed) -> None:
    """Also with an identifier; and what is unloaded in vain ends with success."""
    lm.has("someone/small")
    path = "someone/small/small.Q4_0.gguf"
    load = ("load", "--exact", path, "-y", "--gpu", "off", "-c", "512", "--parallel", "3", "--identifier", "local-llm")
    for _ in range(2):
        assert lm.lms(*load).code == 0
    first, second = lm.lms("ps", "--json").json
    assert (first["identifier"], second["identifier"]) == ("local-llm", "local-llm:2")
    assert (first["contextLength"], first["parallel"], first["ttlMs"], first["path"]) == (512, 3, None, path)
    assert lm.lms("load", "small", "-y", "--ttl", "60").code == 0
    assert (
        lm.lms("ps", "--json").json[2] | {"identifier": "small", "ttlMs": 60000, "parallel": 4}
        == (lm.lms("ps", "--json").json[2])
    )
    assert lm.lms("unload", "local-llm:2").code == 0
    again = lm.lms("unload", "local-llm:2")
    assert again.code == 0
    assert "Cannot find a model with the identifier" in again.err
    assert len(lm.lms("ps", "--json").json) == 2


def test_a_key_is_matched_loosely_and_a_path_exactly(lm: Installed) -> None:
    """The trap of `lms load KEY -y`: the first of what fits somehow, where the last one loaded comes first."""
    lm.has("someone/small")
    lm.has("someone/small-two")
    assert lm.lms("load", "small-two", "-y").code == 0
    loose = lm.lms("load", "small", "-y")
    assert "2 models match" in loose.err
    assert [model["modelKey"] for model in lm.lms("ps", "--json").json] == ["small-two", "small-two"]
    exact = lm.lms("load", "--exact", "small", "-y")
    assert (exact.code, "No model found with path" in exact.err) == (1, True)


def test_import_needs_a_way(lm: Installed, tmp_path: Path) -> None:
    """Without one it asks, and without a terminal it breaks down and moves nothing."""
    source = gguf(tmp_path / "m.gguf")
    plain = lm.lms("import", str(source), "--user-repo", "boxwright/local-llm", "-y")
    assert (plain.code, "ENOTTY" in plain.err, source.exists()) == (1, True, True)
    linked = lm.lms("import", str(source), "--user-repo", "boxwright/local-llm", "-y", "-l")
    target = lm.home / "models/boxwright/local-llm/m.gguf"
    assert (linked.code, target.readlink()) == (0, source)
    assert lm.lms("import", str(source), "--user-repo", "boxwright/local-llm", "-y", "-L").code == 1
    assert lm.lms("import", str(source), "--user-repo", "boxwright/other", "-y", "-L").code == 0
    assert source.stat().st_nlink == 2


def test_what_is_on_the_disk(lm: Installed) -> None:
    """The key comes from the folder, and an embedding model's has a prefix."""
    lm.has("someone/Small-GGUF", context=1024)
    lm.has("someone/nomic", architecture="nomic-bert")
    gguf(lm.home / "models" / "at-the-top.gguf")
    (lm.home / "models/someone/broken").mkdir()
    (lm.home / "models/someone/broken/b.gguf").write_text("<html>")
    found = {model["modelKey"]: model for model in lm.lms("ls", "--json").json}
    assert found.keys() == {"small", "text-embedding-nomic"}
    assert found["small"]["maxContextLength"] == 1024
    assert found["small"]["path"] == "someone/Small-GGUF/Small-GGUF.Q4_0.gguf"
    assert [model["type"] for model in lm.lms("ls", "--json", "--embedding").json] == ["embedding"]


def test_unknown_paths_are_answered_with_success(lm: Installed) -> None:
    lm.serve()
    assert lm.ask("GET", "/lmstudio-greeting") == (200, {"lmstudio": True})
    status, body = lm.ask("GET", "/health")
    assert (status, "Unexpected endpoint or method" in body["error"]) == (200, True)


def test_models_on_the_disk_are_listed_while_they_are_loaded_on_demand(lm: Installed) -> None:
    """With loading on demand the list says nothing about what is ready, and a request loads with other settings."""
    lm.has("someone/small")
    lm.serve()
    assert [model["id"] for model in lm.ask("GET", "/v1/models")[1]["data"]] == ["small"]
    assert lm.ask("GET", "/api/v1/models")[1]["models"][0]["loaded_instances"] == []
    status, body = lm.ask("POST", "/v1/chat/completions", {"model": "small"})
    # The default context, for each of the four that may ask at a time.
    assert (status, body) == (200, {"path": "/v1/chat/completions", "context": 4096 * 4})
    assert lm.lms("ps", "--json").json[0]["ttlMs"] == 3600000


def test_settings_count_when_they_are_written_before_the_daemon_starts(lm: Installed) -> None:
    """What is written while it runs is lost."""
    settings = lm.home / ".internal" / "http-server-config.json"
    settings.write_text(json.dumps({"justInTimeModelLoading": False, "logSensitiveData": False}))
    lm.has("someone/small")
    settings.write_text(json.dumps({"justInTimeModelLoading": True}))
    lm.serve()
    saved = json.loads(settings.read_text())
    assert (saved["justInTimeModelLoading"], saved["logSensitiveData"], saved["port"]) == (False, False, lm.port)
    assert lm.ask("GET", "/v1/models")[1]["data"] == []
    status, body = lm.ask("POST", "/v1/chat/completions", {"model": "small"})
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert lm.lms("load", "small", "-y", "--identifier", "local-llm").code == 0
    assert [model["id"] for model in lm.ask("GET", "/v1/models")[1]["data"]] == ["local-llm"]
    asked = {"model": "local-llm", "stream": True, "secret": "in the body"}
    assert lm.ask("POST", "/v1/chat/completions", asked) == (200, "data: one\n\ndata: [DONE]\n\n")
    assert lm.ask("GET", "/api/v1/models")[1]["models"][0]["loaded_instances"][0]["id"] == "local-llm"
    log = "".join(path.read_text() for path in (lm.home / "server-logs").glob("*/*.log"))
    assert "Received request: POST to /v1/chat/completions" in log
    assert "in the body" not in log


def test_bodies_are_logged_at_first(lm: Installed) -> None:
    lm.serve()
    lm.ask("POST", "/v1/chat/completions", {"model": "x", "secret": "in the body"})
    assert "in the body" in "".join(path.read_text() for path in (lm.home / "server-logs").glob("*/*.log"))


def test_without_its_folder_for_temporary_files_nothing_is_loaded(lm: Installed) -> None:
    (lm.home / ".internal" / "temp").rmdir()
    lm.has("someone/small")
    said = lm.lms("load", "small", "-y")
    assert (said.code, "mkdtemp" in said.err) == (1, True)


def test_the_server_may_die_alone_and_takes_nothing_with_it(lm: Installed) -> None:
    """The daemon goes on, with its models; what the daemon takes with it is everything."""
    lm.has("someone/small")
    assert lm.lms("load", "small", "-y").code == 0
    lm.serve()
    daemon = lm.pid()
    servers = [
        int(child)
        for child in " ".join(p.read_text() for p in Path(f"/proc/{daemon}/task").glob("*/children")).split()
        if b"server.py" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)
    until(lambda: lm.lms("server", "status", "--json").json["running"] is False)
    assert lm.lms("daemon", "status", "--json").json == {"status": "running", "pid": daemon, "isDaemon": True}
    assert len(lm.lms("ps", "--json").json) == 1
    lm.serve()
    os.kill(daemon, signal.SIGKILL)
    until(lambda: lm.lms("server", "status", "--json").json["running"] is False)
    # A command may still meet the daemon that is just ending, and then says nothing.
    until(lambda: lm.lms("ps", "--json").out.strip() == "[]")


def test_selecting_an_engine_for_a_card_that_is_not_there_succeeds(tmp_path: Path, wheel: Path, lm: Installed) -> None:
    """The bundle for graphics cards has both engines, and the other one selected."""
    cuda = bundle.make(tmp_path / "cuda", "0.0.25-1", wheel, variant="+cuda12")
    assert cuda.path.name == "0.0.25-1-linux-x64.full+cuda12.tar.gz"
    with tarfile.open(cuda.path) as archive:
        archive.extractall(tmp_path / "x", filter="data")
    subprocess.run([tmp_path / "x/llmster", "bootstrap"], env=lm.environment, check=True, capture_output=True)
    assert "export PATH" in (lm.user / ".profile").read_text()
    rows = lm.lms("runtime", "ls").out.splitlines()[1:]
    assert [("cuda" in row, "✓" in row) for row in rows] == [(False, True), (True, False)]
    assert lm.lms("runtime", "select", rows[1].split()[0]).code == 0
    assert "✓" in lm.lms("runtime", "ls").out.splitlines()[2]
    survey = lm.lms("runtime", "survey", "--json").json
    assert survey["gpuSurveyResult"]["result"]["code"] == "noDevicesFound"
    assert survey["memoryInfo"]["vramCapacity"] == 0
