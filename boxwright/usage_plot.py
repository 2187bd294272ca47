"""Draws the usage of API keys over time: stacked bars, in a terminal or as SVG. Equal numbers give equal bytes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Literal

Span = Literal["hour", "day", "month"]
OTHERS = "others"
# So many bars can still be told from each other.
MOST_BARS = 400
_FORMS: Mapping[Span, str] = {"hour": "%m-%d %H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}


@dataclass(frozen=True)
class Chart:
    """Bars from the oldest to the newest: one for each start of a span, made of one value for each name.

    `values[i][j]` is the value of `names[j]` in the span that begins at `starts[i]` (UTC).
    """

    title: str
    note: str
    span: Span
    names: tuple[str, ...]
    starts: tuple[datetime, ...]
    values: tuple[tuple[int, ...], ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The height of each bar."""
        return tuple(sum(row) for row in self.values)

    def of(self, name: int) -> int:
        """The sum of one name over all spans."""
        return sum(row[name] for row in self.values)

    def label(self, start: datetime) -> str:
        """What stands at a bar."""
        return start.strftime(_FORMS[self.span])

    def with_at_most(self, names: int) -> Chart:
        """The same with the largest names, and the rest as one."""
        if len(self.names) <= names:
            return self
        values = tuple((*row[: names - 1], sum(row[names - 1 :])) for row in self.values)
        return Chart(self.title, self.note, self.span, (*self.names[: names - 1], OTHERS), self.starts, values)


def chart(
    amounts: Mapping[tuple[datetime, str], int], since: datetime, until: datetime, span: Span, *, title: str, note: str
) -> Chart:
    """The chart of `amounts` by (start of span, name), the name with most first; spans without any are there too.

    Raises ValueError when the time has too many spans.
    """
    starts = tuple(_starts(since, until, span))
    if len(starts) > MOST_BARS:
        raise ValueError(f"more than {MOST_BARS} bars, one for each {span}: take a longer span or a shorter time")
    sums: dict[str, int] = {}
    for (_, name), amount in amounts.items():
        sums[name] = sums.get(name, 0) + amount
    names = tuple(sorted(sums, key=lambda name: (-sums[name], name)))
    values = tuple(tuple(amounts.get((start, name), 0) for name in names) for start in starts)
    return Chart(title, note, span, names, starts, values)


def _starts(since: datetime, until: datetime, span: Span) -> Iterator[datetime]:
    at = beginning(since, span)
    for _ in range(MOST_BARS + 1):
        if at >= until:
            return
        yield at
        if span == "month":
            at = (at + timedelta(days=31)).replace(day=1)
        else:
            at += timedelta(hours=1) if span == "hour" else timedelta(days=1)


def beginning(at: datetime, span: Span) -> datetime:
    """The start of the span in which `at` is, in UTC."""
    at = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if span == "hour":
        return at
    return at.replace(hour=0) if span == "day" else at.replace(hour=0, day=1)


def short(number: float) -> str:
    """`0`, `950`, `12.3k`, `4M`: three digits at most."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999.6k would be shown as 1000k.
        if number >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 else f"{scaled:.1f}".removesuffix(".0") + unit
    return f"{number:.0f}"


# In a terminal

_BLOCKS, _ASCII = "█▓▒░", "#=+-"


def terminal(drawn: Chart, width: int, *, ascii_only: bool) -> str:
    """`drawn` as lines of at most `width` columns: one bar to the right for each span, names told apart by shade."""
    marks = _ASCII if ascii_only else _BLOCKS
    drawn = drawn.with_at_most(len(marks))
    labels = [drawn.label(start) for start in drawn.starts]
    numbers = [short(total) for total in drawn.totals]
    most = max(drawn.totals, default=0)
    left, right = max(map(len, labels), default=0), max(map(len, numbers), default=0)
    room = max(width - left - right - 4, 8)
    lines = [drawn.title, drawn.note, ""]
    for name, mark in zip(range(len(drawn.names)), marks, strict=False):
        lines.append(f"{mark * 2} {drawn.names[name]}: {short(drawn.of(name))}"[:width])
    lines += [""] if drawn.names else []
    for label, number, row in zip(labels, numbers, drawn.values, strict=True):
        bar = "".join(mark * cells for mark, cells in zip(marks, _cells(row, most, room), strict=False))
        lines.append(f"{label:<{left}}  {number:>{right}}  {bar}".rstrip())
    return "\n".join(lines) + "\n"


def _cells(row: Sequence[int], most: int, room: int) -> list[int]:
    """How many cells each value has, so that the bar as a whole is as long as its sum."""
    ends, total = [0], 0
    for value in row:
        total += value
        ends.append(round(total * room / most) if most else 0)
    if total and not ends[-1]:  # something is not nothing
        return [1 if value == max(row) and value not in row[:at] else 0 for at, value in enumerate(row)]
    return [after - before for before, after in itertools.pairwise(ends)]


# As SVG

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart, and grey for the others. They
# have enough contrast on white and on the dark ground.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900", "#8a8f98")
_WIDTH, _HEIGHT, _TOP, _LEFT, _RIGHT, _BOTTOM = 960, 300, 64, 64, 24, 40
_STYLE = """
  svg { background: #ffffff; }
  text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px; fill: #1f2328; }
  .title { font-size: 18px; font-weight: 600; }
  .quiet { fill: #59636e; }
  .grid { stroke: #d9dee4; stroke-width: 1; }
  .base { stroke: #818b98; stroke-width: 1; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; }
    text { fill: #e6edf3; }
    .quiet { fill: #9198a1; }
    .grid { stroke: #2a313c; }
    .base { stroke: #656c76; }
  }
"""


def svg(drawn: Chart) -> str:
    """`drawn` as an SVG document without scripts, fonts or pictures of its own; dark where the reader's system is."""
    names = drawn.names
    drawn = drawn.with_at_most(len(_COLOURS))
    keys = list(_legend(drawn))
    legend_rows = 1 + max((line for line, *_ in keys), default=0)
    top = _TOP + legend_rows * 22 + 12
    base = top + _HEIGHT
    height = base + _BOTTOM
    step, highest = _scale(max(drawn.totals, default=0))
    inner = _WIDTH - _LEFT - _RIGHT
    about = f"{drawn.note}; {len(names)} names, together {short(sum(drawn.totals))}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'role="img" aria-labelledby="title about">',
        f'<title id="title">{_text(drawn.title)}</title>',
        f'<desc id="about">{_text(about)}</desc>',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="30">{_text(drawn.title)}</text>',
        f'<text class="quiet" x="{_LEFT}" y="52">{_text(drawn.note)}</text>',
    ]
    for line, along, name in keys:
        x, y = _LEFT + along, _TOP + 14 + line * 22
        square = f'x="{_number(x)}" y="{y - 11}" width="12" height="12" rx="2" fill="{_colour(drawn, name)}"'
        text = _text(_legend_label(drawn, name))
        parts.append(f'<rect {square}/><text x="{_number(x + 18)}" y="{y}">{text}</text>')
    for tick in range(round(highest / step) + 1):
        level = _number(base - _HEIGHT * tick * step / highest)
        line_at = f'x1="{_LEFT}" y1="{level}" x2="{_WIDTH - _RIGHT}" y2="{level}"'
        label_at = f'x="{_LEFT - 8}" y="{level}" dy="4" text-anchor="end"'
        parts.append(f'<line class="{"grid" if tick else "base"}" {line_at}/>')
        parts.append(f'<text class="quiet" {label_at}>{short(tick * step)}</text>')
    slot = inner / max(len(drawn.starts), 1)
    bar = min(max(slot * 0.74, slot - 6), 56)
    for at, (start, row) in enumerate(zip(drawn.starts, drawn.values, strict=True)):
        parts += _bar(drawn, start, row, _LEFT + at * slot + (slot - bar) / 2, bar, base, _HEIGHT / highest)
    parts += _dates(drawn, slot, base)
    if not sum(drawn.totals):
        parts.append(
            f'<text class="quiet" x="{_LEFT + inner / 2}" y="{base - _HEIGHT / 2}" text-anchor="middle">no usage</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(
    drawn: Chart, start: datetime, row: Sequence[int], x: float, width: float, base: float, unit: float
) -> Iterator[str]:
    below = 0
    for name, value in enumerate(row):
        if value:
            y, height = base - (below + value) * unit, value * unit
            told = f"{drawn.label(start)}, {drawn.names[name]}: {value:,}"
            yield (
                f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" height="{_number(height)}" '
                f'fill="{_colour(drawn, name)}"><title>{_text(told)}</title></rect>'
            )
        below += value


def _dates(drawn: Chart, slot: float, base: float) -> Iterator[str]:
    """Labels below the bars, as many as have room; those of hours at hours that divide a day."""
    room = {"hour": 92, "day": 88, "month": 64}[drawn.span]
    every = max(math.ceil(room / slot), 1)
    if drawn.span == "hour":
        every = next((hours for hours in (1, 2, 3, 6, 12, 24) if hours >= every), -(-every // 24) * 24)
    first = next((at for at, start in enumerate(drawn.starts) if start.hour % every == 0), 0)
    for at in range(first, len(drawn.starts), every):
        x = _LEFT + (at + 0.5) * slot
        # At the edges a label would else be cut.
        anchor = "start" if x < room / 2 else "end" if x > _WIDTH - room / 2 else "middle"
        yield (
            f'<text class="quiet" x="{_number(x)}" y="{base + 22}" text-anchor="{anchor}">'
            f"{drawn.label(drawn.starts[at])}</text>"
        )


def _legend(drawn: Chart) -> Iterator[tuple[int, float, int]]:
    """(row, x, name) of each name; the width of a text is guessed, since fonts differ."""
    row, x = 0, 0.0
    for name in range(len(drawn.names)):
        width = 18 + 7.6 * len(_legend_label(drawn, name)) + 20
        if x and x + width > _WIDTH - _LEFT - _RIGHT:
            row, x = row + 1, 0.0
        yield row, x, name
        x += width


def _legend_label(drawn: Chart, name: int) -> str:
    text = drawn.names[name]
    return f"{text if len(text) <= 40 else text[:39] + '…'}: {short(drawn.of(name))}"


def _colour(drawn: Chart, name: int) -> str:
    return _COLOURS[-1] if drawn.names[name] == OTHERS else _COLOURS[name]


def _scale(most: int) -> tuple[int, int]:
    """The distance of grid lines, and the value of the highest: 3 to 6 lines with round numbers."""
    step = 1
    while most > step * 5:
        # 1, 2, 5, 10, 20, 50 ...
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step, max(-(-most // step), 1) * step


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _text(text: str) -> str:
    """Text for XML, which some characters must not be in even when they are escaped."""
    return escape("".join(character if character.isprintable() else "?" for character in text))
