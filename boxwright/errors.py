"""Errors for the person who must fix them: what is wrong, where it was written, what was expected, the way out.

A `Problem` is one such message. It is rendered here and nowhere else, in the layout of rustc: the message, the place,
the line of the file with a caret under the culprit, and the help apart from it.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Style = Literal["full", "concise", "json"]

# Every code that boxwright can print, with one line that says what it means. A code never changes its meaning.
# BW0xx settings, inventory, secrets; BW1xx connection and preflight; BW2xx run; BW3xx lab, and programs
# that are built on the control machine (BW32x).
CODES: dict[str, str] = {
    "BW001": "There is no inventory, or it is not where it was said to be.",
    "BW002": "An inventory or variables file cannot be read, or its parts are not those of an Ansible inventory.",
    "BW003": "A file is not valid YAML.",
    "BW004": "The inventory names no host.",
    "BW005": "A group of the inventory has a part that Ansible would skip.",
    "BW006": "`--limit` or `--exclude` names a host or group that the inventory does not have.",
    "BW007": "A Jinja expression in a variable cannot be rendered.",
    "BW008": "A value is encrypted with ansible-vault, and no vault password was given.",
    "BW009": "A value is encrypted with ansible-vault, and the vault password does not open it.",
    "BW010": "A required variable is not set.",
    "BW011": "A variable has a value of the wrong type, or outside its limits.",
    "BW012": "A variable with one of boxwright's prefixes does not exist.",
    "BW013": "A variable has another name since some version.",
    "BW014": "A part inside a variable does not exist.",
    "BW015": "A required part inside a variable is missing.",
    "BW016": "A secret is blank.",
    "BW017": "A variable that boxwright derives from another was set by hand.",
    "BW018": "A password is longer than bcrypt can take.",
    "BW019": "A key is set twice in one mapping of a file.",
    "BW020": "A file of variables belongs to no host or group, and its name is nearly that of one.",
    "BW021": "The model is larger than the declared memory or disk of the machine.",
    "BW022": "Variables of two roles contradict each other.",
    "BW023": "A door that others can reach has no authentication.",
    "BW024": "A port is used twice.",
    "BW025": "A setting asks for something that the chosen server of the gateway cannot do.",
    "BW026": "A model is declared for an engine that cannot serve it.",
    "BW027": "Something is switched on, or set, that the host's system does not have: Linux or macOS.",
    "BW028": "A host is in both of the groups `linux` and `darwin`.",
    "BW029": "The gateway is to ask for keys of the API service, which is not switched on.",
    "BW030": "The file with a host's generated secrets is damaged.",
    "BW031": "The generated secrets can be read or replaced by other users of this machine.",
    "BW032": "The generated secrets cannot be read or written.",
    "BW033": "The vault password file cannot be read.",
    "BW040": "A token of the gateway is asked for that is not there, is there already, or is managed elsewhere.",
    "BW041": "`boxwright explain` was asked about something that is none of boxwright's words.",
    "BW042": "`boxwright key` or `boxwright document` is for the API service, which is not switched on for the host.",
    "BW100": "A connection variable is wrong, or asks for something that boxwright cannot do.",
    "BW101": "The SSH host key of a box is not known.",
    "BW102": "The SSH host key of a box is not the one that is known.",
    "BW103": "A box did not accept the login.",
    "BW104": "A box cannot be reached.",
    "BW105": "sudo cannot be used on a box.",
    "BW106": "A password is needed, and there is no terminal to ask for it.",
    "BW107": "A file that a connection variable names does not exist.",
    "BW110": "The box runs an operating system, processor or init system that boxwright does not support.",
    "BW111": "The model needs more memory than the box has.",
    "BW112": "The box has too little free disk space.",
    "BW113": "A port that the box shall listen on is taken by another program.",
    "BW114": "The distribution of the box has no package for something that is needed.",
    "BW115": "A program that the control machine must build for the box was not built yet.",
    "BW116": "A file that a model names is not on the box.",
    "BW117": "The box has no graphics card, or no driver for it, and an engine is to compute on one.",
    "BW118": "A model is to be put on graphics cards that have too little memory for it.",
    "BW119": "The box does not start by itself after a power cut: FileVault waits for a password.",
    "BW120": "More memory shall be given to the graphics processor of a Mac than it can spare.",
    "BW121": "The box runs another system than its group in the inventory says: `darwin` is for Macs.",
    "BW122": "A Mac has no Homebrew, which installs what its roles need.",
    "BW123": "The engines of a Mac shall run in the session of somebody who is not there, or is no person.",
    "BW124": "No container runtime of a Mac can be used: there is none, several answer, or none does.",
    "BW130": "A branch of NVIDIA's driver is declared that the distribution of the box does not have.",
    "BW140": "A change that could cut the operator off was not confirmed by a new connection, and was taken back.",
    "BW141": "A change was not confirmed by a new connection, and the box cannot be reached by one.",
    "BW142": "A rule of the firewall says nothing that could be opened.",
    "BW143": "Another program manages the packet filter of the box.",
    "BW144": "It could not be seen on which port the box is reached by SSH.",
    "BW145": "An interface to the outside counts as one of the box's own containers.",
    "BW146": "`sshd_options` has a directive that is decided elsewhere.",
    "BW147": "The hardening of SSH would shut its operator out.",
    "BW150": "A key for the tailnet needs something else that is not set.",
    "BW151": "What the box shall serve in its tailnet contradicts itself.",
    "BW152": "What the box shall serve in its tailnet asks nobody who they are.",
    "BW153": "Something that may not be public shall be shown to the internet by Funnel.",
    "BW154": "A Tailscale container is asked for, and not for one host.",
    "BW155": "Another daemon of Tailscale is on a Mac.",
    "BW160": "A rule of a tunnel leads past the gateway, or asks for a name that the gateway does not serve.",
    "BW161": "It is not clear which tunnel a box shall be an end of, or where its rules are kept.",
    "BW162": "The mirror cannot be filled: there is too little disk space for it.",
    "BW163": "A file for the mirror cannot be fetched, or is not the one that was expected.",
    "BW164": "A package repository for the mirror has a wrong key, a wrong signature, or lacks a package.",
    "BW165": "The mirror cannot be filled as it was asked: nothing says where, or what for.",
    "BW166": "A container image for the mirror is not published for a processor, or is of an unknown kind.",
    "BW170": "The API service of a box does not answer.",
    "BW171": "The API service of a box does not accept the administrator's secret of this machine.",
    "BW172": "A key is asked for that the API service of a box does not have.",
    "BW173": "The API service of a box refused what it was asked for.",
    "BW174": "The API service of a box cannot do it now, since something that it needs does not answer.",
    "BW201": "A step failed on a box.",
    "BW202": "Something unexpected happened while a deploy was read or run.",
    "BW203": "The box does not answer as it should when asked from outside.",
    "BW204": "A file that a command names does not exist.",
    "BW205": "The API service of a box failed, or gave a strange answer: it may have done what it was asked for.",
    "BW301": "The lab needs root or sudo for something, and has neither.",
    "BW302": "The lab does not support this machine: no apt, or another kind of processor.",
    "BW303": "The container engine does not start or does not answer.",
    "BW304": "A container engine runs, but this user may not use it.",
    "BW305": "There is too little disk space for the lab.",
    "BW306": "The container engine is one that the lab cannot use.",
    "BW307": "A command of the lab failed: installing packages, building an image, filling the mirror.",
    "BW308": "The name of a lab box or its preset is not usable.",
    "BW309": "There is no such lab box.",
    "BW310": "A lab box does not start.",
    "BW311": "The lab's network cannot be made, or has no address left.",
    "BW312": "A container of that name exists and is not this lab's.",
    "BW313": "The lab's mirror does not answer, or a file for it has the wrong checksum.",
    "BW320": "The Go toolchain that builds the custom Caddy cannot be fetched.",
    "BW321": "The modules that the custom Caddy is built from cannot be fetched.",
    "BW322": "The custom Caddy cannot be compiled.",
    "BW323": "The folder where the custom Caddy is built has too little space, or cannot be written.",
    "BW324": "The custom Caddy that was built is not the pinned one, or lacks a module.",
    "BW325": "This machine cannot build the custom Caddy.",
}


@dataclass(frozen=True)
class Location:
    """A place in a file. `path` is absolute or relative to the working directory; line and column count from 1."""

    path: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        parts = [display_path(self.path)]
        if self.line is not None:
            parts.append(str(self.line))
            if self.column is not None:
                parts.append(str(self.column))
        return ":".join(parts)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    `message` says what, naming the variable as typed; `help` says the way out; `location` is where the variable was
    written, `source` where the text of a computed value came from when that is somewhere else. `sensitive` means that
    the line of the file holds a secret: the key is shown, its value is not.
    """

    code: str
    message: str
    variable: str | None = None
    location: Location | None = None
    help: str | None = None
    host: str | None = None
    source: Location | None = None
    sensitive: bool = False


class BoxwrightError(Exception):
    """Base of all errors that boxwright raises on purpose; `exit_code` is what a command then ends with."""

    exit_code = 1

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(problem.message for problem in self.problems))


class Refused(BoxwrightError):
    """Bad input, settings or preconditions: nothing was changed anywhere."""

    exit_code = 2


class Failed(BoxwrightError):
    """Something went wrong while doing it."""

    exit_code = 1


def display_path(path: str) -> str:
    """`path` as a person would type it here: relative when it lies below the working directory."""
    if not Path(path).is_absolute():
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def render(problems: Iterable[Problem], *, style: Style = "full", color: bool = False) -> str:
    """Text of `problems` without a final newline: `full` with source lines, `concise` one line each, or `json`."""
    problems = tuple(problems)
    if style == "json":
        payload = {"ok": not problems, "problems": [_as_json(problem) for problem in problems]}
        return json.dumps(payload, indent=2, ensure_ascii=False)
    if style == "concise":
        return "\n".join(_concise(problem) for problem in problems)
    return "\n\n".join(_full(problem, color) for problem in problems)


def _as_json(problem: Problem) -> dict[str, Any]:
    location = problem.location
    payload: dict[str, Any] = {
        "code": problem.code,
        "message": problem.message,
        "variable": problem.variable,
        "host": problem.host,
        "path": display_path(location.path) if location else None,
        "line": location.line if location else None,
        "column": location.column if location else None,
        "help": problem.help,
    }
    if problem.source:
        payload["source"] = {
            "path": display_path(problem.source.path),
            "line": problem.source.line,
            "column": problem.source.column,
        }
    return payload


def _concise(problem: Problem) -> str:
    place = f"{problem.location}: " if problem.location else ""
    host = f" [{problem.host}]" if problem.host else ""
    text = f"{place}{problem.code}{host} {problem.message}"
    if problem.help:
        text += f"; {problem.help}"
    return " ".join(text.split())


_RED, _BLUE, _BOLD, _RESET = "\033[1;31m", "\033[1;34m", "\033[1m", "\033[0m"


def _full(problem: Problem, color: bool) -> str:
    def paint(text: str, code: str) -> str:
        return f"{code}{text}{_RESET}" if color else text

    lines = [paint(f"error[{problem.code}]", _RED) + paint(f": {problem.message}", _BOLD)]
    snippets = [(" --> ", problem.location), (" ::: ", problem.source)]
    numbers = [place.line for _, place in snippets if place and place.line]
    width = len(str(max(numbers))) if numbers else 1
    for arrow, place in snippets:
        if place is None:
            continue
        lines.append(paint(" " * (width - 1) + arrow, _BLUE) + str(place))
        lines += _snippet(place, problem.sensitive, width, paint)
    bar = paint(" " * (width + 1) + "= ", _BLUE)
    if problem.host:
        lines.append(f"{bar}host: {problem.host}")
    if problem.help:
        first, *rest = problem.help.splitlines()
        lines.append(f"{bar}help: {first}")
        lines += [" " * (width + 3 + len("help: ")) + line for line in rest]
    return "\n".join(lines)


def _snippet(place: Location, sensitive: bool, width: int, paint: Any) -> list[str]:
    """The line of the file and a caret line under it; nothing when the file does not say it in plain text."""
    text = _source_line(place)
    if text is None:
        return []
    column = place.column if place.column and place.column <= len(text) else None
    if sensitive:
        text = _without_value(text, column)
    rows = [paint(f"{place.line:>{width}} | ", _BLUE) + text]
    if column is not None:
        # Tabs are kept so that the caret stands below its character whatever their width.
        indent = "".join("\t" if character == "\t" else " " for character in text[: column - 1])
        rows.append(paint(" " * width + " | ", _BLUE) + indent + paint("^" * _span(text, column), _RED))
    return rows


def _source_line(place: Location) -> str | None:
    if not place.line:
        return None
    try:
        lines = Path(place.path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    # In an encrypted file the line numbers count the decrypted text, which is nobody's business here.
    if not lines or lines[0].startswith("$ANSIBLE_VAULT") or place.line > len(lines):
        return None
    # Control characters in a file must not reach the terminal.
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in lines[place.line - 1])


_TOKEN = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'|[^\s:,\[\]{}#]+(?::(?=\S)[^\s:,\[\]{}#]+)*|\S")


def _span(text: str, column: int) -> int:
    """How many characters the word, number or quoted text at `column` has."""
    token = _TOKEN.match(text, column - 1)
    return len(token.group()) if token else 1


def _without_value(text: str, column: int | None) -> str:
    """`text` with only its first key left in clear: `  gateway_password: ***`."""
    key = re.match(r"\s*(?:-\s+)?[\"']?[A-Za-z_][\w.-]*[\"']?\s*[:=]\s*", text)
    if key:
        return text if key.end() == len(text) else key.group() + "***"
    return " " * ((column or 1) - 1) + "***"
