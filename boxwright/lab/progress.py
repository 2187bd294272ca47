"""Says what the lab is doing, on stderr: a spinner per running step on a terminal, plain lines everywhere else.

Plain lines look like ``[  12.3 s] box image: built (11.8 s)``; the first number is the time since the command began. A
step that takes longer than `ANNOUNCE_AFTER` seconds is announced, and repeated every `REPEAT_EVERY` seconds while it
runs, so a log is never silent for long. Steps may run in several threads at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

ANNOUNCE_AFTER = 1.5
REPEAT_EVERY = 20.0


@dataclass
class Step:
    """One thing that is being done. `result` is what its last line says; set it before the step ends."""

    label: str
    doing: str
    result: str = "done"
    quiet: bool = False
    started: float = field(default_factory=time.monotonic)
    next_line: float = 0.0

    def say(self, result: str) -> None:
        """Give the step its last line, also a quiet one."""
        self.result, self.quiet = result, False

    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started


def wants_plain(stream: TextIO) -> bool:
    """True where a spinner would be noise: no terminal, NO_COLOR set, or TERM=dumb."""
    return not stream.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"


class Progress:
    """The steps of one command. Use as a context manager; `step` as one inside it."""

    def __init__(self, stream: TextIO | None = None, *, plain: bool | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._plain = wants_plain(self._stream) if plain is None else plain
        self._began = time.monotonic()
        self._running: list[Step] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._rich: RichProgress | None = None

    def __enter__(self) -> Progress:
        if self._plain:
            self._thread = threading.Thread(target=self._repeat, name="lab-progress", daemon=True)
            self._thread.start()
        else:
            from rich.console import Console
            from rich.progress import Progress as RichProgress
            from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

            self._rich = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; can be called more than once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1)
        if self._rich is not None:
            self._rich.stop()

    def say(self, text: str) -> None:
        """One line, at once."""
        line = f"[{time.monotonic() - self._began:6.1f} s] {text}"
        with self._lock:
            if self._rich is not None:
                self._rich.console.print(line, markup=False, highlight=False)
            else:
                print(line, file=self._stream, flush=True)

    @contextmanager
    def step(self, label: str, doing: str = "working", *, quiet: bool = False) -> Iterator[Step]:
        """A step with a line at its end: "label: result (seconds)". When it raises, the line says "failed".

        A quiet step has no last line unless it says something (`Step.say`) or fails: for work that is usually done
        already.
        """
        step = Step(label, doing, quiet=quiet)
        step.next_line = step.started + ANNOUNCE_AFTER
        task = None
        with self._lock:
            self._running.append(step)
            if self._rich is not None:
                task = self._rich.add_task(f"{label}: {doing}", total=None)
        try:
            yield step
        except BaseException:
            step.say("failed")
            raise
        finally:
            with self._lock:
                self._running.remove(step)
                if self._rich is not None and task is not None:
                    self._rich.remove_task(task)
            if not step.quiet:
                self.say(f"{label}: {step.result} ({step.seconds():.1f} s)")

    def _repeat(self) -> None:
        while not self._stop.wait(0.25):
            now = time.monotonic()
            with self._lock:
                due = [step for step in self._running if now >= step.next_line]
            for step in due:
                first = step.next_line < step.started + REPEAT_EVERY
                self.say(f"{step.label}: {step.doing}" + ("" if first else f" ({step.seconds():.0f} s so far)"))
                step.next_line = now + REPEAT_EVERY
