"""Words for the person: plain labelled lines on standard error, and one passing line on a real terminal.

Nothing depends on colour or on position. Off a terminal, and with `--plain`, lines are only appended.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TextIO

COLOURS = {"bad": "\033[1;31m", "good": "\033[32m", "changed": "\033[33m", "strong": "\033[1m", "faint": "\033[2m"}
_RESET = "\033[0m"


class Output:
    """Writes lines to `stream` (standard error unless told otherwise).

    `verbosity` counts -v: 0 says what changed, 1 also what did not, 2 adds commands, 3 adds their output.
    """

    def __init__(self, stream: TextIO | None = None, *, plain: bool = False, verbosity: int = 0) -> None:
        self._stream = stream
        self.verbosity = verbosity
        terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = terminal and not plain and "NO_COLOR" not in os.environ
        self.live = terminal and not plain
        self._passing = False

    @property
    def stream(self) -> TextIO:
        """Where lines go; looked up late, since secrets are masked by wrapping sys.stderr (boxwright/masking.py)."""
        return self._stream or sys.stderr

    def line(self, text: str = "", style: str | None = None, *, label: str = "") -> None:
        """Write `text` as a line. `style` is one of COLOURS; `label` is what is coloured in front of the text."""
        self.clear()
        if style and self.colour:
            text = f"{COLOURS[style]}{label or text}{_RESET}" + (text if label else "")
        else:
            text = label + text
        self._write(text + "\n")

    def passing(self, text: str) -> None:
        """Show `text` on the last line until something else is written. Does nothing off a terminal."""
        if self.live:
            width = shutil.get_terminal_size().columns
            self._write("\r\033[K" + text[: max(width - 1, 1)])
            self._passing = True

    def clear(self) -> None:
        """Take the passing line away."""
        if self._passing:
            self._write("\r\033[K")
            self._passing = False

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def count(number: int, noun: str) -> str:
    """`1 change`, `2 changes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
