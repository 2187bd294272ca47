"""How a run ended, and how that is said. Pure; nothing here knows pyinfra."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxwright.errors import Problem, Style, render
from boxwright.masking import mask
from boxwright.output import Output, count, duration


@dataclasses.dataclass(frozen=True)
class FailedStep:
    """The operation that failed on a host, and the last lines it said."""

    role: str
    step: str
    output: tuple[str, ...]


@dataclasses.dataclass
class HostResult:
    """How one host ended.

    `status` is ok, failed, unreachable, refused or unfinished. `changed` holds names of operations: those that changed
    something, or in a dry run those that would; `depends` (dry only) those that would if another one changes something.
    `seconds` counts from the start of the run to the host's last step.
    """

    name: str
    status: str = "unfinished"
    changed: list[str] = dataclasses.field(default_factory=list)
    depends: list[str] = dataclasses.field(default_factory=list)
    unchanged: int = 0
    not_run: int = 0
    failed: FailedStep | None = None
    problems: list[Problem] = dataclasses.field(default_factory=list)
    remote_commands: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As printed by `--json`."""
        return {
            "status": self.status,
            "changed": self.changed,
            "depends": self.depends,
            "unchanged": self.unchanged,
            "not_run": self.not_run,
            "failed": dataclasses.asdict(self.failed) if self.failed else None,
            "remote_commands": self.remote_commands,
            "seconds": round(self.seconds, 2),
        }


@dataclasses.dataclass
class RunResult:
    """How a run ended, host by host. `interrupted` is the exit code that a signal asked for, else 0.

    `begun` is false as long as nothing can have been changed anywhere.
    """

    deploy: str
    dry: bool
    hosts: dict[str, HostResult]
    seconds: float = 0.0
    interrupted: int = 0
    begun: bool = False
    problems: list[Problem] = dataclasses.field(default_factory=list)
    log: Path | None = None

    @property
    def changed(self) -> int:
        """Operations that changed something (dry: would), over all hosts."""
        return sum(len(host.changed) for host in self.hosts.values())

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 2 refused, or 128 + signal."""
        if self.interrupted:
            return self.interrupted
        states = {host.status for host in self.hosts.values()}
        if "refused" in states:
            return 2
        return 0 if states <= {"ok"} and not self.problems else 1

    def all_problems(self) -> list[Problem]:
        """What went wrong, of the run and of its hosts; equal ones once."""
        found = [*self.problems, *(problem for host in self.hosts.values() for problem in host.problems)]
        return list(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """As printed by `--json`."""
        return {
            "ok": self.exit_code == 0,
            "exit_code": self.exit_code,
            "dry": self.dry,
            "deploy": self.deploy,
            "changed": self.changed,
            "seconds": round(self.seconds, 2),
            "interrupted": bool(self.interrupted),
            "problems": json.loads(render(self.all_problems(), style="json"))["problems"],
            "log": str(self.log) if self.log else None,
            "hosts": {name: host.to_json() for name, host in self.hosts.items()},
        }


def split_name(name: str) -> tuple[str, str]:
    """Role and step of an operation's name: `caddy: write the Caddyfile` -> ("caddy", "write the Caddyfile")."""
    role, separator, step = name.partition(": ")
    return (role, step) if separator and re.fullmatch(r"[a-z][a-z0-9_-]*", role) else ("", name)


def report(result: RunResult, output: Output, style: Style = "full") -> None:
    """Say how the run ended: pending changes of a dry run, problems with their way out, one line per host."""
    if result.dry and not result.interrupted:
        for line in planned(result):
            output.line(line)
    problems = result.all_problems()
    if problems:
        output.line()
        output.line(mask(render(problems, style=style, color=output.colour)))
        output.line()
    width = max((len(name) for name in result.hosts), default=0)
    for name, host in result.hosts.items():
        output.line(f"{name:<{width}}  {_ending(host, result)}")


def planned(result: RunResult) -> Iterator[str]:
    """The pending changes of a dry run, by role; roles without any are not named."""
    several = len(result.hosts) > 1
    for name, host in result.hosts.items():
        roles: dict[str, list[str]] = {}
        for operation in host.changed:
            role, step = split_name(operation)
            roles.setdefault(role, []).append(f"  would change: {step}")
        for operation in host.depends:
            role, step = split_name(operation)
            roles.setdefault(role, []).append(f"  may change: {step}")
        for role, steps in roles.items():
            yield f"{f'[{name}] ' if several else ''}{role or 'deploy'}: {count(len(steps), 'change')}"
            yield from steps


def _ending(host: HostResult, result: RunResult) -> str:
    took = f"{count(host.remote_commands, 'remote command')}, {duration(host.seconds or result.seconds)}"
    if host.status == "unreachable":
        return "no usable connection, nothing was changed"
    if host.status == "refused":
        return "refused, nothing was changed"
    if host.status == "failed" and host.failed:
        step = f"{host.failed.role}: {host.failed.step}" if host.failed.role else host.failed.step
        return f"failed at `{step}`, {count(len(host.changed), 'change')} before it ({took})"
    if host.status in {"unfinished", "failed"}:
        made = f"{count(len(host.changed), 'change')} made so far" if result.begun else "nothing was changed"
        return f"not finished, {made}"
    if result.dry:
        pending = count(len(host.changed), "change") + " pending" if host.changed else "no changes pending"
        if host.depends:
            pending += f", {len(host.depends)} more if those change something"
        return f"{pending} ({took})"
    changed = count(len(host.changed), "change") if host.changed else "no change"
    return f"{changed}, {host.unchanged} unchanged ({took})"
