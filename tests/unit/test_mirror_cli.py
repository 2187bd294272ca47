"""`boxwright mirror build` from its command line: what it says before anything is fetched, and what it refuses."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from boxwright.errors import Refused
from boxwright.site_mirror.cli import ARCHITECTURES, RELEASES, mirror
from boxwright.site_mirror.supply import ARCHITECTURES as KNOWN_ARCHITECTURES
from boxwright.site_mirror.supply import RELEASES as KNOWN_RELEASES

MODEL = b"GGUF" * 1000


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A web server with a model, and an inventory whose box fetches that and nothing else."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    site = tmp_path / "site"
    site.mkdir()
    (site / "m.gguf").write_bytes(MODEL)
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    model = {
        "name": "m",
        "url": f"http://127.0.0.1:{server.server_port}/m.gguf",
        "sha256": hashlib.sha256(MODEL).hexdigest(),
        "size": len(MODEL),
    }
    variables = {
        "gateway_names": ["llm.example"],
        "gateway_server": "nginx",
        "inference_engine": "ollama",
        "inference_models": [model],
        "ollama_archive": {"sha256": hashlib.sha256(b"").hexdigest(), "size": 1},
    }
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"children": {"linux": {"hosts": {"box": variables}}}}}))
    yield tmp_path / "mirror", inventory, asked
    server.shutdown()
    server.server_close()


def build(folder: Path, inventory: Path, *options: str) -> Result:
    return CliRunner().invoke(mirror, ["build", str(folder), "--inventory", str(inventory), *options])


def test_the_list_comes_first_and_a_dry_run_ends_there(published: Any) -> None:
    folder, inventory, asked = published
    done = build(folder, inventory, "--release", "debian-13", "--no-images", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "m.gguf" in done.stdout
    assert "3.9 KiB" in done.stdout
    assert "in all 3.9 KiB, to fetch 3.9 KiB" in done.stdout
    assert f"free where {folder} is: " in done.stderr
    # What is not fetched is said.
    assert "ghcr.io/open-webui/open-webui:v0.12.4" in done.stderr
    assert not folder.exists()
    assert asked == []
    told = json.loads(build(folder, inventory, "--release", "debian-13", "--no-images", "--dry-run", "--json").stdout)
    assert told["to_fetch"] == len(MODEL) + 1
    assert {file["there"] for file in told["files"]} == {False}


def test_nothing_is_fetched_when_nobody_said_so(published: Any) -> None:
    folder, inventory, asked = published
    done = build(folder, inventory, "--release", "debian-13", "--no-images")
    assert isinstance(done.exception, Refused)
    [problem] = done.exception.problems
    assert (problem.code, "--yes" in (problem.help or "")) == ("BW165", True)
    assert asked == []


def test_what_the_boxes_run_must_be_said(published: Any) -> None:
    folder, inventory, _ = published
    done = build(folder, inventory)
    assert isinstance(done.exception, Refused)
    [problem] = done.exception.problems
    assert problem.code == "BW165"
    assert "--release debian-13" in (problem.help or "")


def test_help_names_what_there_is() -> None:
    assert tuple(KNOWN_RELEASES) == RELEASES
    assert tuple(KNOWN_ARCHITECTURES) == ARCHITECTURES
