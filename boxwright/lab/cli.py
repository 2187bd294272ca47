"""`boxwright lab ...`: boxes on this machine. Only click is imported at the top, so that help is quick."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from docker import DockerClient

DEFAULT = "default"
NAME = click.argument("name", required=False, default=DEFAULT)


@contextmanager
def honest_exit() -> Iterator[None]:
    """Print problems as every other command does, and end with their exit code; 130 when interrupted."""
    from docker.errors import DockerException

    from boxwright.errors import BoxwrightError, Failed, Problem, render

    try:
        try:
            yield
        except DockerException as error:
            text = getattr(error, "explanation", None) or str(error)
            raise Failed(Problem(code="BW303", message=f"the container engine refused: {text}")) from error
    except BoxwrightError as error:
        color = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        click.echo(render(error.problems, style="full", color=color), err=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        click.echo("boxwright: interrupted; the next `boxwright lab up` goes on from here", err=True)
        raise SystemExit(130) from None


@click.group(name="lab")
def lab() -> None:
    """Throw-away boxes on this machine, reached over SSH like any other."""


@lab.command()
@NAME
@click.option("--preset", metavar="PRESET", help="A folder name under inventory/examples/, or a path with a slash.")
@click.option(
    "--login", type=click.Choice(["root", "operator", "secured"]), help="The account that the inventory uses."
)
@click.option("--memory", metavar="SIZE", help="Memory limit of a new box, for example 4g.")
def up(name: str, preset: str | None, login: str | None, memory: str | None) -> None:
    """Bring a box up; does nothing when it is up already.

    Installs a container engine when none answers, builds the box image, fills the mirror, starts the box, writes its
    inventory.

    Accounts: operator (sudo without a password, the default), secured (sudo with one), root.
    """
    from boxwright.lab import boxes, engine, inventory_text, mirror, needed, state
    from boxwright.lab.progress import Progress

    with honest_exit():
        # What can be refused is refused before anything is installed or built.
        known = state.read(state.check_name(name))
        chosen = preset or (known.preset if known else None)
        variables = inventory_text.known_variables(inventory_text.preset_dir(chosen) if chosen else None)
        with Progress() as progress:
            client = engine.ensure(progress)
            box_image, servers = mirror.prepare(client, progress, needed.wheels, needed.programs(variables))
            record = boxes.up(
                client,
                progress,
                name,
                box_image=box_image,
                mirror=servers,
                preset=preset,
                login=login,
                memory=memory,
            )
        click.echo(f"{state.host_name(name)} {record.address} {state.box_dir(name) / 'hosts.yml'}")


@lab.command()
@NAME
@click.option("--all", "everything", is_flag=True, help="All boxes, the mirror and the lab's network.")
@click.option(
    "--purge", is_flag=True, help="Also what would make a rebuilt box the same again: keys, passwords, address."
)
def down(name: str, everything: bool, purge: bool) -> None:
    """Take a box away. Its address, keys and generated secrets are kept for the next `lab up`."""
    from boxwright.lab import boxes, mirror, state

    with honest_exit():
        client = _running_engine()
        for one in state.names() if everything else [name]:
            gone = boxes.down(client, one, purge=purge)
            click.echo(f"box {one}: {'taken away' if gone else 'there was none'}", err=True)
        if everything and client is not None:
            gone = mirror.down(client)
            click.echo(f"mirror: {'taken away' if gone else 'kept, as boxes of others are there'}", err=True)


@lab.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list.")
def list_boxes(as_json: bool) -> None:
    """The boxes of this user, running or not."""
    from boxwright.lab import boxes, state

    with honest_exit():
        client = _running_engine()
        rows: list[dict[str, str | None]] = []
        for name in state.names():
            record = state.read(name)
            if record is not None:
                rows.append(
                    {
                        "name": name,
                        "host": state.host_name(name),
                        "status": boxes.status(client, name),
                        "address": record.address,
                        "login": record.login,
                        "preset": record.preset,
                    }
                )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("no boxes; `boxwright lab up` makes one", err=True)
        return
    header: dict[str, str | None] = {key: key.upper() for key in rows[0]}
    table = [{key: value or "-" for key, value in row.items()} for row in [header, *rows]]
    widths = {key: max(len(row[key]) for row in table) for key in header}
    for row in table:
        click.echo("  ".join(row[key].ljust(widths[key]) for key in header).rstrip())


class _WithRemoteCommand(click.Command):
    """A command whose words after `--` are handed on untouched, also when the name before it is left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            args, ctx.meta["remote"] = args[:place], args[place + 1 :]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] [NAME] [-- COMMAND...]")


@lab.command(cls=_WithRemoteCommand)
@NAME
@click.pass_context
def ssh(context: click.Context, name: str) -> None:
    """Log in to a box, or run a command there: `boxwright lab ssh NAME -- uptime`."""
    from boxwright.connection import from_variables, write_ssh_config
    from boxwright.lab import boxes, inventory_text

    with honest_exit():
        record = _record(name)
        facts = boxes.facts(record, boxes.Mirror())
        config = write_ssh_config(facts.host, from_variables(facts.host, inventory_text.host_variables(facts)))
        os.execvp("ssh", ["ssh", "-F", str(config), facts.host, *context.meta.get("remote", [])])  # noqa: S606


@lab.command()
@NAME
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
def info(name: str, as_json: bool) -> None:
    """Where a box is and how to use it: address, URL, user and password of its gateway."""
    from boxwright.lab.information import collect

    # Reading the settings turns on the masking of secrets on standard output, and this command is asked for one.
    stream = sys.stdout
    with honest_exit():
        found = collect(_running_engine(), _record(name))
    if as_json:
        click.echo(json.dumps(found, indent=2), file=stream)
        return
    for key, value in found.items():
        click.echo(f"{key + ':':<12} {'-' if value is None else value}", file=stream)


def _running_engine() -> DockerClient | None:
    """The engine when it runs; commands that only look or take away never start one."""
    from boxwright.lab import engine
    from boxwright.lab.progress import Progress

    try:
        return engine.connect()
    except engine.NotPermitted:
        with Progress() as progress:
            engine.with_docker_group(progress)


def _record(name: str) -> Any:
    """The record of a box that exists. Raises Refused (BW309) otherwise."""
    from boxwright.errors import Problem, Refused
    from boxwright.lab import state

    record = state.read(state.check_name(name))
    if record is None:
        known = ", ".join(state.names()) or "none"
        raise Refused(
            Problem(
                code="BW309",
                message=f"there is no lab box {name!r}",
                help=f"boxes: {known}; make it with `boxwright lab up {name}`",
            )
        )
    return record
