"""vLLM's role: what is refused, how it is started, and who gets its key."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import yaml

from boxwright.errors import Refused
from boxwright.paths import repository_root
from boxwright.preflight import Machine
from boxwright.settings import parse_box
from boxwright.systemd import systemd_unit
from roles.gateway import caddy, nginx
from roles.inference import tasks as inference
from roles.registry import Box
from roles.vllm import tasks as vllm
from tests.doubles.vllm import wheel as double

MODEL = {"name": "local-llm", "path": "/srv/models/a"}
GGUF = {"name": "small", "path": "/srv/small.gguf", "engine": "llamacpp"}
REQUIREMENTS = f"vllm==0.33.0 --hash=sha256:{'0' * 64}\n"
KEY = "key-of-the-tests-0123456789"


def a_box(*models: dict[str, Any], **variables: Any) -> Box:
    given = {
        "gateway_names": ["llm.example"],
        "inference_engine": "vllm",
        "inference_models": list(models) or [MODEL],
        "vllm_requirements": REQUIREMENTS,
        "vllm_api_key": KEY,
    }
    return parse_box(Box, "box", (), {**given, **variables}, None, None)


def command(*models: dict[str, Any], **variables: Any) -> str:
    box = a_box(*models, **variables)
    model = box.inference.models_of("vllm")[0]
    return " ".join(vllm.command(box)) + "\n" + vllm.configuration(model)


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"vllm_requirements": ""}, "BW022", "does not say which one to install"),
        ({"vllm_requirements": f"torch==2.9 --hash=sha256:{'0' * 64}"}, "BW022", "does not say which one"),
        ({"vllm_requirements": "vllm==0.33.0"}, "BW011", "SHA-256"),
        ({"vllm_requirements": "--index-url https://index.example/"}, "BW011", "SHA-256"),
        ({"vllm_arguments": ["--host=0.0.0.0"]}, "BW022", "`--host=0.0.0.0`"),
        ({"vllm_arguments": ["--api-key", "x"]}, "BW022", "`--api-key`"),
        # argparse takes these for the same.
        ({"vllm_arguments": ["--api_key=x"]}, "BW022", "--api-key"),
        ({"vllm_arguments": ["--hos=0.0.0.0"]}, "BW022", "--host"),
        ({"vllm_arguments": ["--max_model_len=9"]}, "BW022", "--max-model-len"),
        ({"vllm_api_key": "too short"}, "BW011", "20 letters"),
        ({"vllm_api_key": 'a key with "quotes" and {braces}'}, "BW011", "20 letters"),
        ({"inference_models": [MODEL, {**MODEL, "name": "b"}]}, "BW026", "vLLM serves one model"),
        ({"inference_models": [{"name": "a", "path": "/srv/a.gguf"}]}, "BW026", "is one file"),
    ],
)
def test_what_is_refused(variables: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        a_box(**variables)
    assert any(
        problem.code == code and words in f"{problem.message} {problem.help}" for problem in refused.value.problems
    ), refused.value.problems


def test_nothing_is_asked_of_a_box_without_it() -> None:
    box = a_box(GGUF, inference_engine="llamacpp", vllm_requirements="")
    assert vllm.model(box) is None
    assert vllm.need(box).conditions == ()


def test_how_it_is_started() -> None:
    said = command({**MODEL, "context": 8192, "parallel": 4}, vllm_port=8500, vllm_arguments=["--enforce-eager"])
    assert "/bin/vllm serve --config /etc/boxwright/vllm.yaml --host 127.0.0.1 --port 8500 " in said
    assert "--gpu-memory-utilization 0.9 --disable-fastapi-docs --allowed-media-domains none.invalid" in said
    line, _, settings = said.partition("\n")
    assert line.endswith(" --enforce-eager")
    assert yaml.safe_load(settings) == {
        "model": "/srv/models/a",
        "served-model-name": "local-llm",
        "max-model-len": 8192,
        "max-num-seqs": 4,
    }
    assert KEY not in said
    assert "--tensor-parallel-size 2" in command(vllm_tensor_parallel=2)
    assert "--gpu-memory-utilization" not in command(vllm_device="cpu")
    embedding = {"name": "e", "path": "/srv/models/e", "kind": "embedding", "engine": "vllm"}
    assert 'runner: "pooling"' in command({**GGUF}, embedding, inference_engine="llamacpp")


def test_devices_are_open_to_it_only_where_it_computes_on_them() -> None:
    units = {}
    for device in ("cuda", "rocm", "cpu"):
        box = a_box(vllm_device=device)
        units[device] = systemd_unit(vllm.service(box, box.inference.models[0]))
        assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in units[device]
        assert "VLLM_SERVER_DEV_MODE" not in units[device]
        assert KEY not in units[device]
    assert "DeviceAllow=char-nvidia* rw" in units["cuda"]
    assert "DeviceAllow=char-kfd rw" in units["rocm"]
    assert "PrivateDevices=yes" in units["cpu"]
    assert "DeviceAllow" not in units["cpu"]


@pytest.mark.parametrize(
    ("device", "files", "codes"),
    [
        ("cuda", (), ["BW117"]),
        ("cuda", ("/dev/nvidiactl",), []),
        ("rocm", ("/dev/nvidiactl",), ["BW117"]),
        ("rocm", ("/dev/kfd",), []),
        ("cpu", (), []),
    ],
)
def test_a_machine_without_the_card_is_refused(device: str, files: tuple[str, ...], codes: list[str]) -> None:
    need = vllm.need(a_box(vllm_device=device))
    machine = Machine("Linux", "x86_64", "debian", "13", True, 0, 0, files=frozenset(files))
    assert set(files) <= {*need.files, "/dev/nvidiactl"}
    assert [problem.code for condition in need.conditions for problem in condition(machine)] == codes


def test_the_gateway_presents_the_key_in_place_of_the_clients() -> None:
    # For clients and for Open WebUI; with Caddy for requests that can be sent again and for others.
    assert caddy.caddyfile(a_box()).count(f"Bearer {KEY}") == 4
    assert nginx.configuration(a_box(gateway_server="nginx")).count(f"Bearer {KEY}") == 2
    beside = a_box({**GGUF, "engine": None}, {**MODEL, "engine": "vllm"}, inference_engine="llamacpp")
    text = caddy.caddyfile(beside)
    assert text.count(f"Bearer {KEY}") == 2
    engine = text.partition("handle @engine_vllm {")[2].partition("\n\t}\n")[0]
    assert f'header_up Authorization "Bearer {KEY}"' in engine
    assert "header_up -Authorization" not in engine
    main = text.partition("handle @v1 {")[2].partition("\n\t}\n")[0]
    assert "header_up -Authorization" in main


def test_the_watchdog_is_told_the_key_and_of_others_none() -> None:
    beside = a_box({**GGUF, "engine": None}, {**MODEL, "engine": "vllm"}, inference_engine="llamacpp")
    assert {entry["unit"]: entry["key"] for entry in inference.watched(beside)} == {"llamacpp": "", "vllm": KEY}


def test_the_scenario_names_the_double_as_it_is() -> None:
    hosts = yaml.safe_load((repository_root() / "molecule/vllm/box/hosts.yml").read_text())
    given = hosts["linux"]["hosts"]["box"]["vllm_requirements"]
    assert given == f"vllm==0.33.0 --hash=sha256:{hashlib.sha256(double.wheel()[1]).hexdigest()}"
