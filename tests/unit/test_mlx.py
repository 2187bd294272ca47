"""MLX's role and program, without MLX: what is refused, what is written, what a client may send."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from boxwright.errors import Refused
from boxwright.paths import repository_root
from boxwright.preflight import Machine
from boxwright.settings import parse_box
from boxwright.systemd import systemd_unit
from roles.mlx import tasks as mlx
from roles.registry import Box
from tests.doubles import tiny_mlx

PROGRAM = repository_root() / "templates" / "mlx" / "server.py"
FILES = [
    {"name": name, "sha256": "ab" * 32, "size": 1000}
    for name in ("config.json", "tokenizer_config.json", "model.safetensors")
]
MODEL = {"name": "local-llm", "hub": "owner/model", "files": FILES}


def a_box(*models: dict[str, Any], **variables: Any) -> Box:
    given = {"gateway_names": ["llm.example"], "inference_engine": "mlx", "inference_models": list(models) or [MODEL]}
    return parse_box(Box, "box", (), {**given, **variables}, None, None)


# What is declared


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([MODEL, {**MODEL, "name": "other"}], "serves one model, and local-llm and other"),
        ([MODEL, {**MODEL, "name": "e", "kind": "embedding"}], "has no embeddings, and the model `e`"),
        ([{"name": "a", "path": "/srv/a.gguf"}], "reads a model that is a folder, and the model `a` is one file"),
        ([{"name": "a", "hub": "o/m", "file": "a.safetensors", "sha256": "ab" * 32, "size": 9}], "is one file"),
        ([{**MODEL, "files": FILES[1:]}], "no config.json among its `files`"),
        ([{**MODEL, "files": FILES[:2]}], "no *.safetensors among its `files`"),
        ([{"name": "a", "path": "/home/ada/model"}], "which no service of the box sees"),
        ([{**MODEL, "keep_alive": 60}], "loads its model at the start and keeps it"),
        ([{**MODEL, "preload": False}], "loads its model at the start and keeps it"),
    ],
)
def test_what_it_cannot_serve(models: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(Refused) as refused:
        a_box(*models)
    assert any(problem.code == "BW026" and words in problem.message for problem in refused.value.problems)


def test_a_folder_on_the_box_is_taken() -> None:
    box = a_box({"name": "a", "path": "/srv/models/a"})
    (server,) = box.mlx.servers(box)
    assert json.loads(mlx.settings(box, server.model))["model"] == "/srv/models/a"
    assert "/srv/models/a" in mlx.service(box, server).restart_files


def test_other_engines_are_not_asked_for_folders() -> None:
    model = {"name": "a", "path": "/srv/a.gguf"}
    assert a_box(model, inference_engine="llamacpp").inference.running == ("llamacpp",)


def test_an_old_python_is_refused_unless_the_packages_are_ones_own() -> None:
    own = f"mlx-lm==0.32.2 --hash=sha256:{'0' * 64}\n"
    for release, variables, count in (("12", {}, 1), ("13", {}, 0), ("12", {"mlx_requirements": own}, 0)):
        machine = Machine("Linux", "x86_64", "debian", release, True, 0, 0)
        need = mlx.need(a_box(**variables))
        problems = [problem for condition in need.conditions for problem in condition(machine)]
        assert [problem.code for problem in problems] == ["BW114"] * count


def test_packages_are_named_with_digests() -> None:
    with pytest.raises(Refused) as refused:
        a_box(mlx_requirements="mlx-lm==0.32.2\n")
    assert refused.value.problems[0].variable == "mlx_requirements"


# What is written


def test_the_unit_is_on_loopback_and_restarts_with_each_file_of_the_model() -> None:
    box = a_box(mlx_port=9000)
    (server,) = box.mlx.servers(box)
    service = mlx.service(box, server)
    unit = systemd_unit(service)
    assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in unit
    assert service.sandbox_exceptions == {}
    assert {path for path, _ in server.model.downloads} <= set(service.restart_files)
    assert "http://127.0.0.1:9000/v1/chat/completions" in " ".join(service.probe)
    assert mlx.server(a_box({"name": "a", "path": "/a.gguf"}, inference_engine="llamacpp")) is None


def test_other_packages_are_another_folder() -> None:
    own = f"mlx-lm==0.32.1 --hash=sha256:{'0' * 64}\n"
    assert mlx.environment(a_box()) != mlx.environment(a_box(mlx_requirements=own))


# The program


@pytest.fixture
def check(tmp_path: Path) -> Callable[[], str]:
    """Asks the program whether the model in `tmp_path`/model can be loaded; what it objects to."""
    tiny_mlx.write(tmp_path / "model")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"name": "m", "model": str(tmp_path / "model"), "port": 1, "context": 512}))

    def ask() -> str:
        done = subprocess.run(
            [sys.executable, "-I", str(PROGRAM), str(settings), "--check"], capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == (done.stderr == "")
        return done.stderr

    return ask


def test_a_whole_model_is_accepted(check: Callable[[], str]) -> None:
    assert check() == ""


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_missing_file_is_named(check: Callable[[], str], tmp_path: Path, name: str) -> None:
    (tmp_path / "model" / name).unlink()
    assert name.replace("model.", "model*.") in check()


def test_weights_that_end_early_are_named(check: Callable[[], str], tmp_path: Path) -> None:
    path = tmp_path / "model" / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 4, 100, len(data) - 1):
        path.write_bytes(data[:size])
        assert str(path.parent) in check()
    path.write_bytes(data + b"x")
    assert "model.safetensors is incomplete" in check()


def test_a_part_that_the_index_names_must_be_there(check: Callable[[], str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert "model-00002-of-00002.safetensors is missing" in check()
    shutil.copy(folder / parts["a"], folder / parts["b"])
    assert check() == ""


def test_a_folder_that_is_none_is_named(check: Callable[[], str], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "model")
    assert str(tmp_path / "model") in check()
    (tmp_path / "model").write_text("a file")
    assert str(tmp_path / "model") in check()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The program's names, with empty classes in place of the libraries'."""
    tiny_mlx.write(tmp_path / "model")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"name": "m", "model": str(tmp_path / "model"), "port": 1, "context": 512}))
    upstream, transformers = ModuleType("mlx_lm.server"), ModuleType("transformers")
    for name in ("ModelProvider", "ResponseGenerator", "APIHandler"):
        setattr(upstream, name, type(name, (), {}))

    class Tokenizer:
        def apply_chat_template(self, conversation: object, chat_template: object, padding: object) -> None: ...

    transformers.PreTrainedTokenizerBase = Tokenizer  # type: ignore[attr-defined]
    package = ModuleType("mlx_lm")
    package.server = upstream  # type: ignore[attr-defined]
    for module in (package, upstream, transformers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), str(settings)])
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    return runpy.run_path(str(PROGRAM))


def test_what_a_client_leaves_open_is_left_to_the_server(program: dict[str, Any]) -> None:
    asked = program["checked"](b'{"prompt": "x", "temperature": null, "stream_options": {}}')
    assert asked == {"prompt": "x", "model": "m", "stream_options": {"include_usage": False}}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "x", "temperature": NaN}', 400),
        (b'{"prompt": "x", "model": "/etc"}', 404),
        (b'{"prompt": "x", "model": "default_model"}', 404),
        (b'{"prompt": "x", "adapters": "/etc"}', 400),
        (b'{"prompt": "x", "draft_model": "/etc"}', 400),
        (b'{"prompt": ["x"]}', 400),
        (b'{"prompt": "x", "seed": -1}', 400),
        (b'{"prompt": "x", "seed": 9223372036854775808}', 400),
        (b'{"prompt": "x", "stop": [1]}', 400),
        (b'{"prompt": "x", "stream_options": 1}', 400),
        (b'{"messages": 5}', 400),
        (b'{"messages": ["x"]}', 400),
        (b'{"messages": [], "tools": 5}', 400),
        (b'{"messages": [], "chat_template_kwargs": {"chat_template": "x"}}', 400),
        (b'{"messages": [], "chat_template_kwargs": {"padding": "x"}}', 400),
        (b'{"messages": [{"content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}]}', 400),
        (b'{"messages": [{"content": [{"type": "text"}]}]}', 400),
        (b'{"messages": [{"content": 5}]}', 400),
    ],
)
def test_what_a_client_may_not_ask(program: dict[str, Any], body: bytes, status: int) -> None:
    with pytest.raises(program["Refusal"]) as refused:
        program["checked"](body)
    assert refused.value.status == status


def test_what_would_reach_beyond_the_prompt_is_bounded(program: dict[str, Any]) -> None:
    asked = program["checked"](b'{"prompt": "x", "frequency_context_size": 100000000000000000000}')
    assert asked["frequency_context_size"] == 512
