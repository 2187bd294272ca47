"""What must hold of the llama.cpp servers."""

from collections.abc import Iterator
from typing import Any

import pytest

from boxwright.testing.probes import layers_on_the_card, on_a_mac, process

UNITS = {"llamacpp", "llamacpp-embedding"}


def servers(box: Any) -> Iterator[tuple[str, int, Any]]:
    """The services: name, port and model."""
    for server in box.llamacpp.servers(box):
        yield server.unit, server.port, server.model


def test_no_other_server(host: Any, box: Any) -> None:
    """No service runs beside those for the declared models."""
    for name in UNITS - {name for name, _, _ in servers(box)}:
        assert not host.file(f"/etc/systemd/system/{name}.service").exists
        for folder in ("LaunchDaemons", "LaunchAgents"):
            assert not host.file(f"/Library/{folder}/boxwright.{name}.plist").exists


def test_model_is_the_declared_one(host: Any, box: Any) -> None:
    """The process has the declared model's file in memory."""
    for name, _, model in servers(box):
        pid = process(host, name)
        if on_a_mac(host):
            # A mapped file is among what a process has open: with `txt` for its kind.
            loaded = host.check_output(f"lsof -nP -p {pid} -Fn | grep -o '/.*[.]gguf$' | sort -u")
            assert loaded.removeprefix("/private") == model.location
        else:
            loaded = host.check_output(f"grep -o '/[^ ]*[.]gguf' /proc/{pid}/maps | sort -u")
            assert loaded == model.location


def test_answers(host: Any, box: Any) -> None:
    """The engine offers the model under its public name."""
    for _, port, model in servers(box):
        answer = host.check_output(f"curl --silent --fail http://127.0.0.1:{port}/v1/models")
        assert f'"{model.name}"' in answer


def test_embeddings(outside: Any, box: Any) -> None:
    """The embedding model answers through the gateway, below the path of its engine."""
    prefix = "" if box.inference.engine == "llamacpp" else "llamacpp/"
    for _, _, model in servers(box):
        if model.kind == "embedding":
            answer = outside.post(f"{prefix}v1/embeddings", json={"model": model.name, "input": ["Hello.", "Hello."]})
            assert answer.status_code == 200
            first, second = (row["embedding"] for row in answer.json()["data"])
            assert len(first) > 8
            assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) < 1e-3


def test_layers_on_the_graphics_card(host: Any, box: Any) -> None:
    """As many layers of each model are on the card, or a Mac's graphics processor, as declared; llama.cpp counts."""
    if not (box.llamacpp.on_graphics or on_a_mac(host)):
        pytest.skip("llama.cpp computes on the processor here")
    for name, _, model in servers(box):
        counted = layers_on_the_card(host, name)
        assert counted, f"llama.cpp did not say how many layers of `{model.name}` are on the card: journalctl -u {name}"
        there, layers = counted
        wanted = layers if model.gpu_layers == "all" else min(model.gpu_layers, layers)
        assert there == wanted, f"{there} of the {layers} layers of `{model.name}` are on the card, not {wanted}"
