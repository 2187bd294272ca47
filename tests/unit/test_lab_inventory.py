"""The inventory of a lab box, read back with ansible-core's own inventory reader."""

import json
import os
import shlex
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from boxwright.errors import Refused
from boxwright.lab import inventory_text
from boxwright.lab.inventory_text import Facts, hosts_of, read_preset, tree, write

FACTS = Facts(
    host="lab-one",
    address="10.0.0.9",
    login="operator",
    key_file=Path("/state/id_ed25519"),
    known_hosts=Path("/state/known_hosts"),
    mirror_url="http://10.0.0.2:8000",
    mirror_registry="http://10.0.0.3:5000",
)


def ansible(inventory: Path, host: str) -> dict[str, Any]:
    """What Ansible itself says about the host: its variables, and its groups under `groups`."""
    program = Path(sys.executable).with_name("ansible-inventory")
    environment = {**os.environ, "ANSIBLE_LOCAL_TEMP": str(inventory.parent / "tmp"), "LC_ALL": "C.UTF-8"}

    line = [str(program), "-i", str(inventory), "--list"]
    listed = json.loads(subprocess.run(line, capture_output=True, text=True, check=True, env=environment).stdout)
    groups = {name for name, group in listed.items() if host in group.get("hosts", [])}
    return {**listed["_meta"]["hostvars"][host], "groups": groups}


def preset(folder: Path) -> Path:
    (folder / "group_vars").mkdir(parents=True)
    (folder / "host_vars").mkdir()
    (folder / "hosts.yml").write_text(
        "linux:\n  hosts:\n    box:\n      ansible_host: 192.0.2.1\n      ansible_ssh_extra_args: -o Compression=yes\n"
        "      gateway_names: [llm.example.internal]\n      gateway_port: 8443\n"
        "engines:\n  children:\n    cpu:\n      hosts:\n        box:\n          gateway_window: 2048\n"
    )
    (folder / "group_vars" / "all.yml").write_text("gateway_user: from-all\ngateway_in_flight: 3\n")
    (folder / "group_vars" / "cpu.yml").write_text("gateway_in_flight: 4\n")
    (folder / "host_vars" / "box.yml").write_text("host_timezone: Europe/Berlin\n")
    return folder


def test_a_box_without_a_preset(tmp_path: Path) -> None:
    found = ansible(write(tmp_path, FACTS, None), "lab-one")
    assert found["groups"] == {"linux", "lab"}
    assert found["ansible_host"] == "10.0.0.9"
    assert found["ansible_user"] == "operator"
    assert found["ansible_become"] is True
    assert found["ansible_ssh_private_key_file"] == "/state/id_ed25519"
    assert found["ansible_ssh_common_args"] == "-o UserKnownHostsFile=/state/known_hosts"
    assert found["mirror_url"] == "http://10.0.0.2:8000"
    assert found["mirror_registry"] == "http://10.0.0.3:5000"
    assert found["gateway_names"] == ["10.0.0.9"]
    assert found["gateway_bind"] == ["0.0.0.0"]


def test_what_the_mirror_holds_wins_over_the_preset(tmp_path: Path) -> None:
    facts = replace(FACTS, artifacts={"ollama_archive": {"sha256": "a" * 64, "size": 5}, "llamacpp_context": 1})
    found = ansible(write(tmp_path / "lab", facts, preset(tmp_path / "preset")), "lab-one")
    assert found["ollama_archive"] == {"sha256": "a" * 64, "size": 5}
    assert found["llamacpp_context"] == 1


def test_a_preset_keeps_its_groups_and_variables_and_loses_its_connection(tmp_path: Path) -> None:
    found = ansible(write(tmp_path / "lab", FACTS, preset(tmp_path / "preset")), "lab-one")
    assert found["groups"] == {"linux", "lab", "cpu"}
    assert found["gateway_user"] == "from-all"
    assert found["gateway_in_flight"] == 4
    assert found["gateway_window"] == 2048
    assert found["host_timezone"] == "Europe/Berlin"
    assert found["gateway_port"] == 8443
    assert found["gateway_names"] == ["10.0.0.9"]
    assert found["ansible_host"] == "10.0.0.9"
    assert "ansible_ssh_extra_args" not in found


def test_another_preset_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    write(tmp_path / "lab", FACTS, preset(tmp_path / "preset"))
    found = ansible(write(tmp_path / "lab", FACTS, None), "lab-one")
    assert "gateway_user" not in found
    assert found["groups"] == {"linux", "lab"}


def test_root_needs_no_sudo(tmp_path: Path) -> None:
    facts = Facts(**{**FACTS.__dict__, "login": "root"})
    assert ansible(write(tmp_path, facts, None), "lab-one")["ansible_become"] is False


def test_the_sudo_password_is_in_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    facts = Facts(**{**FACTS.__dict__, "login": "secured", "become_password": "correct-horse"})
    hosts = write(tmp_path, facts, None)
    assert ansible(hosts, "lab-one")["ansible_become_password"] == "correct-horse"
    assert "correct-horse" not in hosts.read_text()
    secret = tmp_path / "host_vars" / "lab-one.yml"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    write(tmp_path, FACTS, None)
    assert not secret.exists()


def test_a_state_folder_with_a_space_in_its_name() -> None:
    facts = Facts(**{**FACTS.__dict__, "known_hosts": Path("/my state/known_hosts")})
    # Ansible splits this variable as a shell does.
    words = shlex.split(inventory_text.host_variables(facts)["ansible_ssh_common_args"])
    assert words == ["-o", "UserKnownHostsFile=/my state/known_hosts"]


@pytest.mark.parametrize("text", ["linux: {hosts: {a: , b: }}", "linux: {children: {x: }}"])
def test_a_preset_has_exactly_one_host(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts.yml").write_text(text)
    with pytest.raises(Refused) as caught:
        read_preset(tmp_path)
    assert caught.value.exit_code == 2
    assert "one host" in caught.value.problems[0].message


def test_a_preset_that_is_no_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("linux:\n  hosts: [box\n")
    with pytest.raises(Refused) as caught:
        read_preset(tmp_path)
    location = caught.value.problems[0].location
    assert location is not None
    assert location.path.endswith("hosts.yml")
    assert location.line == 3


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refused) as caught:
        inventory_text.preset_dir("cpu-lamacpp")
    assert "cpu-llamacpp" in (caught.value.problems[0].help or "")


def test_every_preset_of_the_repository_runs_in_the_lab() -> None:
    assert inventory_text.presets()
    for name in inventory_text.presets():
        groups, variables = read_preset(inventory_text.preset_dir(name))
        data = yaml.safe_load(yaml.safe_dump(tree(FACTS, groups, variables)))
        assert hosts_of(data) == "lab-one"
