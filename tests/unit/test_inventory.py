"""The inventory: what is read, and forty and more mistakes, each named with the place where it was made."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from example_box import ExampleBox

from boxwright import inventory, masking
from boxwright.errors import Refused, render
from boxwright.inventory import find_inventory, load, select
from boxwright.paths import repository_root

HOSTS = """\
linux:
  hosts:
    box1:
      ansible_host: 192.0.2.1
"""
MODEL = 'engine_model: {url: "https://example.org/m.gguf", size: 1GiB}\n'
REAL_BOX_CLASS = inventory.box_class
VAULT_PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """A repository, state and working directory of its own; two roles that are not the product's."""
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    for name in ("BOXWRIGHT_INVENTORY", "ANSIBLE_VAULT_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(inventory, "box_class", lambda: ExampleBox)
    monkeypatch.setattr(inventory, "repository_root", lambda: tmp_path / "repository")
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # load() wraps both; the test gives them back
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    (tmp_path / "inventory").mkdir()
    monkeypatch.chdir(tmp_path / "inventory")
    yield
    masking.forget()


def write(files):
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    return Path("hosts.yml")


def box(files, **arguments):
    (host,) = load(write({"hosts.yml": HOSTS, "group_vars/all.yml": MODEL, **files}), **arguments)
    return host.box


def refused(files, path="hosts.yml", **arguments):
    write({"hosts.yml": HOSTS, "group_vars/all.yml": MODEL, **files})
    with pytest.raises(Refused) as caught:
        load(Path(path), **arguments)
    return caught.value.problems


def encrypted(text, password=VAULT_PASSWORD):
    from ansible.parsing.vault import VaultLib, VaultSecret

    secret = VaultSecret(password.encode())
    return VaultLib([("default", secret)]).encrypt(text, secret).decode()


def as_yaml_vault(name, text, password=VAULT_PASSWORD):
    lines = "".join(f"  {line}\n" for line in encrypted(text, password).splitlines())
    return f"{name}: !vault |\n{lines}"


# What is read


def test_a_host_with_its_groups_variables_and_settings():
    hosts = """\
all:
  vars:
    shared: 5
linux:
  children:
    gpu:
      hosts:
        box1:
          ansible_host: 192.0.2.1
          ansible_port: 2222
          ansible_become: true
          ansible_user: "{{ who }}"
          door_port: "{{ shared + 8000 }}"
        box2: {}
"""
    write(
        {
            "hosts.yml": hosts,
            "group_vars/all.yml": MODEL,
            "group_vars/gpu.yml": "who: ada\n",
            "host_vars/box2.yml": "door_port: 9\n",
        }
    )
    first, second = load(Path("hosts.yml"))
    assert (first.name, first.groups, first.box.name, first.box.groups) == (
        "box1",
        ("gpu", "linux"),
        "box1",
        ("gpu", "linux"),
    )
    assert first.variables == {
        "ansible_host": "192.0.2.1",
        "ansible_port": 2222,
        "ansible_become": True,
        "ansible_user": "ada",
    }
    assert {type(value) for value in first.variables.values()} == {str, int, bool}
    assert (first.box.door.port, second.box.door.port) == (8005, 9)


def test_group_vars_of_the_repository_count_as_beside_a_playbook(tmp_path):
    """As in Ansible: they win over group_vars beside the inventory, and a host's own variables win over both."""
    repository = tmp_path / "repository" / "group_vars"
    write({str(repository / "all.yml"): "door_port: 2\nengine_port: 2\n"})
    made = box(
        {"group_vars/all.yml": MODEL + "door_port: 1\nengine_port: 1\n", "hosts.yml": HOSTS + "      engine_port: 3\n"}
    )
    assert (made.door.port, made.engine.port) == (2, 3)


def test_ini_inventories_and_folders_are_read_too():
    write({"group_vars/all.yml": MODEL, "hosts.ini": "[linux]\nbox1 door_port=8443\n[linux:vars]\nengine_enabled=no\n"})
    (host,) = load(Path("hosts.ini"))
    assert (host.box.door.port, host.box.engine.enabled, host.groups) == (8443, False, ("linux",))
    write({"many/a.yml": HOSTS, "many/b.ini": "[other]\nbox2\n", "many/group_vars/all.yml": MODEL})
    assert [host.name for host in load(Path("many"))] == ["box1", "box2"]


def test_other_hosts_and_lookups_can_be_used(monkeypatch):
    monkeypatch.setenv("DOOR", "8444")
    hosts = (
        HOSTS
        + "      door_port: \"{{ hostvars.box2.wanted }}\"\n    box2:\n      wanted: \"{{ lookup('env', 'DOOR') }}\"\n"
    )
    write({"hosts.yml": hosts, "group_vars/all.yml": MODEL})
    assert load(Path("hosts.yml"))[0].box.door.port == 8444


def test_variables_of_the_users_own_are_not_rendered():
    assert box({"group_vars/all.yml": MODEL + 'mine: "{{ undefined_and_unused }}"\n'}).door.port == 443


def test_values_reach_the_settings_as_plain_types():
    made = box({"group_vars/all.yml": MODEL + "door_environment: {KEY: value}\n"})
    assert type(made.engine.model.url) is str
    assert [(type(key), type(value)) for key, value in made.door.environment.items()] == [(str, str)]


def test_vault_values_and_files(monkeypatch):
    write({"password": VAULT_PASSWORD + "\n"})
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password")
    files = {
        "group_vars/all/vars.yml": MODEL + as_yaml_vault("door_token", "value-of-one-variable"),
        "group_vars/all/vault.yml": encrypted("vault_door_password: value-from-a-file\n"),
        "group_vars/all/use.yml": 'door_password: "{{ vault_door_password }}"\n',
    }
    write({"hosts.yml": HOSTS, **files})
    (host,) = load(Path("hosts.yml"))
    assert host.box.door.token.get_secret_value() == "value-of-one-variable"
    assert host.box.door.password.get_secret_value() == "value-from-a-file"
    assert masking.mask("value-of-one-variable value-from-a-file") == "*** ***"


def test_a_vault_password_file_may_be_a_program(monkeypatch):
    write({"password.sh": f"#!/bin/sh\necho '{VAULT_PASSWORD}'\n"})
    Path("password.sh").chmod(0o755)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password.sh")
    made = box({"group_vars/all.yml": MODEL + as_yaml_vault("door_password", "some secret")})
    assert made.door.password.get_secret_value() == "some secret"


def test_secrets_are_masked_from_the_first_message_on():
    """Generated ones, given ones, passwords of the connection; and given ones that are refused."""
    made = box({"hosts.yml": HOSTS + "      ansible_become_password: sudo-password\n      door_token: given-token\n"})
    for secret in (
        made.door.password.get_secret_value(),
        made.door.password_hash.get_secret_value(),
        "sudo-password",
        "given-token",
    ):
        assert masking.mask(f"<{secret}>") == "<***>"
    assert isinstance(sys.stdout, masking.MaskedStream)
    problems = refused({"group_vars/all.yml": MODEL + "door_password: 1234567890\n"})
    assert "1234567890" not in render(problems)
    assert masking.mask("1234567890") == "***"


# Choosing hosts


THREE = {"hosts.yml": "linux:\n  hosts:\n    box1:\n    box2:\nmac:\n  hosts:\n    studio:\nnobody:\n"}


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [
        ("box1", ["box1"]),
        ("linux", ["box1", "box2"]),
        ("all", ["box1", "box2", "studio"]),
        ("box*", ["box1", "box2"]),
        ("studio, box1", ["box1", "studio"]),
    ],
)
def test_limit(limit, chosen):
    write({"group_vars/all.yml": MODEL, **THREE})
    assert [host.name for host in load(Path("hosts.yml"), limit=limit)] == chosen


@pytest.mark.parametrize(
    ("limit", "message", "way_out"),
    [
        ("bix1", "`bix1` is neither a host nor a group of the inventory", "did you mean `box1`?"),
        ("linus", "`linus` is neither a host nor a group of the inventory", "did you mean `linux`?"),
        ("nobody", "`nobody` is a group without hosts", "there are: box1, box2, studio, all, linux, mac"),
        ("x*", "`x*` is neither a host nor a group of the inventory", "there are: box1, box2, studio, all, linux, mac"),
    ],
)
def test_limit_that_matches_nothing(limit, message, way_out):
    (problem,) = refused(THREE, limit=f"box1,{limit}")
    assert (problem.code, problem.message, problem.help) == ("BW006", message, way_out)


def test_select_reports_all_patterns():
    with pytest.raises(Refused) as caught:
        select(["a"], {"all": ["a"]}, ["b", "a", "c"])
    assert [problem.message[:3] for problem in caught.value.problems] == ["`b`", "`c`"]


# Finding the inventory


def test_find_inventory(tmp_path, monkeypatch):
    with pytest.raises(Refused) as caught:
        find_inventory()
    (problem,) = caught.value.problems
    assert problem.code == "BW001"
    assert "inventory/examples/" in problem.help
    assert "make stack" in problem.help
    lab, own = tmp_path / "state/lab/default/hosts.yml", tmp_path / "repository/inventory/hosts.yml"
    write({str(lab): HOSTS})
    assert find_inventory() == lab
    write({str(own): HOSTS})
    assert find_inventory() == own
    write({"named.yml": HOSTS})
    monkeypatch.setenv("BOXWRIGHT_INVENTORY", "named.yml")
    assert find_inventory() == tmp_path / "inventory/named.yml"
    monkeypatch.setenv("BOXWRIGHT_INVENTORY", "gone.yml")
    with pytest.raises(Refused) as caught:
        find_inventory()
    assert caught.value.problems[0].message == "there is no inventory at gone.yml (BOXWRIGHT_INVENTORY names it)"


# Mistakes: what was written, and the code, variable and place that must be named


def in_hosts(*lines):
    """Variables of box1, from line 5, column 7 of hosts.yml."""
    return {"hosts.yml": HOSTS + "".join(f"      {line}\n" for line in lines)}


def in_all(*lines):
    """Variables of all hosts, from line 2 of group_vars/all.yml."""
    return {"group_vars/all.yml": MODEL + "".join(f"{line}\n" for line in lines)}


ALL = "group_vars/all.yml"
MISTAKES = {
    # names
    "unknown variable": (in_all("door_prot: 443"), [("BW012", "door_prot", f"{ALL}:2:1")]),
    "unknown variable of a host": (in_hosts("door_prot: 443"), [("BW012", "door_prot", "hosts.yml:5:7")]),
    "slip in the prefix": (in_all("enigne_backend: cpu"), [("BW012", "enigne_backend", f"{ALL}:2:1")]),
    "derived variable": (in_all("door_password_hash: $2b$10$abc"), [("BW017", "door_password_hash", f"{ALL}:2:1")]),
    # values: text, number, boolean, empty, list, mapping
    "text for a number": (in_all("door_port: https"), [("BW011", "door_port", f"{ALL}:2:12")]),
    "number too large": (in_hosts("door_port: 70000"), [("BW011", "door_port", "hosts.yml:5:18")]),
    "boolean for a number": (in_all("# a comment", "door_port: yes"), [("BW011", "door_port", f"{ALL}:3:1")]),
    "empty value": (in_all("door_port:"), [("BW011", "door_port", f"{ALL}:2:1")]),
    "null": (in_hosts("door_port: ~"), [("BW011", "door_port", "hosts.yml:5:7")]),
    "number for text": (in_all("engine_version: 1.2"), [("BW011", "engine_version", f"{ALL}:2:17")]),
    "date for text": (in_all("engine_version: 2026-11-21"), [("BW011", "engine_version", f"{ALL}:2:17")]),
    "choice mistyped": (in_all("engine_backend:   cudda"), [("BW011", "engine_backend", f"{ALL}:2:19")]),
    "boolean for a choice": (in_all("engine_backend: off"), [("BW011", "engine_backend", f"{ALL}:2:1")]),
    "text for a list": (in_all("door_bind: 0.0.0.0"), [("BW011", "door_bind", f"{ALL}:2:12")]),
    "list for a number": (in_all("door_port: [443]"), [("BW011", "door_port", f"{ALL}:2:1")]),
    "list too long": (in_all('door_bind: ["::1", "::2", "::3"]'), [("BW011", "door_bind", f"{ALL}:2:1")]),
    "wrong item of a list": (in_all('door_bind: ["127.0.0.1", home]'), [("BW011", "door_bind", f"{ALL}:2:26")]),
    "wrong item of a block list": (
        in_all("door_ports:", "  - 80", "  - 8o8o"),
        [("BW011", "door_ports", f"{ALL}:4:5")],
    ),
    "boolean item": (in_all("door_ports: [80, true]"), [("BW011", "door_ports", f"{ALL}:2:1")]),
    "text for a mapping": ({ALL: "engine_model: m.gguf\n"}, [("BW011", "engine_model", f"{ALL}:1:15")]),
    "unknown part": (
        {ALL: "engine_model:\n  url: x\n  size: 1\n  sise: 2\n"},
        [("BW014", "engine_model", f"{ALL}:4:3")],
    ),
    "missing part": ({ALL: "engine_model:\n  url: x\n"}, [("BW015", "engine_model", f"{ALL}:1:1")]),
    "wrong part": (
        {ALL: "engine_model:\n  url: x\n  size: large\n"},
        [("BW011", "engine_model", f"{ALL}:3:9")],
    ),
    "wrong part of an item": (
        in_all("engine_parts:", "  - url: x", "    size: 1", "    flags: [1, two]"),
        [("BW011", "engine_parts", f"{ALL}:5:16")],
    ),
    "unknown part of an item": (
        in_all("engine_parts:", "  - {url: x, size: 1}", "  - {url: x, size: 1, colour: red}"),
        [("BW014", "engine_parts", f"{ALL}:4:23")],
    ),
    "missing part of an item": (
        in_all("engine_parts:", "  - {size: 1}"),
        [("BW015", "engine_parts", f"{ALL}:3:5")],
    ),
    "boolean part": (
        {ALL: "engine_model:\n  url: x\n  size: true\n"},
        [("BW011", "engine_model", f"{ALL}:3:3")],
    ),
    # required
    "missing variable": ({ALL: "mine: 1\n"}, [("BW010", "engine_model", None)]),
    # which of several files
    "the file that wins is blamed": (
        {**in_hosts("door_port: 0"), **in_all("door_port: 1")},
        [("BW011", "door_port", "hosts.yml:5:18")],
    ),
    "also for booleans": (
        {**in_hosts("door_port: false"), **in_all("door_port: 1")},
        [("BW011", "door_port", "hosts.yml:5:7")],
    ),
    "also for a boolean from group_vars": (
        {
            "hosts.yml": "all:\n  vars:\n    door_port: 1\nlinux:\n  hosts:\n    box1:\n",
            "group_vars/linux.yml": "# one\n# two\ndoor_port: no\n",
            ALL: MODEL,
        },
        [("BW011", "door_port", "group_vars/linux.yml:3:1")],
    ),
    "also inside of one file": (
        {"hosts.yml": "a:\n  hosts:\n    box1:\n      door_port: 5\nb:\n  hosts:\n    box1:\n      door_port: true\n"},
        [("BW011", "door_port", "hosts.yml:8:7")],
    ),
    "host_vars": (
        {"host_vars/box1.yml": "\n\ndoor_port: x\n"},
        [("BW011", "door_port", "host_vars/box1.yml:3:12")],
    ),
    # computed values: where it is used, and where the text came from
    "computed from another variable": (
        in_all("base_port: 99999", 'door_port: "{{ base_port }}"'),
        [("BW011", "door_port", f"{ALL}:3:12", f"{ALL}:2:12")],
    ),
    "computed over two files": (
        {**in_hosts('door_port: "{{ base }}"'), **in_all("base: many")},
        [("BW011", "door_port", "hosts.yml:5:18", f"{ALL}:2:7")],
    ),
    "part of a computed mapping": (
        {ALL: 'engine_model: "{{ models.small }}"\nmodels:\n  small:\n    url: x\n    size: huge\n'},
        [("BW011", "engine_model", f"{ALL}:1:15", f"{ALL}:5:11")],
    ),
    # Jinja
    "undefined variable": (in_all('door_port: "{{ bsae }}"', "base: 1"), [("BW007", "door_port", f"{ALL}:2:12")]),
    "undefined one further on": (
        {**in_hosts('door_port: "{{ base }}"'), **in_all('base: "{{ nothing }}"')},
        [("BW007", "door_port", "hosts.yml:5:18", f"{ALL}:2:7")],
    ),
    "undefined inside a list": (
        in_all("door_ports:", "  - 80", '  - "{{ nothing }}"'),
        [("BW007", "door_ports", f"{ALL}:4:5")],
    ),
    "broken expression": (in_all('door_port: "{{ 1 + }}"'), [("BW007", "door_port", f"{ALL}:2:12")]),
    "unknown filter": (in_all("door_port: \"{{ 'x' | nosuchfilter }}\""), [("BW007", "door_port", f"{ALL}:2:12")]),
    "connection variable": (
        {"hosts.yml": 'linux:\n  hosts:\n    box1:\n      ansible_host: "{{ address }}"\n'},
        [("BW007", "ansible_host", "hosts.yml:4:21")],
    ),
    "loop": (
        in_all('door_port: "{{ a }}"', 'a: "{{ door_port }}"'),
        [("BW007", "door_port", f"{ALL}:2:12", f"{ALL}:3:4")],
    ),
    "longer loop": (
        in_all('door_port: "{{ a }}"', 'a: "{{ b }}"', 'b: "{{ door_port }}"'),
        [("BW007", "door_port", f"{ALL}:2:12", f"{ALL}:3:4")],
    ),
    "loop of one": (in_all('door_port: "{{ door_port }}"'), [("BW007", "door_port", f"{ALL}:2:12")]),
    # secrets
    "blank secret": (in_all('door_password: ""'), [("BW016", "door_password", f"{ALL}:2:16")]),
    "empty secret": (in_all("door_password:"), [("BW016", "door_password", f"{ALL}:2:1")]),
    "number for a secret": (in_all("door_password: 1234567"), [("BW011", "door_password", f"{ALL}:2:16")]),
    "password too long": (
        in_all(f"door_password: {'a' * 73}"),
        [("BW018", "door_password", f"{ALL}:2:16")],
    ),
    # between roles
    "port used twice": (in_all("engine_port: 443"), [("BW024", "door_port", None)]),
    "port used twice, set": (
        in_all("engine_port: 8443", "door_port: 8443"),
        [("BW024", "door_port", f"{ALL}:3:12")],
    ),
    # files
    "broken YAML in variables": (in_all("door_port: [1, 2", "x: 1"), [("BW003", None, f"{ALL}:3:2")]),
    "unquoted expression": (in_all("door_port: {{ base }}"), [("BW003", None, f"{ALL}:2:12")]),
    "tab": (in_all("engine_parts:", "\t- url: x"), [("BW003", None, f"{ALL}:3:1")]),
    "colon in a value": (in_all("engine_version: a: b"), [("BW003", None, f"{ALL}:2:18")]),
    "broken YAML in the inventory": (
        {"hosts.yml": "linux:\n  hosts:\n   box1: {\n"},
        [("BW003", None, "hosts.yml:4:1")],
    ),
    "key twice": (in_all("door_port: 1", "door_port: 2"), [("BW019", "door_port", f"{ALL}:3:1")]),
    "a list where variables belong": ({ALL: "- one\n- two\n"}, [("BW002", None, ALL)]),
    # the inventory's own parts
    "empty inventory": ({"hosts.yml": "# nothing\n"}, [("BW004", None, "hosts.yml")]),
    "no host": ({"hosts.yml": "linux:\n  hosts:\n"}, [("BW004", None, "hosts.yml")]),
    "part of a group mistyped": (
        {"hosts.yml": "linux:\n  host:\n    box1:\n  hosts:\n    box2:\n"},
        [("BW005", None, "hosts.yml:2:3")],
    ),
    "host beside the groups": (
        {"hosts.yml": "linux:\n  box1:\n    door_port: 1\n"},
        [("BW005", None, "hosts.yml:2:3")],
    ),
    "hosts as a list": ({"hosts.yml": "linux:\n  hosts:\n    - box1\n"}, [("BW002", None, "hosts.yml:2:3")]),
    "inventory as a list": ({"hosts.yml": "- box1\n"}, [("BW002", None, "hosts.yml:1:1")]),
    "host name is a number": ({"hosts.yml": "linux:\n  hosts:\n    1:\n"}, [("BW002", None, "hosts.yml:3:5")]),
    "text for a host": ({"hosts.yml": "linux:\n  hosts:\n    box1: 192.0.2.1\n"}, [("BW002", None, "hosts.yml:3:5")]),
    "text for a group": ({"hosts.yml": "linux: box1\n"}, [("BW002", None, "hosts.yml:1:1")]),
    # vault
    "vault without a password": (
        {ALL: MODEL + "$VAULT door_password"},
        [("BW008", "door_password", f"{ALL}:2:16")],
    ),
    "vault file without a password": (
        {"group_vars/linux.yml": "$VAULTFILE"},
        [("BW008", None, "group_vars/linux.yml")],
    ),
    # all at once, over roles and files
    "several": (
        {**in_hosts("door_prot: 1", "engine_ratio: 2"), **in_all("door_bind: here", 'engine_backend: "{{ x }}"')},
        [
            ("BW007", "engine_backend", f"{ALL}:3:17"),
            ("BW011", "door_bind", f"{ALL}:2:12"),
            ("BW012", "door_prot", "hosts.yml:5:7"),
            ("BW011", "engine_ratio", "hosts.yml:6:21"),
        ],
    ),
}


def _prepared(files):
    return {
        name: encrypted("door_port: 1\n")
        if text == "$VAULTFILE"
        else re.sub(r"\$VAULT (\w+)", lambda match: as_yaml_vault(match[1], "some secret"), text)
        for name, text in files.items()
    }


def summary(problem):
    places = [str(place) if place else None for place in (problem.location, problem.source)]
    return (problem.code, problem.variable, *(places if places[1] else places[:1]))


def test_there_are_enough_mistakes():
    assert len(MISTAKES) >= 60


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_place(mistake):
    files, expected = MISTAKES[mistake]
    problems = refused(_prepared(files))
    assert [summary(problem) for problem in problems] == expected
    # Each is worth reading alone: a message of one line, and a way out.
    text = render(problems)
    assert "Traceback" not in text
    assert "_Ansible" not in text
    for problem in problems:
        assert "\n" not in problem.message
        assert problem.help, problem


def test_ini_inventories_name_the_line():
    (problem,) = refused({"hosts.ini": "[linux]\nbox1\nbox2 door_port=0\n"}, path="hosts.ini", limit="box2")
    assert summary(problem) == ("BW011", "door_port", "hosts.ini:3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[linux\nbox1\n", "a line is not as Ansible wants it, probably one with brackets"),
        ("[linux:children]\nnosuch\n", "Section [linux:children] includes undefined group 'nosuch'"),
        ("[linux:vars]\nnovalue\n", "Expected key=value, got: novalue"),
        ("[linux]\nbox1 ansible_password='hunter2hunter2\n", "Error parsing host definition"),
    ],
)
def test_broken_ini_inventories_are_named(text, said):
    (problem,) = refused({"hosts.ini": text}, path="hosts.ini")
    assert problem.code == "BW002"
    assert str(problem.location) == "hosts.ini"
    assert "hunter2" not in problem.message
    assert problem.message == f"Ansible cannot read this inventory: {said}"


def test_one_broken_file_in_a_folder_of_inventories():
    write({"many/a.yml": HOSTS, "many/group_vars/all.yml": MODEL})
    (problem,) = refused({"many/b": "[linux\nbox2\n"}, path="many")
    assert problem.code == "BW002"
    assert str(problem.location).startswith("many/b")


@pytest.mark.parametrize(
    ("file", "way_out"),
    [
        ("group_vars/linix.yml", "group_vars/linux.yml"),
        ("group_vars/llinux", "group_vars/linux"),
        ("host_vars/gatewy.yml", "host_vars/gateway.yml"),
    ],
)
def test_a_variables_file_that_is_never_read_for_want_of_a_letter(file, way_out):
    hosts = "linux:\n  hosts:\n    gateway:\n    box-1:\n"
    harmless = {"group_vars/darwin.yml": "", "host_vars/box-2.yml": "", "host_vars/.gatewy.yml.swp": ""}
    (problem,) = refused({"hosts.yml": hosts, file: "door_port: 0\n", **harmless})
    assert (problem.code, str(problem.location), problem.help) == ("BW020", file, f"did you mean {way_out}?")


def test_a_file_in_another_encoding():
    write({"hosts.yml": HOSTS})
    Path("group_vars").mkdir()
    Path(ALL).write_bytes("door_environment: {A: für}\n".encode("latin-1"))
    with pytest.raises(Refused) as caught:
        load(Path("hosts.yml"))
    (problem,) = caught.value.problems
    assert summary(problem) == ("BW003", None, ALL)
    assert problem.message == "not valid YAML: the file is not in UTF-8"
    render([problem])


def test_equal_problems_of_several_hosts_are_one():
    files = {
        "hosts.yml": "linux:\n  hosts:\n    box1:\n    box2:\n    box3:\n      door_port: 1\n",
        **in_all("door_port: 0"),
    }
    (problem,) = refused(files)
    assert (problem.host, str(problem.location)) == ("box1, box2", f"{ALL}:2:12")


def test_problems_of_all_hosts_at_once():
    files = {"hosts.yml": "linux:\n  hosts:\n    box1: {door_port: 0}\n    box2: {door_prot: 1}\n"}
    assert [(problem.code, problem.host) for problem in refused(files)] == [("BW011", "box1"), ("BW012", "box2")]


def test_undefined_variables_get_a_suggestion():
    (problem,) = refused(in_all('door_port: "{{ bsae_port }}"', "base_port: 1"))
    assert problem.message == "`door_port` cannot be rendered: 'bsae_port' is undefined"
    assert problem.help == "did you mean `base_port`?"


def test_a_variable_of_a_vault_that_is_not_there_says_where_it_belongs():
    """And does not suggest the very variable that needs it."""
    text = 'door_password: "{{ vault_door_password }}"\n'
    (problem,) = refused({"group_vars/all/main.yml": MODEL + text, "hosts.yml": HOSTS})
    command = "`ansible-vault create group_vars/all/vault.yml`"
    assert problem.help == f"write `vault_door_password: ...` into a vault beside it: {command}"
    (problem,) = refused({"group_vars/all/vault.yml": "vault_another: 1\n"})
    assert problem.help.endswith("`ansible-vault edit group_vars/all/vault.yml`")


def test_a_wrong_vault_password(monkeypatch):
    write({"password": "not this one\n"})
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password")
    (problem,) = refused({ALL: MODEL + as_yaml_vault("door_password", "some secret")})
    assert summary(problem) == ("BW009", "door_password", f"{ALL}:2:16")
    (problem,) = refused({"group_vars/linux.yml": encrypted("door_port: 1\n"), ALL: MODEL})
    assert summary(problem) == ("BW009", None, "group_vars/linux.yml")


def test_a_missing_vault_password_says_how_to_give_it():
    (problem,) = refused({ALL: MODEL + as_yaml_vault("door_password", "some secret")})
    assert "ANSIBLE_VAULT_PASSWORD_FILE=" in problem.help
    assert "vault_password_file =" in problem.help
    assert "ANSIBLE_VAULT;1.1" not in render([problem])


def test_the_vault_password_file_of_ansible_cfg(tmp_path):
    """In a process of its own: ansible-core reads its configuration once."""
    Path("hosts.yml").write_text(HOSTS + "      greeting: hello\n")
    Path("group_vars").mkdir()
    Path("group_vars/all.yml").write_text(encrypted("vault_x: opened\n"))
    Path("ansible.cfg").write_text("[defaults]\nvault_password_file = ./vault-password\n")
    Path("vault-password").write_text(VAULT_PASSWORD)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from boxwright import inventory\n"
        "from boxwright.settings import BoxBase\n"
        "inventory.box_class = lambda: BoxBase\n"
        "print([host.name for host in inventory.load(Path('hosts.yml'))])\n"
    )
    command = [sys.executable, "-c", program, str(repository_root())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("['box1']\n", "")
    # Another user could change it: ansible-core then takes no notice of the file, and we say so.
    Path.cwd().chmod(0o777)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "there is no vault password" in done.stderr
    Path.cwd().chmod(0o755)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (None, 0, "was not found"),
        ("#!/bin/sh\nexit 3\n", 0o755, "returned non-zero (3)"),
        ("", 0o600, "Invalid vault password"),
    ],
)
def test_a_vault_password_file_that_gives_none(monkeypatch, content, mode, said):
    if content is not None:
        write({"password": content})
        Path("password").chmod(mode)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password")
    (problem,) = refused({})
    assert problem.code == "BW033"
    assert said in problem.message
    assert "ANSIBLE_VAULT_PASSWORD_FILE=" in problem.help


def test_a_mistyped_secret_is_not_shown():
    problems = refused(in_all("door_pasword: hunter2hunter2", "door_tokn: hunter2hunter2"))
    assert [problem.code for problem in problems] == ["BW012", "BW012"]
    for style in ("full", "concise", "json"):
        assert "hunter2" not in render(problems, style=style)


def test_an_unreadable_inventory(tmp_path):
    with pytest.raises(Refused) as caught:
        load(tmp_path / "gone.yml")
    assert caught.value.problems[0].code == "BW001"


def test_values_in_an_encrypted_file_name_it_and_quote_nothing(monkeypatch):
    write({"password": VAULT_PASSWORD})
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password")
    (problem,) = refused({"group_vars/linux.yml": encrypted("# one\ndoor_port: 0\n")})
    assert summary(problem) == ("BW011", "door_port", "group_vars/linux.yml:2:12")
    assert "|" not in render([problem])


# With the real roles


REAL = """\
linux:
  hosts:
    box1:
      ansible_host: 192.0.2.1
      gateway_names: [box1.example]
      inference_models:
        - name: local-llm
          url: https://example.org/m.gguf
          sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
          size: 1GiB
"""


@pytest.mark.parametrize(
    ("lines", "code", "place"),
    [
        ("      gateway_prot: 443\n", "BW012", ":11:7"),
        ("      gateway_port: https\n", "BW011", ":11:21"),
        ("      gateway_port: 8081\n", "BW024", ":11:21"),
        ("      gateway_auth: none\n      gateway_bind: [0.0.0.0]\n", "BW023", ":11:21"),
        ("      host_memory: 512MiB\n", "BW021", ":6:7"),
        ("      ansible_port: ssh\n", "BW100", ":11:21"),
        ("      gateway_port: '{{ nothing }}'\n", "BW007", ":11:21"),
        ("      gateway_port: [\n", "BW003", ":12:1"),
        ("    box1: {}\n", "BW019", ":11:5"),
    ],
)
def test_mistakes_with_the_real_roles(monkeypatch, tmp_path, lines, code, place):
    monkeypatch.setattr(inventory, "box_class", REAL_BOX_CLASS)
    (problem,) = refused({"hosts.yml": REAL + lines, "group_vars/all.yml": ""})
    assert (problem.code, str(problem.location)) == (code, f"hosts.yml{place}")
    assert problem.help
    assert not (tmp_path / "state" / "secrets").exists()


# Through the real command


def pyinfra(tmp_path, files, *arguments):
    """`pyinfra inventory.py debug-inventory` of the repository, with the real roles."""
    path = write(files).absolute()
    environment = {
        **os.environ,
        "BOXWRIGHT_INVENTORY": str(path),
        "BOXWRIGHT_STATE_DIR": str(tmp_path / "state"),
        "PYTHONPATH": "",
    }
    program = [str(Path(sys.executable).parent / "pyinfra"), "inventory.py", "debug-inventory", *arguments]
    return subprocess.run(program, capture_output=True, text=True, cwd=repository_root(), env=environment, timeout=120)


@pytest.mark.parametrize(
    ("lines", "code", "place"),
    [
        ("      gateway_prot: 443\n", "BW012", ":11:7"),
        ("      gateway_port: [\n", "BW003", ":12:1"),
        ("      ansible_connection: winrm\n", "BW100", ":11:27"),
    ],
)
def test_pyinfra_refuses_with_2_and_no_traceback(tmp_path, lines, code, place):
    done = pyinfra(tmp_path, {"hosts.yml": REAL + lines})
    assert done.returncode == 2
    assert f"error[{code}]" in done.stderr
    assert f"hosts.yml{place}\n" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "state" / "secrets").exists()


def test_pyinfra_refuses_an_unknown_limit(tmp_path):
    done = pyinfra(tmp_path, {"hosts.yml": REAL}, "--limit", "bx1")
    assert done.returncode == 2
    assert "did you mean `box1`?" in done.stderr
    done = pyinfra(tmp_path, {"hosts.yml": REAL}, "--exclude", "bx1", "--json")
    assert done.returncode == 2
    (problem,) = json.loads(done.stdout)["problems"]
    assert (problem["code"], problem["help"]) == ("BW006", "did you mean `box1`?")
    assert pyinfra(tmp_path, {"hosts.yml": REAL}, "--limit", "linux").returncode == 0


def test_pyinfra_shows_no_secret(tmp_path):
    files = {
        "hosts.yml": REAL
        + "      ansible_become_password: the-sudo-password\n      openwebui_environment: {API_KEY: sk-123456}\n"
    }
    outputs = [pyinfra(tmp_path, files, *arguments) for arguments in ((), ("--json",), ("--debug",))]
    assert [done.returncode for done in outputs] == [0, 0, 0]
    kept = json.loads((tmp_path / "state/secrets/box1.json").read_text())
    assert {"gateway_password", "openwebui_admin_password", "gateway_password_hash"} <= set(kept)
    for done in outputs:
        for secret in (*kept.values(), "the-sudo-password", "sk-123456"):
            assert secret not in done.stdout + done.stderr
    (host,) = json.loads(outputs[1].stdout)
    assert (host["name"], host["data"]["box"]["gateway"]["names"]) == ("box1", ["box1.example"])
    assert "linux" in host["groups"]
