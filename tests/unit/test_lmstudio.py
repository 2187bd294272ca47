"""The lmstudio role, from settings alone: what is refused, what is fetched, what its program and its unit are told."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from boxwright.errors import Refused
from boxwright.preflight import Machine
from boxwright.settings import parse_box
from boxwright.systemd import systemd_unit
from roles.gateway.common import ways
from roles.lmstudio import tasks as lmstudio
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}


def a_box(*models: dict[str, Any], **variables: Any) -> Box:
    values = {"gateway_names": ["llm.example"], "inference_engine": "lmstudio", "inference_models": models or [MODEL]}
    return parse_box(Box, "box", (), {**values, **variables}, None, None)


def refused(*models: dict[str, Any], **variables: Any) -> list[tuple[str, str | None, str]]:
    with pytest.raises(Refused) as caught:
        a_box(*models, **variables)
    return [(problem.code, problem.variable, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu_layers": 12}, "takes a share of the model"),
        ({"keep_alive": 300}, "is to be loaded when it is asked for"),
        ({"preload": False}, "is to be loaded when it is asked for"),
        ({"url": "", "sha256": None, "size": None, "path": "/srv/folder"}, "reads GGUF files"),
    ],
)
def test_what_it_cannot_do_with_a_model_is_refused(change: dict[str, Any], words: str) -> None:
    ((code, variable, message),) = refused({**MODEL, **change})
    assert (code, variable) == ("BW026", "inference_models")
    assert words in message
    # Another engine may be able to.
    a_box(
        {**MODEL, **change, "url": MODEL["url"], "sha256": "ab" * 32, "size": 1000, "path": ""}, inference_engine="none"
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"lmstudio_version": "0.0.99-1"},
        {"lmstudio_sha512": "0" * 128},
        {"lmstudio_size": 5},
    ],
)
def test_a_bundle_whose_checksum_nobody_knows_is_refused(variables: dict[str, Any]) -> None:
    ((code, variable, _),) = refused(**variables)
    assert (code, variable) == ("BW022", "lmstudio_version")
    # Nobody is bothered where it does not run.
    a_box(**{**variables, "inference_engine": "llamacpp"})


def test_which_bundle_is_fetched() -> None:
    ours = a_box().lmstudio.download("linux")
    assert ours.url == "https://llmster.lmstudio.ai/download/0.0.25-1-linux-x64.full.tar.gz"
    assert (len(ours.sha512), ours.sha256, ours.size) == (128, "", 1005168404)
    cuda = a_box(lmstudio_bundle="x64+cuda12").lmstudio.download("linux")
    assert cuda.url.endswith("/0.0.25-1-linux-x64.full+cuda12.tar.gz")
    assert cuda.sha512 != ours.sha512
    given = a_box(lmstudio_version="0.0.99-2", lmstudio_sha512="1" * 128, lmstudio_size=7).lmstudio.download("linux")
    assert (given.url.rpartition("/")[2], given.sha512, given.size) == ("0.0.99-2-linux-x64.full.tar.gz", "1" * 128, 7)


def test_each_bundle_has_a_home_of_its_own() -> None:
    """So that a version which runs never sees another one arrive."""
    boxes = [a_box(), a_box(lmstudio_bundle="arm64"), a_box(lmstudio_sha512="1" * 128, lmstudio_size=7)]
    homes = {lmstudio.home(box) for box in boxes}
    assert len(homes) == 3
    assert all(re.fullmatch(r"/var/lib/lmstudio/[0-9a-f]{16}", home) for home in homes)


def test_a_bundle_for_another_processor_is_refused_before_anything_is_changed() -> None:
    def found(architecture: str, bundle: str) -> list[str]:
        machine = Machine("Linux", architecture, "debian", "13", True, 2**40, 2**40)
        need = lmstudio.need(a_box(lmstudio_bundle=bundle))
        return [problem.code for condition in need.conditions for problem in condition(machine)]

    assert found("x86_64", "x64") == found("x86_64", "x64+cuda12") == found("aarch64", "arm64") == []
    assert found("aarch64", "x64") == found("x86_64", "arm64") == ["BW026"]


def test_what_is_loaded() -> None:
    other = {**MODEL, "name": "more", "gpu_layers": 0, "context": 8192, "parallel": 3, "kind": "embedding"}
    box = a_box(MODEL, other, lmstudio_bundle="x64+cuda12")
    first, second = json.loads(lmstudio.models(box))
    assert first == {
        "name": "local-llm",
        "file": "/var/lib/boxwright/models/abababababab-tiny.gguf",
        "kind": "chat",
        "context": 4096,
        "parallel": 2,
        "gpu": "max",
    }
    assert (second["gpu"], second["context"], second["kind"]) == ("off", 8192, "embedding")
    # Without the bundle for cards nothing is put on one.
    assert [model["gpu"] for model in json.loads(lmstudio.models(a_box()))] == ["off"]


def test_another_model_reloads_and_another_port_restarts() -> None:
    """What a change does to the service is decided by which file says it."""
    one, two = a_box(), a_box(MODEL, {**MODEL, "name": "two", "sha256": "cd" * 32})
    assert systemd_unit(lmstudio.service(one)) == systemd_unit(lmstudio.service(two))
    assert lmstudio.settings(one) == lmstudio.settings(two)
    assert lmstudio.models(one) != lmstudio.models(two)
    service = lmstudio.service(two)
    assert lmstudio.MODELS in service.reload_files
    assert lmstudio.MODELS not in service.started_with
    assert lmstudio.SETTINGS in service.started_with
    assert lmstudio.settings(a_box(lmstudio_port=4321)) != lmstudio.settings(one)


def test_the_unit() -> None:
    unit = systemd_unit(lmstudio.service(a_box()))
    assert "Type=notify\n" in unit
    assert "KillMode=mixed\n" in unit
    assert "User=lmstudio\n" in unit
    assert "PrivateDevices=yes\n" in unit
    assert "IPAddressDeny=any\n" in unit
    assert "DeviceAllow" not in unit
    card = systemd_unit(lmstudio.service(a_box(lmstudio_bundle="x64+cuda12")))
    assert "PrivateDevices=no\n" in card
    assert "DeviceAllow=char-nvidia* rw\n" in card


def test_only_inference_goes_through_the_gateway() -> None:
    """Its own interface, which loads models, is not offered, and health is judged by what it says."""
    beside = a_box({**MODEL, "engine": "lmstudio"}, {**MODEL, "name": "main"}, inference_engine="llamacpp")
    (way,) = [way for way in ways(beside) if way.path == "/lmstudio"]
    assert way.upstreams == ("127.0.0.1:1234",)
    assert "/v1/chat/completions" in way.allow
    assert all(path.startswith("/v1/") for path in way.allow)
    assert re.search(way.health.body, '{"lmstudio":true}')
    assert re.search(way.health.body, '{"lmstudio": true}')
    assert not re.search(way.health.body, '{"error":"Unexpected endpoint or method. (GET /lmstudio-greeting)"}')


def test_nothing_is_needed_where_it_does_not_run() -> None:
    need = lmstudio.need(a_box(inference_engine="llamacpp"))
    assert (need.ports, need.downloads, need.conditions) == ({}, {}, ())
    assert need.files == (lmstudio.BASE,)
