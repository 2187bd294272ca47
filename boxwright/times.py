"""Times as people type them: a length such as `90d`, or a day such as `2027-01-31`. All times are UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LENGTH = "a number of min, h, d or w, as in 12h or 90d"
_LENGTH = re.compile(rf"([0-9]{{1,6}}) ?({'|'.join(_UNITS)})")
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
# datetime.fromisoformat takes more than people should have to know, such as weeks of a year.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def length(text: str) -> timedelta:
    """The time that `12h` or `90d` says. Raises ValueError with what was expected."""
    match = _LENGTH.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is no length of time: expected {LENGTH}")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def moment(text: str, *, end: bool) -> datetime:
    """The moment that a day (`2027-01-31`) or a day with a time (`2027-01-31T12:00Z`) says.

    A day alone is its beginning, or with `end` its end: the last moment that still belongs to it. Raises ValueError
    with what was expected.
    """
    plain = text.strip()
    try:
        if _DAY.fullmatch(plain):
            return datetime.fromisoformat(plain).replace(tzinfo=UTC) + timedelta(days=1 if end else 0)
        if _MOMENT.fullmatch(plain):
            found = datetime.fromisoformat(plain)
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is no day: {error}") from None
    raise ValueError(f"{text!r} is neither {LENGTH}, nor a day as in 2027-01-31 or 2027-01-31T12:00Z")


def after(text: str, now: datetime) -> datetime:
    """When that is: `now` and the length, or the end of the day. Raises ValueError; also for what is over."""
    if _LENGTH.fullmatch(text.strip()):
        try:
            found = now + length(text)
        except OverflowError:
            raise ValueError(f"{text!r} is too long") from None
    else:
        found = moment(text, end=True)
    if found <= now:
        raise ValueError(f"{text!r} is over: it is {shown(now)} now")
    return found


def before(text: str, now: datetime) -> datetime:
    """When that was: `now` without the length, or the beginning of the day. Raises ValueError."""
    if _LENGTH.fullmatch(text.strip()):
        try:
            return now - length(text)
        except OverflowError:
            raise ValueError(f"{text!r} is too long") from None
    return moment(text, end=False)


def shown(at: datetime) -> str:
    """`2027-01-31 12:00 UTC`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def written(at: datetime) -> str:
    """As ISO 8601 has it, for programs: `2027-01-31T12:00:00Z`."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
