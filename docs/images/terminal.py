"""Runs commands on a terminal of 100 columns and draws what they printed as an SVG picture.

`python docs/images/terminal.py docs/images/repair.svg 'boxwright plan' 'boxwright apply'`: the commands run for real,
one after the other. Passing lines are left out, and paths of the home folder begin with `~`.
"""

import contextlib
import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

COLUMNS = 100


def run(command: str) -> str:
    """What the command prints on a terminal, with its colours."""
    os.environ |= {"COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
    child, terminal = pty.fork()
    if child == 0:
        os.execv("/bin/sh", ["/bin/sh", "-c", command])  # noqa: S606 -- the command of who calls this
    pieces = []
    # Linux ends the terminal of an ended process with an error, not with an empty read.
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 65536):
            pieces.append(piece)
    os.waitpid(child, 0)
    text = b"".join(pieces).decode().replace("\r\n", "\n").replace(str(Path.home()), "~")
    return re.sub(r"(?m)\r?\x1b\[K[^\n]*?(?=\r?\x1b\[K)|\r?\x1b\[K", "", text)


def main(target: Path, commands: list[str]) -> None:
    """Write the picture of `commands` to `target`."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for command in commands:
            console.print(Text(f"$ {command}", style="bold"))
            console.print(Text.from_ansi(run(command)))
        svg = console.export_svg(title="boxwright", theme=SVG_EXPORT_THEME)
    # The font is the reader's own: rich would have it fetched from elsewhere.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "monospace")
    target.write_text(svg, encoding="utf-8")


main(Path(sys.argv[1]), sys.argv[2:])
