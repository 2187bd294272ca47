"""Pictures of usage: the same numbers, the same bytes. The golden files are made by `UPDATE_GOLDEN=1 pytest ...`."""

from __future__ import annotations

import itertools
import os
import random
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from boxwright.paths import repository_root
from boxwright.usage_plot import MOST_BARS, Chart, Span, beginning, chart, short, svg, terminal

GOLDEN = Path(__file__).parent / "golden"
SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("laptop (k3V9x2Pa)", "ci (0a1B2c3D)", "phöne & <b> (Zz1Zz1Zz)", "web (qQ9qQ9qQ)", "bot (12345678)")


def made(names: tuple[str, ...] = NAMES, days: int = 24, span: Span = "day") -> Chart:
    chance = random.Random(8)
    since = datetime(2026, 11, 1, 5, 30, tzinfo=UTC)
    amounts = {}
    for number in range(days * (24 if span == "hour" else 1)):
        at = beginning(since, span) + timedelta(**{f"{span}s": number})
        for place, name in enumerate(names):
            if chance.random() < 0.7:
                amounts[at, name] = int(chance.random() * 90_000 / (place + 1))
    until = since + timedelta(days=days)
    return chart(amounts, since, until, span, title=f"Tokens per {span} and key", note="box, November 2026")


def golden(path: Path, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_the_golden_pictures() -> None:
    golden(GOLDEN / "usage.svg", svg(made()))
    golden(GOLDEN / "usage-blocks.txt", terminal(made(), 72, ascii_only=False))
    golden(GOLDEN / "usage-ascii.txt", terminal(made(), 72, ascii_only=True))


def test_the_picture_of_the_documentation_is_ours() -> None:
    chance = random.Random(3)
    since = datetime(2026, 11, 1, tzinfo=UTC)
    names = {"website (k3V9x2Pa)": 90, "Anna, thesis (0a1B2c3D)": 60, "laptop (Zz1yX8w7)": 25, "ci (qQ9pP8oO)": 40}
    amounts = {}
    for day in range(30):
        at = since + timedelta(days=day)
        for name, most in names.items():
            # Nobody works on Sundays but the website.
            if at.weekday() < 6 or name.startswith("website"):
                amounts[at, name] = int(most * 1000 * (0.4 + 0.6 * chance.random()) * (1 + day / 30))
    until = since + timedelta(days=30)
    note = "box, 2026-11-01 00:00 to 2026-12-01 00:00 UTC"
    drawn = chart(amounts, since, until, "day", title="Tokens per day and key", note=note)
    golden(repository_root() / "docs" / "images" / "usage.svg", svg(drawn))


def bars(text: str) -> list[tuple[float, float, float, str]]:
    """x, y, height and what is told of each part of a bar, read by another program."""
    return [
        (float(part.attrib["x"]), float(part.attrib["y"]), float(part.attrib["height"]), title.text or "")
        for part in ET.fromstring(text).iter(f"{SVG}rect")
        if (title := part.find(f"{SVG}title")) is not None
    ]


def test_bars_are_as_high_as_their_numbers_and_stand_on_each_other() -> None:
    drawn = made()
    found = bars(svg(drawn))
    values = [value for row in drawn.values for value in row if value]
    assert [int(told.rpartition(": ")[2].replace(",", "")) for *_, told in found] == values
    units = [height / value for (_, _, height, _), value in zip(found, values, strict=True) if height > 5]
    assert max(units) / min(units) < 1.01
    lowest = max(y + height for _, y, height, _ in found)
    for x in {x for x, *_ in found}:
        below = lowest
        for _, y, height, _ in [bar for bar in found if bar[0] == x]:
            assert y + height == pytest.approx(below, abs=0.02)
            below = y


def test_the_axis_says_what_the_heights_mean() -> None:
    root = ET.fromstring(svg(made()))
    labels = {text.text: float(text.attrib["y"]) for text in root.iter(f"{SVG}text") if text.get("dy")}
    assert list(labels) == ["0", "50k", "100k", "150k", "200k"]
    steps = list(labels.values())
    assert steps[0] - steps[1] == pytest.approx(steps[2] - steps[3], abs=0.02)
    # A bar of 100k would end at the line that says so.
    _, _, height, told = max(bars(svg(made())), key=lambda bar: bar[2])
    number = int(told.rpartition(": ")[2].replace(",", ""))
    assert height / number == pytest.approx((steps[0] - steps[2]) / 100_000, rel=0.001)


@pytest.mark.parametrize(
    "drawn",
    [
        made(),
        made((), 3),
        made(("one (aaaaaaaa)",), 1),
        made(tuple(f"{'very long name ' * 9}{number}" for number in range(30)), 40),
        made(NAMES, 7, "hour"),
        made(("<script>alert(1)</script>&\"'\x1b\x00", "]]>"), 2),
    ],
    ids=["some", "none", "one", "many", "hours", "evil"],
)
def test_nothing_lies_outside_of_the_picture(drawn: Chart) -> None:
    root = ET.fromstring(svg(drawn))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for part in root.iter():
        if "x" in part.attrib:
            x, y = float(part.attrib["x"]), float(part.attrib["y"])
            assert 0 <= x <= width
            assert 0 <= y <= height
            assert x + float(part.get("width", 0)) <= width
            if part.tag == f"{SVG}text":
                # 9 is more than a letter of 13 or 18 pixels needs on average.
                length = 9 * len(part.text or "")
                left = {"middle": x - length / 2, "end": x - length}.get(part.get("text-anchor", ""), x)
                assert left > -10
                assert left + length < width + 20
    assert not [part.tag for part in root.iter() if part.tag.removeprefix(SVG) in {"script", "image", "a", "use"}]
    dates = [
        float(t.attrib["x"]) for t in root.iter(f"{SVG}text") if re.match(r"\d\d", t.text or "") and t.get("dy") is None
    ]
    assert all(second - first > 60 for first, second in itertools.pairwise(dates))


def test_it_is_dark_where_the_reader_is() -> None:
    style = ET.fromstring(svg(made())).findtext(f"{SVG}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    assert set(re.findall(r"\.?\w+ \{", dark)) >= {"svg {", "text {", ".quiet {", ".grid {", ".base {"}
    assert set(re.findall(r"#[0-9a-f]{6}", light)).isdisjoint(re.findall(r"#[0-9a-f]{6}", dark))
    # Nothing is fetched.
    assert "url(" not in style
    assert "http" not in svg(made()).replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_what_is_too_much_to_tell_apart_is_one() -> None:
    many = made(tuple(f"name{number:02d}" for number in range(12)))
    few = many.with_at_most(4)
    assert few.names == (*many.names[:3], "others")
    assert few.totals == many.totals
    assert "others" in terminal(many, 80, ascii_only=False)
    assert svg(many).count("others: ") > 1


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_lines_fit_the_terminal(width: int) -> None:
    lines = terminal(made(), width, ascii_only=True).splitlines()
    rows = [line for line in lines if re.match(r"\d{4}-", line)]
    assert len(rows) == 25
    assert all(len(row) <= max(width, 30) for row in rows)


def test_a_little_is_not_nothing() -> None:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    drawn = chart(
        {(start, "a"): 1_000_000, (start + timedelta(days=1), "b"): 1},
        start,
        start + timedelta(days=3),
        "day",
        title="t",
        note="n",
    )
    rows = terminal(drawn, 60, ascii_only=True).splitlines()[-3:]
    assert [len(row.split()) for row in rows] == [3, 3, 2]
    assert rows[1].endswith(" =")


def test_every_span_of_the_time_has_a_bar() -> None:
    since, until = datetime(2026, 11, 15, 13, 30, tzinfo=UTC), datetime(2027, 2, 1, tzinfo=UTC)
    months = chart({}, since, until, "month", title="t", note="n")
    assert [months.label(start) for start in months.starts] == ["2026-11", "2026-12", "2027-01"]
    assert len(chart({}, since, since + timedelta(hours=2), "hour", title="t", note="n").starts) == 3
    with pytest.raises(ValueError, match=f"more than {MOST_BARS} bars, one for each hour"):
        chart({}, since, until, "hour", title="t", note="n")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(0, "0"), (7, "7"), (999, "999"), (1000, "1k"), (1234, "1.2k"), (99_949, "99.9k"), (99_950, "100k")],
        *[(999_499, "999k"), (999_500, "1M"), (1_500_000, "1.5M"), (2_000_000_000, "2G"), (3e12, "3000G")],
    ],
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert short(number) == text
