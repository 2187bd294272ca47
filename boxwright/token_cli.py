"""`boxwright token ...`: bearer tokens of a box's gateway. Only click is imported at the top, so that help is quick.

A token is kept on the control machine as the secret `gateway_tokens.NAME`, so that a box that is built again accepts it
again, and reaches the box by deploys/tokens.py, which loads it without a restart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli import INVENTORY_OPTIONS

if TYPE_CHECKING:
    from boxwright.errors import Problem
    from boxwright.inventory import InventoryHost

DEPLOY = "deploys/tokens.py"
VARIABLE = "gateway_tokens"
NAME = click.argument("name")


@click.group(name="token")
def token() -> None:
    """Bearer tokens for `/v1`: each client has one of its own."""


@token.command()
@NAME
@INVENTORY_OPTIONS
def add(name: str, inventory: Path | None, limit: str | None) -> None:
    """Make a token for the client NAME and print it, once, alone on standard output."""
    host = _one(inventory, limit)
    if name in _tokens(host):
        raise _refused("BW040", f"{host.name} has a token {name} already", f"boxwright token rotate {name}")
    _check_name(host, name)
    made = _store(host, name)
    with _otherwise(f"{name} has no token: the one that was made is thrown away", lambda: _forget(host, name)):
        _push(host, inventory)
    _print(host, name, made)


@token.command()
@NAME
@INVENTORY_OPTIONS
def rotate(name: str, inventory: Path | None, limit: str | None) -> None:
    """Give the client NAME another token and print it; the old one is refused from then on."""
    host = _one(inventory, limit)
    before = _added(host, name)
    made = _store(host, name)
    kept = f"{name} keeps its old token; where {host.name} does not accept it, `boxwright apply` brings it back there"
    with _otherwise(kept, lambda: _put(host, name, before)):
        _push(host, inventory)
    _print(host, name, made)


@token.command()
@NAME
@INVENTORY_OPTIONS
def revoke(name: str, inventory: Path | None, limit: str | None) -> None:
    """Refuse the token of the client NAME from now on. Streams that were begun with it are not cut."""
    host = _one(inventory, limit)
    _added(host, name)
    left = (
        f"the token of {name} is forgotten on this machine, but {host.name} may still accept it: "
        "`boxwright apply` takes it away there as soon as the box can be reached"
    )
    with _otherwise(left):
        _forget(host, name)
        _push(host, inventory)
    click.echo(f"{host.name} refuses the token of {name} now", err=True)


@token.command(name="list")
@INVENTORY_OPTIONS
@click.option("--json", "as_json", is_flag=True, help="As JSON, on standard output.")
def list_(inventory: Path | None, limit: str | None, as_json: bool) -> None:
    """List the names of the tokens; never the tokens themselves."""
    import json

    from boxwright.inventory import load

    found = [
        {"host": host.name, "name": name, "kept": "control machine" if name in ours else "inventory"}
        for host in load(inventory, limit=limit)
        for ours in [_ours(host)]
        for name in sorted(_tokens(host))
    ]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for entry in found:
        click.echo(f"{entry['host']}  {entry['name']}  ({entry['kept']})")
    if not found:
        click.echo("there are no tokens; boxwright token add NAME makes one", err=True)


def _one(inventory: Path | None, limit: str | None) -> InventoryHost:
    from boxwright.inventory import load

    hosts = load(inventory, limit=limit)
    if len(hosts) > 1:
        names = ", ".join(host.name for host in hosts)
        raise _refused("BW006", f"there are several hosts: {names}", "choose one with --limit")
    return hosts[0]


def _tokens(host: InventoryHost) -> dict[str, Any]:
    """All tokens of `host` by name, wherever they are kept."""
    box: Any = host.box  # the roles are not known to this package
    tokens: dict[str, Any] = box.gateway.tokens
    return tokens


def _kept(host: str) -> dict[str, str]:
    """The tokens of `host` that are kept on this machine, by name."""
    from boxwright.secrets import SecretStore

    return SecretStore.members(SecretStore().all(host), VARIABLE)


def _ours(host: InventoryHost) -> dict[str, str]:
    """Those of them that count: where the inventory has a token of that name, its value wins."""
    found = {name: token.get_secret_value() for name, token in _tokens(host).items()}
    return {name: value for name, value in _kept(host.name).items() if found.get(name) == value}


def _added(host: InventoryHost, name: str) -> str:
    """The token of `name`; raises Refused when there is none that this command manages."""
    kept = _ours(host)
    if name in kept:
        return kept[name]
    if name in _tokens(host):
        raise _refused(
            "BW040", f"the token {name} of {host.name} is set in the inventory", f"change `{VARIABLE}` there, and apply"
        )
    names = ", ".join(sorted(kept)) or "none"
    raise _refused("BW040", f"{host.name} has no token {name}", f"it has: {names}")


def _check_name(host: InventoryHost, name: str) -> None:
    """Refuse a name that the variable would not take."""
    from typing import get_args

    from pydantic import TypeAdapter, ValidationError

    from boxwright.describe import in_words

    box: Any = host.box
    names, _ = get_args(type(box.gateway).model_fields["tokens"].annotation)
    try:
        TypeAdapter(names).validate_python(name)
    except ValidationError:
        raise _refused("BW040", f"{name!r} cannot be the name of a token", f"take {in_words(names)}") from None


def _store(host: InventoryHost, name: str) -> str:
    import secrets

    from boxwright import masking

    # The prefix is for people and for programs that look for secrets in places where they should not be.
    made = f"bw-{secrets.token_urlsafe(32)}"
    masking.register([made])
    _put(host, name, made)
    return made


def _put(host: InventoryHost, name: str, value: str) -> None:
    from boxwright.secrets import SecretStore

    SecretStore().put(host.name, SecretStore.member(VARIABLE, name), value)


def _forget(host: InventoryHost, name: str) -> None:
    from boxwright.secrets import SecretStore

    SecretStore().forget(host.name, SecretStore.member(VARIABLE, name))


@contextmanager
def _otherwise(words: str, undo: Callable[[], None] = lambda: None) -> Iterator[None]:
    """When what is done inside fails, is refused or is interrupted: `undo` it, and say so."""
    try:
        yield
    except BaseException:
        undo()
        click.echo(words, err=True)
        raise


def _push(host: InventoryHost, inventory: Path | None) -> None:
    """Bring the tokens to the box; ends the process with the run's exit code when that fails."""
    from boxwright.cli import run_deploy

    result, _ = run_deploy(DEPLOY, style="full", verbosity=0, plain=False, inventory=inventory, limit=host.name)
    if result.exit_code != 0:
        raise SystemExit(result.exit_code)


def _print(host: InventoryHost, name: str, made: str) -> None:
    """The token on standard output, and words beside it."""
    box: Any = host.box
    if {"any", "bearer"} & {box.gateway.auth, *(route.auth for route in box.gateway.routes)}:
        click.echo(f"{host.name} accepts this token of {name} now; it is not shown again", err=True)
    else:
        click.echo(
            f"{host.name} has this token of {name}, but asks for none, since `gateway_auth` is {box.gateway.auth}: "
            "set it to any or bearer, and apply",
            err=True,
        )
    # Past sys.stdout, where secrets are masked: this one is what was asked for.
    os.write(1, f"{made}\n".encode())


def _refused(code: str, message: str, help: str) -> Any:
    from boxwright.errors import Problem, Refused

    problem: Problem = Problem(code=code, message=message, variable=VARIABLE, help=help)
    return Refused(problem)
