"""What the commands that ask a box's API service share: which service is meant, and how an answer is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli import INVENTORY_OPTIONS, options_of

if TYPE_CHECKING:
    from boxwright.api_admin import AdminApi

TARGET = options_of(INVENTORY_OPTIONS, click.option("--development", is_flag=True, help="Of the development instance."))
JSON = click.option("--json", "as_json", is_flag=True, help="As JSON, on standard output.")


@contextmanager
def service(inventory: Path | None, limit: str | None, development: bool, *, look: str) -> Iterator[AdminApi]:
    """The service that the options of TARGET name. `look`: the command that tells whether something was done."""
    from boxwright.api_admin import AdminApi
    from boxwright.errors import Problem, Refused
    from boxwright.inventory import load

    hosts = load(inventory, limit=limit)
    if len(hosts) > 1:
        names = ", ".join(host.name for host in hosts)
        raise Refused(
            Problem(code="BW006", message=f"there are several hosts: {names}", help="choose one with --limit")
        )
    with AdminApi(hosts[0], development=development, look=look) as api:
        try:
            yield api
        except KeyboardInterrupt:
            if api.pending:
                click.echo(f"whether that was done is not known: {look.partition('    ')[0]}", err=True)
            raise


def show(found: Any, as_json: bool, lines: list[str]) -> None:
    """As JSON, or as lines for people."""
    import json

    for line in [json.dumps(found, indent=2, ensure_ascii=False)] if as_json else lines:
        click.echo(line)
