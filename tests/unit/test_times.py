"""Times as people type them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from boxwright import times

NOW = datetime(2026, 11, 30, 16, 20, 5, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90d", 90 * 86400), ("12h", 43200), ("2w", 14 * 86400), ("30min", 1800), ("0h", 0), (" 7 d ", 7 * 86400)],
)
def test_a_length(text: str, seconds: int) -> None:
    assert times.length(text) == timedelta(seconds=seconds)
    assert times.before(text, NOW) == NOW - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "d", "90", "-1d", "1.5h", "90 days", "1m", "1y", "1d2h", "1e3d", "٣d", "9999999d"]
)
def test_what_is_no_length(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number of min, h, d or w"):
        times.length(text)


@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        ("2027-01-31", "2027-01-31T00:00:00Z", "2027-02-01T00:00:00Z"),
        ("2028-02-29", "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"),
        ("2027-01-31T12:00Z", "2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z"),
        ("2027-01-31 12:00", "2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:30+02:00", "2027-01-31T10:00:30Z", "2027-01-31T10:00:30Z"),
    ],
)
def test_a_moment(text: str, begins: str, ends: str) -> None:
    assert times.written(times.moment(text, end=False)) == begins
    assert times.written(times.moment(text, end=True)) == ends
    assert times.written(times.before(text, NOW)) == begins
    assert times.written(times.after(text, NOW)) == ends


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2027",
        "2027-1-3",
        "2027-02-29",
        "2027-13-01",
        "31.01.2027",
        "20270131",
        "2027-W05",
        "tomorrow",
        "9999-12-31",
    ],
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no day|is neither"):
        times.moment(text, end=True)


def test_what_is_over_is_no_expiry() -> None:
    assert times.after("2026-11-30", NOW) == datetime(2026, 12, 1, tzinfo=UTC)
    for text in ("2026-11-29", "2026-11-30T16:20Z", "0d"):
        with pytest.raises(ValueError, match="is over: it is 2026-11-30 16:20 UTC now"):
            times.after(text, NOW)


@pytest.mark.parametrize("read", [times.after, times.before])
def test_what_no_calendar_has(read: object) -> None:
    assert callable(read)
    with pytest.raises(ValueError, match="too long"):
        read("999999w", NOW)


def test_a_time_is_shown_in_utc() -> None:
    there = datetime.fromisoformat("2026-12-01T01:30:00+02:00")
    assert times.shown(there) == "2026-11-30 23:30 UTC"
    assert times.written(there) == "2026-11-30T23:30:00Z"
