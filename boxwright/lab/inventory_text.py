"""The inventory of a lab box: ordinary Ansible files, as somebody would write them for a machine of their own.

A preset (a folder with hosts.yml, group_vars/ and host_vars/) gives groups and variables; the lab puts only the
connection, the mirror and the box's address on top. `tree` and `host_variables` are pure; `write` reads the preset and
writes the files.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boxwright.errors import Location, Problem, Refused
from boxwright.lab.keys import write_private
from boxwright.paths import repository_root

HEADER = "# Written by `boxwright lab up`, and again by each next one: change the preset or the box, not this file.\n"


@dataclass(frozen=True)
class Facts:
    """What the lab knows about a box. `become_password` is set for an account whose sudo asks for one.

    `artifacts` are variables that name what the mirror holds.
    """

    host: str
    address: str
    login: str
    key_file: Path
    known_hosts: Path
    mirror_url: str
    mirror_registry: str
    become_password: str | None = None
    artifacts: Mapping[str, Any] = field(default_factory=dict)


def host_variables(facts: Facts) -> dict[str, Any]:
    """The variables of the box's host, without secrets.

    The gateway listens on all addresses of the box: nothing but this machine reaches the lab's network.
    """
    variables: dict[str, Any] = {
        "ansible_connection": "ssh",
        "ansible_host": facts.address,
        "ansible_port": 22,
        "ansible_user": facts.login,
        "ansible_ssh_private_key_file": str(facts.key_file),
        "ansible_ssh_common_args": f"-o 'UserKnownHostsFile={facts.known_hosts}'"
        if " " in str(facts.known_hosts)
        else f"-o UserKnownHostsFile={facts.known_hosts}",
        "ansible_become": facts.login != "root",
    }
    if facts.mirror_url:
        variables["mirror_url"] = facts.mirror_url
    if facts.mirror_registry:
        variables["mirror_registry"] = facts.mirror_registry
    variables.update(facts.artifacts)
    variables["gateway_names"] = [facts.address]
    variables["gateway_bind"] = ["0.0.0.0"]  # noqa: S104 - see the docstring
    return variables


def tree(
    facts: Facts, preset: Mapping[str, Any] | None = None, preset_variables: Mapping[str, Any] | None = None
) -> Any:
    """The inventory as YAML data: the preset's groups with its one host renamed, and the groups `linux` and `lab`.

    `preset` is the preset's hosts.yml, `preset_variables` the variables of its host from everywhere; those about the
    connection are left out, and what the lab knows wins. Raises ValueError when the preset has not exactly one host.
    """
    groups = _renamed(preset or {}, hosts_of(preset or {}), facts.host) if preset else {}
    variables = {key: value for key, value in (preset_variables or {}).items() if not key.startswith("ansible_")}
    variables.update(host_variables(facts))
    everything = groups.pop("all", None) or {}
    children = {**groups, **(everything.get("children") or {})}
    for group in ("linux", "lab"):
        members = children.setdefault(group, None) or {}
        members["hosts"] = {**(members.get("hosts") or {}), facts.host: None}
        children[group] = members
    children["lab"]["hosts"][facts.host] = variables
    everything["children"] = children
    return {"all": everything}


def hosts_of(preset: Mapping[str, Any]) -> str:
    """The name of the preset's one host. Raises ValueError with the count when there are more or none."""
    found: dict[str, None] = {}

    def walk(groups: Mapping[str, Any]) -> None:
        for group in groups.values():
            for host in (group or {}).get("hosts") or {}:
                found[str(host)] = None
            walk((group or {}).get("children") or {})

    walk(preset)
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} hosts ({', '.join(found) or 'none'})")
    return next(iter(found))


def inline_variables(preset: Mapping[str, Any], host: str) -> dict[str, Any]:
    """The variables that a preset's hosts.yml gives its host, wherever it stands there."""
    variables: dict[str, Any] = {}
    for group in preset.values():
        variables.update(((group or {}).get("hosts") or {}).get(host) or {})
        variables.update(inline_variables((group or {}).get("children") or {}, host))
    return variables


def _renamed(groups: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """The groups with host `old` renamed to `new`, without host variables."""
    result: dict[str, Any] = {}
    for name, group in groups.items():
        copy = dict(group or {})
        if "hosts" in copy:
            copy["hosts"] = {new if str(host) == old else host: None for host in copy["hosts"] or {}}
        if "children" in copy:
            copy["children"] = _renamed(copy["children"] or {}, old, new)
        result[name] = copy
    return result


def presets() -> list[str]:
    """The names of the presets that the repository has."""
    return sorted(path.parent.name for path in (repository_root() / "inventory" / "examples").glob("*/hosts.yml"))


def preset_dir(preset: str) -> Path:
    """The folder of a preset: a name under inventory/examples, or a path (with a slash). Raises Refused (BW308)."""
    folder = Path(preset) if "/" in preset else repository_root() / "inventory" / "examples" / preset
    if (folder / "hosts.yml").is_file():
        return folder.resolve()
    known = presets()
    near = difflib.get_close_matches(preset, known, n=1)
    raise Refused(
        [
            Problem(
                code="BW308",
                message=f"there is no preset {preset!r}: {folder / 'hosts.yml'} does not exist",
                help=(f"did you mean {near[0]!r}? " if near else "") + f"presets: {', '.join(known) or 'none'}",
            )
        ]
    )


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file. Raises Refused (BW308) with its place when it is not one."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = Location(str(path), mark.line + 1, mark.column + 1) if mark else Location(str(path))
        text = getattr(error, "problem", None) or "it is not valid YAML"
        raise Refused([Problem(code="BW308", message=f"the preset cannot be read: {text}", location=where)]) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise Refused(
            [
                Problem(
                    code="BW308",
                    message="the preset cannot be read: a mapping of names to values is expected here",
                    location=Location(str(path), 1, 1),
                )
            ]
        )
    return data


def read_preset(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A preset's hosts.yml and all variables of its one host. Raises Refused (BW308) when it is not usable."""
    groups = load_yaml(folder / "hosts.yml")
    try:
        host = hosts_of(groups)
    except ValueError as error:
        raise Refused(
            [
                Problem(
                    code="BW308",
                    message=f"the lab runs presets with one host: {error}",
                    location=Location(str(folder / "hosts.yml"), 1, 1),
                    help="give each box its own `boxwright lab up NAME --preset ...`",
                )
            ]
        ) from error
    variables = inline_variables(groups, host)
    place = folder / "host_vars"
    for path in [place / f"{host}.yml", place / f"{host}.yaml", *sorted((place / host).glob("*.y*ml"))]:
        if path.is_file():
            variables.update(load_yaml(path))
    return groups, variables


def known_variables(preset: Path | None) -> dict[str, Any]:
    """Variables of a box before it has an inventory: from group_vars of the repository and the preset, and its host.

    A guide to what the mirror must hold, not their true values: all groups count, and what cannot be read without a
    password or by plain YAML is left out. Raises Refused (BW308) for a preset that is not usable.
    """
    found: dict[str, Any] = {}
    own = repository_root() / "group_vars"
    of_all = [path for path in sorted(own.glob("**/*.y*ml")) if path != own / "lab.yml"]
    of_preset = sorted((preset / "group_vars").glob("**/*.y*ml")) if preset else []
    # What holds for the lab wins over what holds for all, wherever that stands.
    for path in (*of_all, *of_preset, own / "lab.yml"):
        with suppress(Refused):
            found.update(load_yaml(path))
    if preset:
        found.update(read_preset(preset)[1])
    return found


def write(folder: Path, facts: Facts, preset: Path | None) -> Path:
    """Write the inventory into `folder` and return its hosts.yml; what an earlier preset left there is removed."""
    groups, variables = read_preset(preset) if preset else (None, None)
    text = HEADER + yaml.safe_dump(
        tree(facts, groups, variables), sort_keys=False, default_flow_style=False, width=1000
    )
    for stale in ("group_vars", "host_vars"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    if preset and (preset / "group_vars").is_dir():
        shutil.copytree(preset / "group_vars", folder / "group_vars")
    if facts.become_password is not None:
        secret = yaml.safe_dump({"ansible_become_password": facts.become_password})
        write_private(folder / "host_vars" / f"{facts.host}.yml", secret)
    write_private(folder / "hosts.yml", text)
    return folder / "hosts.yml"
