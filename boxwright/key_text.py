"""Keys of the API service, their usage and the audit log as lines for people. What comes in is the service's JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from boxwright import times

if TYPE_CHECKING:
    from boxwright.usage_plot import Chart, Span

# The limits of a key, and how a list names each.
LIMITS = {
    "requests_per_minute": "requests/min",
    "tokens_per_minute": "tokens/min",
    "parallel": "at a time",
    "tokens_per_day": "tokens/day",
    "tokens_per_month": "tokens/month",
}
STATES = ("active", "expired", "revoked")
_COUNTS = ("requests", "refused", "aborted", "tokens_in", "tokens_out")
_STARTS: Mapping[Span, str] = {"hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}


# Keys


def state(known: Mapping[str, Any]) -> str:
    """One of STATES."""
    if known.get("revoked_at"):
        return "revoked"
    expires = _time(known.get("expires_at"))
    return "expired" if expires and expires <= datetime.now(UTC) else "active"


def described(known: Mapping[str, Any]) -> dict[str, Any]:
    """The key for --json."""
    return {**known, "state": state(known)}


def terms(known: Mapping[str, Any]) -> str:
    """What a key may do, in one line."""
    expires = _time(known.get("expires_at"))
    until = f"until {times.shown(expires)}" if expires else "for ever"
    collections = _collections(known)
    passages = "" if collections == "none" else f"passages of: {collections}; "
    return f"{until}; models: {_models(known)}; {passages}limits: {_limits(known)}"


def keys_table(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each key below a head; nothing for no keys."""
    rows = []
    for known in found:
        expires = _time(known.get("expires_at"))
        until = times.shown(expires).removesuffix(" UTC") if expires else "never"
        rows.append((known["id"], known["owner"], state(known), until, _models(known), _limits(known)))
    return table(("id", "owner", "state", "expires", "models", "limits"), rows)


def key_lines(known: Mapping[str, Any]) -> list[str]:
    """One thing that is known of a key in each line."""
    own = known.get("limits") or {}
    lines = {
        "id": known["id"],
        "owner": known["owner"],
        "state": state(known),
        "made": moment(known.get("created_at")),
        "expires": moment(known.get("expires_at")),
        "revoked": moment(known.get("revoked_at")),
        "old secret accepted until": moment(known.get("old_until")),
        "models": _models(known),
        "passages of": _collections(known),
        **{f"limit: {short}": str(own.get(name) or "default") for name, short in LIMITS.items()},
    }
    return [f"{name}: {clean(value)}" for name, value in lines.items()]


def audit_table(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each entry below a head."""
    rows = []
    for entry in found:
        details = (entry.get("details") or {}).items()
        told = " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in details)
        rows.append((moment(entry["at"]), entry["actor"], entry["action"], entry["target"], told))
    return table(("at", "who", "what", "whom", "details"), rows)


def moment(text: str | None) -> str:
    """A time of the service's JSON for people; a dash for none."""
    found = _time(text)
    return times.shown(found) if found else "-"


def _time(text: str | None) -> datetime | None:
    found = datetime.fromisoformat(text) if text else None
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found


def _models(known: Mapping[str, Any]) -> str:
    models = known.get("models")
    return "all" if models is None else ", ".join(models) or "none"


def _collections(known: Mapping[str, Any]) -> str:
    return ", ".join(known.get("collections") or ()) or "none"


def _limits(known: Mapping[str, Any]) -> str:
    own = known.get("limits") or {}
    return ", ".join(f"{own[name]} {short}" for name, short in LIMITS.items() if own.get(name)) or "default"


# Usage


def fitting(time: timedelta) -> Span:
    """Spans that give a picture neither too many bars nor too few."""
    if time <= timedelta(days=2):
        return "hour"
    return "day" if time <= timedelta(days=92) else "month"


def usage_table(rows: Iterable[Mapping[str, Any]], span: Span | None) -> list[str]:
    """A line for each key and model, and for each span when one was asked for; then all together."""
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        start = _time(row["start"])
        begins = (start.strftime(_STARTS[span]),) if span and start else ()
        who = (*begins, row["owner"] or "-", row["key_id"] or "-", row["model"] or "-")
        counts = sums.setdefault(who, [0] * len(_COUNTS))
        for at, name in enumerate(_COUNTS):
            counts[at] += row[name]
    if not sums:
        return []
    names = (*(("from",) if span else ()), "owner", "key", "model")
    lines = [(*who, *map(str, counts)) for who, counts in sorted(sums.items())]
    together = [str(sum(column)) for column in zip(*sums.values(), strict=True)]
    lines.append(("all", *["-"] * (len(names) - 1), *together))
    return table((*names, *(name.replace("_", " ") for name in _COUNTS)), lines, numbers=len(_COUNTS))


def usage_chart(rows: Iterable[Mapping[str, Any]], since: datetime, until: datetime, span: Span, host: str) -> Chart:
    """Tokens over time, by key. Raises ValueError as `usage_plot.chart`."""
    from boxwright.usage_plot import beginning, chart

    amounts: dict[tuple[datetime, str], int] = {}
    for row in rows:
        start = _time(row["start"])
        name = clean(f"{row['owner'] or '?'} ({row['key_id']})") if row["key_id"] else "without a key"
        tokens = row["tokens_in"] + row["tokens_out"]
        if start is not None and tokens:
            place = (beginning(start, span), name)
            amounts[place] = amounts.get(place, 0) + tokens
    note = f"{host}, {times.shown(since).removesuffix(' UTC')} to {times.shown(until)}"
    return chart(amounts, since, until, span, title=f"Tokens per {span} and key", note=note)


# Lines


def clean(text: str) -> str:
    """`text` without characters that could steer a terminal: names come from whoever made them."""
    return "".join(character if character.isprintable() else "?" for character in text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> list[str]:
    """Lines in columns, the last `numbers` of which end at the same place. Nothing without rows."""
    found = [[clean(cell) or "-" for cell in row] for row in rows]
    if not found:
        return []
    widths = [max(len(row[at]) for row in [list(head), *found]) for at in range(len(head))]
    lines = []
    for row in [list(head), *found]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for at in range(len(head) - numbers, len(head)):
            cells[at] = row[at].rjust(widths[at])
        lines.append("  ".join(cells).rstrip())
    return lines
