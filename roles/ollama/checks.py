"""What must hold of Ollama."""

import json
import re
from typing import Any

import pytest

from boxwright.testing.probes import on_a_mac


def ask(host: Any, box: Any, path: str) -> Any:
    """What Ollama itself answers."""
    return json.loads(host.check_output(f"curl --silent --fail http://127.0.0.1:{box.ollama.port}{path}"))


def test_version(host: Any, box: Any) -> None:
    """Ollama has the declared version."""
    assert ask(host, box, "/api/version")["version"] == box.ollama.version


def test_models(host: Any, box: Any) -> None:
    """Every declared model is there, with the declared context length."""
    there = {model["name"] for model in ask(host, box, "/api/tags")["models"]}
    for model in box.inference.models_of("ollama"):
        assert box.ollama.listed(model.name) in there
        asked = json.dumps({"model": model.name})
        shown = host.check_output(f"curl --silent --fail http://127.0.0.1:{box.ollama.port}/api/show --data '{asked}'")
        assert re.search(rf"num_ctx\s+{model.context}\b", json.loads(shown)["parameters"])


def test_models_cannot_be_changed_by_who_asks(host: Any, box: Any) -> None:
    """A request cannot remove a model: the server may not write its store."""
    url = f"http://127.0.0.1:{box.ollama.port}/api/delete"
    for model in box.inference.models_of("ollama"):
        asked = json.dumps({"model": model.name})
        answer = host.check_output(f"curl --silent --request DELETE {url} --data '{asked}'")
        assert ("permission denied" if on_a_mac(host) else "read-only file system") in answer
    test_models(host, box)


def test_update(host: Any, box: Any) -> None:
    """Models of a registry are fetched anew when that is wanted, and the last time it worked."""
    wanted = box.ollama.update and any(model.ollama for model in box.inference.models_of("ollama"))
    if on_a_mac(host):
        assert host.file("/Library/LaunchDaemons/boxwright.ollama-update.plist").exists == bool(wanted)
        if wanted:
            told = host.check_output("launchctl print system/boxwright.ollama-update")
            last = re.search(r"^\tlast exit code = (.*)$", told, re.MULTILINE)
            assert last
            assert last[1] in ("0", "(never exited)"), "see what it said: /var/log/boxwright/ollama-update"
        return
    if not wanted:
        assert not host.file("/etc/systemd/system/ollama-update.timer").exists
        return
    assert host.service("ollama-update.timer").is_running
    assert host.service("ollama-update.timer").is_enabled
    said = "see what it said: journalctl -u ollama-update"
    assert host.check_output("systemctl show -P Result ollama-update.service") == "success", said


def test_graphics_card(host: Any, box: Any) -> None:
    """Where there is a graphics card that Ollama may use, the models in memory are on it to the last byte."""
    if not on_a_mac(host) and (box.ollama.graphics != "nvidia" or host.run("nvidia-smi --list-gpus").rc != 0):
        pytest.skip("no graphics card, or not for Ollama")
    whole = {box.ollama.listed(m.name) for m in box.inference.models_of("ollama") if m.gpu_layers == "all"}
    for loaded in ask(host, box, "/api/ps")["models"]:
        if loaded["name"] in whole:
            assert loaded["size_vram"] == loaded["size"], f"{loaded['name']} is on the card in part only"
