"""The hosts of an ordinary Ansible inventory, with their settings validated.

ansible-core's own loaders read the inventory, group_vars, host_vars and vault, so that precedence is what an Ansible
user expects and `ansible-inventory` shows the same. Everything that is wrong, on all hosts, is refused at once.
"""

import difflib
import fnmatch
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from boxwright import masking
from boxwright.describe import looks_secret
from boxwright.errors import Location, Problem, Refused, display_path, render
from boxwright.paths import repository_root, state_dir
from boxwright.settings import BoxBase, Locate


@dataclass(frozen=True)
class InventoryHost:
    """One host: its name, its groups without `all`, its `ansible_*` variables in plain types, its settings."""

    name: str
    groups: tuple[str, ...]
    variables: dict[str, Any] = field(repr=False)
    box: BoxBase = field(repr=False)
    locate: Locate | None = field(default=None, repr=False, compare=False)


def box_class() -> type[BoxBase]:
    """The class that lists all roles: the only place where boxwright reaches for them."""
    root = str(repository_root())
    if root not in sys.path:
        sys.path.append(root)
    found: type[BoxBase] = import_module("roles.registry").Box
    return found


def role_modules(role: str) -> Iterator[ModuleType]:
    """The modules of a role without its checks, which are pytest's; none of a part of the settings that is no role."""
    box_class()  # from now on roles can be imported
    if find_spec(f"roles.{role}") is not None:
        for module in pkgutil.iter_modules(import_module(f"roles.{role}").__path__):
            if module.name != "checks":
                yield import_module(f"roles.{role}.{module.name}")


def find_inventory() -> Path:
    """The inventory to use when none is named: $BOXWRIGHT_INVENTORY, inventory/hosts.yml, else the default lab's.

    Raises Refused when there is none.
    """
    if named := os.environ.get("BOXWRIGHT_INVENTORY"):
        return _existing(Path(named).expanduser(), "BOXWRIGHT_INVENTORY names it")
    own = repository_root() / "inventory" / "hosts.yml"
    lab = state_dir() / "lab" / "default" / "hosts.yml"
    for candidate in (own, lab):
        if candidate.exists():
            return candidate
    raise Refused(
        Problem(
            code="BW001",
            message=f"there is no inventory: neither {display_path(str(own))} nor a lab",
            help="copy a folder of inventory/examples/ to inventory/ and put your machine into hosts.yml,\n"
            "or build a box on this machine: make stack (the box alone: boxwright lab up)",
        )
    )


def _existing(path: Path, why: str) -> Path:
    if not path.exists():
        raise Refused(
            Problem(
                code="BW001",
                message=f"there is no inventory at {display_path(str(path))} ({why})",
                location=Location(str(path)),
                help="correct the path, or leave it out to have inventory/hosts.yml",
            )
        )
    return path.absolute()


def load(path: Path | None = None, *, limit: str | None = None) -> tuple[InventoryHost, ...]:
    """The hosts of the inventory at `path` (default: `find_inventory`), in its order.

    `limit` keeps some: names of hosts and groups, with `*` as in the shell, separated by commas.
    Raises Refused with everything that is wrong. Secrets are made, and masked in all output from then on.
    """
    path = find_inventory() if path is None else _existing(Path(path).expanduser(), "it was asked for by name")
    masking.install()
    from boxwright.inventory_loader import Loader  # here, because it is built on this module

    return Loader(path, repository_root(), box_class()).load(limit)


def select(names: list[str], groups: Mapping[str, list[str]], patterns: Iterable[str]) -> list[str]:
    """The names of hosts that `patterns` (hosts, groups, shell patterns of hosts) choose, in the order of `names`.

    Raises Refused naming every pattern that chooses none.
    """
    chosen: set[str] = set()
    problems: list[Problem] = []
    for pattern in patterns:
        matched = groups[pattern] if pattern in groups else fnmatch.filter(names, pattern)
        chosen.update(matched)
        if matched:
            continue
        choices = [*names, *(group for group, members in groups.items() if members)]
        near = difflib.get_close_matches(pattern, choices, n=1)
        way_out = f"did you mean `{near[0]}`?" if near else "there are: " + ", ".join(dict.fromkeys(choices))
        what = "a group without hosts" if pattern in groups else "neither a host nor a group of the inventory"
        problems.append(Problem(code="BW006", message=f"`{pattern}` is {what}", help=way_out))
    if problems:
        raise Refused(problems)
    return [name for name in names if name in chosen]


# For pyinfra


def pyinfra_groups() -> dict[str, list[Any]]:
    """The names that the root inventory.py gives pyinfra: `all`, with each host's data, and the inventory's groups.

    Prints what is wrong and ends the process with 2, before pyinfra connects to anything.
    """
    try:
        hosts = load()
        targets = _pyinfra_targets(hosts)
        _check_pyinfra_options(hosts)
    except Refused as refused:
        _print_and_exit(refused)
    groups: dict[str, list[Any]] = {"all": list(targets.values())}
    for host in hosts:
        for group in host.groups:
            groups.setdefault(group, []).append(targets[host.name][0])
    return groups


def pyinfra_hosts() -> list[tuple[str, dict[str, Any]]]:
    """The hosts alone, as pyinfra's inventory takes them: ("@boxwright/<name>", {"box": ..., connection data})."""
    hosts: list[tuple[str, dict[str, Any]]] = pyinfra_groups()["all"]
    return hosts


def _pyinfra_targets(hosts: Iterable[InventoryHost]) -> dict[str, tuple[str, dict[str, Any]]]:
    from boxwright.connection import pyinfra_target

    targets: dict[str, tuple[str, dict[str, Any]]] = {}
    problems: list[Problem] = []
    for host in hosts:
        try:
            address, data = pyinfra_target(host.name, host.variables)
        except Refused as refused:
            problems += [located(problem, host.name, host.locate) for problem in refused.problems]
            continue
        targets[host.name] = (address, {**data, "box": host.box})
    if problems:
        raise Refused(merged(problems))
    return targets


def located(problem: Problem, host: str, locate: Locate | None) -> Problem:
    """`problem` of `host` with the place where its variable is set, when it has none yet."""
    if problem.location is None and problem.variable is not None and locate is not None:
        place, source = locate((problem.variable,), "value"), locate((problem.variable,), "text")
        sensitive = problem.sensitive or looks_secret(problem.variable)
        problem = replace(problem, location=place, source=source, sensitive=sensitive)
    return replace(problem, host=problem.host or host)


def _check_pyinfra_options(hosts: Iterable[InventoryHost]) -> None:
    """pyinfra ends with 0 when `--limit` matches nothing; a mistyped host must not look like success."""
    import click

    context = click.get_current_context(silent=True)
    if context is None:
        return
    names = [host.name for host in hosts]
    groups: dict[str, list[str]] = {"all": names}
    for host in hosts:
        for group in host.groups:
            groups.setdefault(group, []).append(host.name)
    patterns = [*(context.params.get("limit") or ()), *(context.params.get("exclude") or ())]
    select(names, groups, patterns)


def _print_and_exit(refused: Refused) -> NoReturn:
    import click

    context = click.get_current_context(silent=True)
    if context is not None and context.params.get("json_output"):
        print(masking.mask(render(refused.problems, style="json")))
    else:
        color = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        print(masking.mask(render(refused.problems, color=color)), file=sys.stderr)
    raise SystemExit(refused.exit_code)


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """Equal problems of several hosts as one, which names them all."""
    hosts: dict[Problem, list[str]] = {}
    for problem in problems:
        named = hosts.setdefault(replace(problem, host=None), [])
        if problem.host and problem.host not in named:
            named.append(problem.host)
    return [replace(problem, host=", ".join(named) or None) for problem, named in hosts.items()]
