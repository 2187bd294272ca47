"""`boxwright key ...`: keys of a box's API service. Only click is imported at the top, so that help is quick.

The service keeps the keys; this asks its admin API, over SSH (boxwright/api_admin.py). A secret is printed once, by the
command that made it, and kept nowhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright import key_text, times
from boxwright.api_cli import JSON, TARGET, service
from boxwright.api_cli import show as show_answer
from boxwright.cli import options_of

if TYPE_CHECKING:
    from boxwright.api_admin import AdminApi
    from boxwright.usage_plot import Chart, Span

SPANS = ("hour", "day", "month")


class _Words(click.ParamType[Any]):
    """A text that a function reads, which raises ValueError with what was expected."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name, self._read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _id(text: str) -> str:
    """The id of a key; where the key itself was given, of that."""
    import re

    if match := re.fullmatch(r"bw_([A-Za-z0-9]{8})_\S+", text):
        from boxwright import masking

        masking.register([text, text.removeprefix(f"bw_{match[1]}_")])
        return match[1]
    return text


def _limit(text: str) -> int | None:
    if text == "none":
        return None
    number = int(text) if text.isascii() and text.replace("_", "").isdigit() else 0
    if not 1 <= number <= 2**53:
        raise ValueError(f"{text!r} is neither a whole number from 1 on nor none")
    return number


def _now() -> datetime:
    return datetime.now(UTC)


def _expiry(text: str) -> datetime | None:
    return None if text == "never" else times.after(text, _now())


def _owner(text: str) -> str:
    if not text.strip() or len(text) > 128 or not text.isprintable():
        raise ValueError("expected who has the key, in at most 128 characters")
    return text


def _limit_options(rest: str) -> Callable[[Any], Any]:
    texts = {
        "requests_per_minute": "Requests in a minute",
        "tokens_per_minute": "Tokens in a minute",
        "parallel": "Requests at a time",
        "tokens_per_day": "Tokens in a day",
        "tokens_per_month": "Tokens in a month",
    }
    number = _Words("N", _limit)
    return options_of(
        *(
            click.option(f"--{name.replace('_', '-')}", name, type=number, help=texts[name] + rest)
            for name in key_text.LIMITS
        )
    )


ID = click.argument("id", type=_Words("ID", _id))
_EXPIRES = _Words("WHEN", _expiry)
_TIME = _Words("WHEN", lambda text: times.before(text, _now()))


@click.group(name="key")
def key() -> None:
    """Keys of the API service: who may use it, for how long, which models, how much.

    The service is asked over SSH. A time is a length, as in 12h, 90d or 8w, or a day, as in 2027-01-31, in UTC.
    """


@key.command()
@click.argument("owner", type=_Words("OWNER", _owner))
@click.option("--expires", type=_EXPIRES, help="For how long it is accepted, or its last day. Left out: for ever.")
@click.option("--model", "models", metavar="NAME", multiple=True, help="Only this model; repeatable. Left out: all.")
@click.option(
    "--collection",
    "collections",
    metavar="NAME",
    multiple=True,
    help="It may ask for passages of the documents of this collection; repeatable. Left out: of none.",
)
@_limit_options(".")
@TARGET
def add(
    owner: str, expires: datetime | None, models: tuple[str, ...], collections: tuple[str, ...], **rest: Any
) -> None:
    """Make a key for OWNER and print it, once, alone on standard output."""
    limits, target = _parted(rest)
    body: dict[str, Any] = {}
    if expires:
        body["expires_at"] = times.written(expires)
    if models:
        body["models"] = list(dict.fromkeys(models))
    if collections:
        body["collections"] = list(dict.fromkeys(collections))
    if limits := {name: value for name, value in limits.items() if value is not None}:
        body["limits"] = limits
    with _api(**target) as api:
        others = [known["id"] for known in api.all() if known["owner"] == owner and key_text.state(known) == "active"]
        made = api.add(owner, body)
        words = f"{api.host.name} accepts this key of {owner} ({key_text.terms(made)}); it is not shown again"
        if others:
            words += f"\n{owner} has another: {', '.join(others)}    (boxwright key revoke ID takes one away)"
        _print(api, made, words)


@key.command()
@ID
@click.option(
    "--overlap",
    type=_Words("LENGTH", times.length),
    default="24h",
    show_default=True,
    help="How much longer the old secret is accepted; 0h: not at all.",
)
@TARGET
def rotate(id: str, overlap: timedelta, **target: Any) -> None:
    """Give the key ID another secret and print it; the old one is accepted for a while."""
    with _api(**target) as api:
        before = _usable(api, id)
        made = api.rotate(id, overlap.total_seconds())
        until = made.get("old_until")
        words = f"{api.host.name} accepts this key of {_whose(before)}; it is not shown again\nthe old one is refused "
        _print(api, made, words + (f"after {key_text.moment(until)}" if until and overlap else "now"))


@key.command()
@ID
@TARGET
def revoke(id: str, **target: Any) -> None:
    """Refuse the key ID from now on, for good. Answers that were begun with it are not cut."""
    with _api(**target) as api:
        before = api.key(id)
        if before.get("revoked_at"):
            click.echo(f"the key {id} of {_whose(before)} is revoked already", err=True)
            return
        api.revoke(id)
        click.echo(f"{api.host.name} refuses the key {id} of {_whose(before)} now", err=True)


@key.command(name="set")
@ID
@click.option("--owner", type=_Words("OWNER", _owner), help="Who has it.")
@click.option("--expires", type=_EXPIRES, help="For how long from now it is accepted, or its last day; never.")
@click.option("--model", "models", metavar="NAME", multiple=True, help="Only this model; repeatable.")
@click.option("--all-models", is_flag=True, help="Every model.")
@click.option(
    "--collection", "collections", metavar="NAME", multiple=True, help="Passages of this collection alone; repeatable."
)
@click.option("--no-collections", is_flag=True, help="No passages of any collection.")
@_limit_options("; none: the service's default.")
@TARGET
@click.pass_context
def set_(
    ctx: click.Context,
    /,
    id: str,
    owner: str | None,
    expires: datetime | None,
    models: tuple[str, ...],
    all_models: bool,
    collections: tuple[str, ...],
    no_collections: bool,
    **rest: Any,
) -> None:
    """Change the key ID: only what is named. Its secret stays."""
    limits, target = _parted(rest)
    if models and all_models:
        raise click.UsageError("--model and --all-models exclude each other")
    if collections and no_collections:
        raise click.UsageError("--collection and --no-collections exclude each other")

    def given(name: str) -> bool:
        return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    changes: dict[str, Any] = {"owner": owner} if owner else {}
    if given("expires"):
        changes["expires_at"] = times.written(expires) if expires else None
    if models or all_models:
        changes["models"] = list(dict.fromkeys(models)) or None
    if collections or no_collections:
        changes["collections"] = list(dict.fromkeys(collections))
    if new_limits := {name: value for name, value in limits.items() if given(name)}:
        changes["limits"] = new_limits
    if not changes:
        raise click.UsageError("nothing to change: name --owner, --expires, --model, --collection or a limit")
    with _api(**target) as api:
        _usable(api, id)
        now = api.change(id, changes)
        click.echo(f"the key {id} of {_whose(now)} on {api.host.name}: {key_text.terms(now)}", err=True)


@key.command(name="list")
@TARGET
@JSON
def list_(as_json: bool, **target: Any) -> None:
    """List the keys; never their secrets."""
    with _api(**target) as api:
        found = sorted(api.all(), key=lambda known: key_text.STATES.index(key_text.state(known)))
    show_answer([key_text.described(known) for known in found], as_json, key_text.keys_table(found))
    if not found:
        click.echo("there are no keys; boxwright key add OWNER makes one", err=True)


@key.command()
@ID
@TARGET
@JSON
def show(id: str, as_json: bool, **target: Any) -> None:
    """Show what the key ID may do; never its secret."""
    with _api(**target) as api:
        known = api.key(id)
    show_answer(key_text.described(known), as_json, key_text.key_lines(known))


@key.command()
@click.option(
    "--since", type=_TIME, default="7d", show_default=True, help="From when on: a time ago, or the beginning of a day."
)
@click.option("--until", type=_TIME, help="Until when: of a day until its beginning. Left out: now.")
@click.option("--span", type=click.Choice(SPANS), help="Sums for each of these. Left out: for the whole time.")
@click.option("--key", "id", type=_Words("ID", _id), help="Of this key alone.")
@click.option(
    "--plot",
    metavar="[FILE.svg]",
    is_flag=False,
    flag_value="-",
    help="Tokens over time as a picture: in the terminal, or as FILE.svg.",
)
@TARGET
@JSON
def usage(
    since: datetime,
    until: datetime | None,
    span: Span | None,
    id: str | None,
    plot: str | None,
    as_json: bool,
    **target: Any,
) -> None:
    """Sum up requests and tokens by key and model."""
    now = _now()
    end = min(until or now, now)
    if since >= end:
        raise click.UsageError(f"--since is not before --until: {times.shown(since)}, {times.shown(end)}")
    if plot is not None and as_json:
        raise click.UsageError("--plot and --json exclude each other")
    if plot is not None and plot != "-" and not plot.endswith(".svg"):
        raise click.UsageError(f"--plot writes SVG: {plot!r} does not end in .svg")
    asked = span or key_text.fitting(end - since)
    query = {"since": times.written(since), "span": asked}
    if until:
        query["until"] = times.written(end)
    with _api(**target) as api:
        if id is not None:
            query["key_id"] = api.key(id)["id"]
        rows = api.usage(**query)
    if plot is not None:
        try:
            drawn = key_text.usage_chart(rows, since, end, asked, api.host.name)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        _plot(drawn, plot)
        return
    show_answer(rows, as_json, key_text.usage_table(rows, span))
    between = f"{api.host.name}, {times.shown(since)} to {times.shown(end)}"
    click.echo(between if rows else f"{between}: no request", err=True)


@key.command()
@click.option("--entries", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@click.option("--before", type=_TIME, help="Only older ones.")
@TARGET
@JSON
def audit(entries: int, before: datetime | None, as_json: bool, **target: Any) -> None:
    """Show who did what to the keys, the newest first."""
    query = {"limit": str(entries)} | ({"before": times.written(before)} if before else {})
    with _api(**target) as api:
        found = api.audit(**query)
    show_answer(found, as_json, key_text.audit_table(found))


# The service


def _api(**target: Any) -> AbstractContextManager[AdminApi]:
    return service(**target, look="boxwright key list    (revoke a key that is new there: nobody has it)")


def _usable(api: AdminApi, id: str) -> dict[str, Any]:
    """The key, when it can still be changed."""
    from boxwright.errors import Problem, Refused

    known = api.key(id)
    if known.get("revoked_at"):
        message = f"the key {id} of {_whose(known)} is revoked, which is for good"
        raise Refused(Problem(code="BW173", message=message, host=api.host.name, help="boxwright key add OWNER"))
    return known


def _whose(known: Mapping[str, Any]) -> str:
    return key_text.clean(known["owner"])


def _parted(rest: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The limits, and what says which service is meant."""
    return (
        {name: value for name, value in rest.items() if name in key_text.LIMITS},
        {name: value for name, value in rest.items() if name not in key_text.LIMITS},
    )


def _print(api: AdminApi, made: Mapping[str, Any], words: str) -> None:
    """The secret on standard output, and words beside it."""
    from boxwright import masking
    from boxwright.errors import Failed, Problem

    secret = str(made["key"])
    masking.register([secret, secret.removeprefix(f"bw_{made['id']}_")])
    try:
        # Past sys.stdout, where secrets are masked: this one is what was asked for.
        os.write(1, f"{secret}\n".encode())
    except OSError as error:
        problem = Problem(
            code="BW205",
            message=f"the key {made['id']} was made but could not be printed: {error.strerror}",
            host=api.host.name,
            help=f"boxwright key rotate {made['id']} --overlap 0h    (prints another secret of the same key)",
        )
        raise Failed(problem) from None
    click.echo(words, err=True)


# What is printed


def _plot(drawn: Chart, file: str) -> None:
    from boxwright import usage_plot

    if file != "-":
        try:
            Path(file).write_text(usage_plot.svg(drawn), encoding="utf-8")
        except OSError as error:
            raise click.FileError(file, error.strerror) from None
        click.echo(f"written: {file}", err=True)
        return
    import shutil

    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    text = usage_plot.terminal(drawn, shutil.get_terminal_size().columns, ascii_only=_only_ascii(encoding))
    # A name may have letters that the terminal lacks.
    click.echo(text.encode(encoding, "replace").decode(encoding), nl=False)


def _only_ascii(encoding: str) -> bool:
    """Whether the terminal has no more than letters, or is asked to show no more."""
    if "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb":
        return True
    return any(mark not in mark.encode(encoding, "replace").decode(encoding) for mark in "█▓▒░")
