"""What must hold of LM Studio."""

import json
import re
from typing import Any

import pytest

from boxwright.testing.probes import on_a_mac


@pytest.mark.system("darwin")
def test_its_account_listens_on_loopback_only(host: Any) -> None:
    """LM Studio listens on loopback and nowhere else, with all its processes."""
    found = host.check_output("lsof -nP -a -u _lmstudio -iTCP -sTCP:LISTEN -Fn").splitlines()
    addresses = {line[1:].rpartition(":")[0] for line in found if line.startswith("n")}
    assert addresses == {"127.0.0.1"}


@pytest.mark.system("linux")
def test_loopback_only(host: Any, box: Any) -> None:
    """LM Studio listens on loopback and nowhere else, with all its processes."""
    cgroup = host.check_output("systemctl show --value --property ControlGroup lmstudio").strip()
    processes = set()
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd"):
        processes |= set(host.run(f"cat {root}{cgroup}/cgroup.procs").stdout.split())
    assert processes
    with host.sudo():
        sockets = host.check_output("ss -Hltnp").splitlines()
    ours = [line for line in sockets if processes & set(re.findall(r"pid=(\d+)", line))]
    assert ours
    assert {line.split()[3].rpartition(":")[0] for line in ours} == {"127.0.0.1"}


def test_greets(host: Any, box: Any) -> None:
    """LM Studio itself answers; the status says nothing, since unknown paths are answered with success too."""
    answer = host.check_output(f"curl --silent --fail http://127.0.0.1:{box.lmstudio.port}/lmstudio-greeting")
    assert json.loads(answer) == {"lmstudio": True}


def test_each_model_is_loaded_once(host: Any, box: Any) -> None:
    """In memory is one instance of each declared model, with its context, and nothing else."""
    answer = host.check_output(f"curl --silent --fail http://127.0.0.1:{box.lmstudio.port}/api/v1/models")
    loaded = sorted(
        (instance["id"], instance["config"]["context_length"])
        for model in json.loads(answer)["models"]
        for instance in model["loaded_instances"]
    )
    assert loaded == sorted((model.name, model.context) for model in box.inference.models_of("lmstudio"))


def test_nothing_is_loaded_on_demand(host: Any, box: Any) -> None:
    """A model that is not declared is refused, and the text of requests is not written to the disk."""
    homes = "/var/lib/boxwright/lmstudio" if on_a_mac(host) else "/var/lib/lmstudio"
    with host.sudo():
        paths = host.check_output(f"find {homes} -name http-server-config.json").split()
        saved = [json.loads(host.file(path).content_string) for path in paths]
    assert len(saved) == 1
    assert saved[0]["justInTimeModelLoading"] is False
    assert saved[0]["logSensitiveData"] is False
    assert saved[0]["networkInterface"] == "127.0.0.1"
