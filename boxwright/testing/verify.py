"""`boxwright verify`: runs the checks of all roles with pytest, and says one line for each.

The checks are ordinary testinfra tests (roles/ROLE/checks.py); the first line of a check's docstring is what a person
reads.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from boxwright.masking import mask
from boxwright.output import Output, count
from boxwright.paths import repository_root
from boxwright.testing.plugin import role_of

# pytest.ExitCode -> ours: 2 interrupted, 3 internal error, 4 wrong usage, 5 nothing collected.
_CODES = {0: 0, 1: 1, 2: 130, 3: 1, 4: 2, 5: 2}


SHOWN = 300  # characters of what pytest says of a failed check


class _Reporter:
    """Collects results; says a line as each check ends."""

    def __init__(self, output: Output | None) -> None:
        self.output = output
        self.checks: list[dict[str, Any]] = []
        self._items: dict[str, tuple[str, str, str]] = {}
        self.broken: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """pytest itself says nothing; its options stay, since the repository's own settings use them."""
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(mask(f"{report.nodeid}: {report.longreprtext.strip().splitlines()[-1]}"))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        host = _parameters(item).get("_testinfra_host")
        name = host.backend.get_pytest_id() if host else "-"
        said = getattr(getattr(item, "obj", None), "__doc__", None) or item.name.replace("_", " ").removeprefix("test ")
        what = said.strip().splitlines()[0].rstrip(".")
        if others := [str(value) for key, value in _parameters(item).items() if key != "_testinfra_host"]:
            what += f" ({', '.join(others)})"
        self._items[item.nodeid] = (name, role_of(item.path) or "-", what)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        host, role, what = self._items[report.nodeid]
        outcome = {"passed": "ok", "failed": "failed", "skipped": "skipped"}[report.outcome]
        if report.when == "teardown" and report.failed:
            what += " (cleaning up)"
        check: dict[str, Any] = {
            "host": host,
            "role": role,
            "check": what,
            "outcome": outcome,
            "seconds": round(report.duration, 3),
            "message": mask(_message(report)) if outcome != "ok" else None,
            "test": report.nodeid,
        }
        self.checks.append(check)
        if self.output:
            style = {"ok": "good", "failed": "bad", "skipped": "faint"}[outcome]
            self.output.line(f" {host}  {role}: {what}", style, label=f"{outcome:<7}")
            for line in (check["message"] or "").splitlines():
                self.output.line(f"         {line}")


def _parameters(item: pytest.Item) -> dict[str, Any]:
    """What the test is parametrised with; the host is one of it."""
    return dict(getattr(getattr(item, "callspec", None), "params", {}))


def _message(report: pytest.TestReport) -> str:
    """Why a check failed or was skipped, in few lines: what pytest says of the assertion and where it stands."""
    if isinstance(report.longrepr, tuple):  # (path, line, reason) of a skip
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return report.longreprtext.strip()[-SHOWN:]
    entries = getattr(report.longrepr, "reprtraceback", None)
    places = [entry.reprfileloc for entry in getattr(entries, "reprentries", []) if getattr(entry, "reprfileloc", None)]
    root = repository_root()
    own = [(place.path, place.lineno) for place in places if place.path.startswith(("roles/", str(root / "roles")))]
    path, line = own[-1] if own else (crash.path, crash.lineno)
    shown = Path(path).relative_to(root) if Path(path).is_relative_to(root) else path
    return f"{_in_one_line(crash.message)[:SHOWN]}\n({shown}:{line})"


def _in_one_line(message: str) -> str:
    """What pytest says of a failure without the values it explains, whole objects among them."""
    command = re.search(r"Unexpected exit code (\d+) for CommandResult\(.* command=b(['\"])(.*)\2, _stdout", message)
    if command is None:
        return message.strip().partition("\n")[0].removeprefix("AssertionError: ")
    said = re.search(r"_stderr=b(['\"])(.+)\1\)", message)
    last = said.group(2).replace("\\n", "\n").strip().splitlines()[-1] if said else ""
    return f"`{command.group(3)}` on the box ended with {command.group(1)}" + (f": {last}" if last else "")


def verify(
    *, inventory: Path | None = None, limit: str | None = None, keyword: str | None = None, as_json: bool = False
) -> int:
    """Run the checks of all roles; 0 all hold, 1 some do not, 2 refused (settings, or no check was chosen)."""
    from boxwright.inventory import load

    load(inventory, limit=limit)  # refuses bad settings in boxwright's own words, before pytest starts
    root = repository_root()
    output = Output()
    reporter = _Reporter(None if as_json else output)
    arguments = [
        # What else is installed for pytest has no part in this, and would take half of the time.
        *("--disable-plugin-autoload", "-p", "testinfra.plugin", "-p", "boxwright.testing.plugin"),
        *("-p", "no:cacheprovider", "--override-ini", "python_files=checks.py"),
        *("--rootdir", str(root), "--config-file", str(root / "pyproject.toml")),
        *(("--boxwright-inventory", str(inventory)) if inventory else ()),
        *(("--boxwright-limit", limit) if limit else ()),
        *(("-k", keyword) if keyword else ()),
        *sorted(str(path) for path in root.glob("roles/*/checks.py")),
    ]
    code = _CODES[int(pytest.main(arguments, plugins=[reporter]))]
    failures = [check for check in reporter.checks if check["outcome"] == "failed"]
    if reporter.broken:  # pytest calls that an interruption
        code = 1
    if as_json:
        problems = [*(f"{c['host']} {c['role']}: {c['check']}" for c in failures), *reporter.broken]
        click.echo(json.dumps({"ok": code == 0, "failures": problems, "checks": reporter.checks}, indent=2))
        return code
    for line in reporter.broken:
        output.line(f" {line}", "bad", label="broken ")
    if not reporter.checks and not reporter.broken:
        output.line("no check was chosen" + (f" by -k {keyword!r}" if keyword else ""))
    else:
        held = sum(check["outcome"] == "ok" for check in reporter.checks)
        output.line(
            f"{count(held, 'check')} ok, {len(failures)} failed, {len(reporter.checks) - held - len(failures)} skipped"
        )
    return code
