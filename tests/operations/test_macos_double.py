"""The double of a Mac behaves as tests/doubles/macos/README.md says; the numbers of sections are explained there."""

from __future__ import annotations

import json
import os
import plistlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import eventually

from boxwright import platforms
from tests.doubles.macos import PASSWORD, MacDouble

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
DAEMONS = "/Library/LaunchDaemons"


@pytest.fixture(scope="module")
def mac() -> Iterator[MacDouble]:
    # Throttled restarts need not be waited for in each test; one test looks at the real ten seconds' text.
    double = MacDouble(throttle=1, linger=2)
    yield double
    double.close()


@pytest.fixture(autouse=True)
def _as_it_was(mac: MacDouble) -> Iterator[None]:
    before = mac.options
    yield
    if mac.options != before:
        mac.set(**before.__dict__)


class Job:
    """A job of launchd's on the Mac, taken away at the end."""

    def __init__(self, mac: MacDouble, label: str, script: str = "", **keys: Any) -> None:
        self.mac, self.label = mac, label
        self.path = f"{DAEMONS}/{label}.plist"
        self.target = f"system/{label}"
        self.plist: dict[str, Any] = {"Label": label, **keys}
        if script:
            mac.put(f"/opt/{label}", f"#!/bin/sh\n{script}\n".encode(), 0o755)
            self.plist.setdefault("ProgramArguments", [f"/opt/{label}"])
        self.write()

    def write(self) -> None:
        """The property list."""
        self.mac.put(self.path, plistlib.dumps(self.plist))

    def ctl(self, words: str) -> tuple[int, str, str]:
        """launchctl as root."""
        return self.mac.as_root(f"launchctl {words}")

    def load(self) -> tuple[int, str, str]:
        """bootstrap."""
        return self.ctl(f"bootstrap system {self.path}")

    def shown(self) -> dict[str, str]:
        """The lines of `print` with one tab."""
        code, out, _ = self.ctl(f"print {self.target}")
        if code:
            return {}
        return dict(line[1:].split(" = ", 1) for line in out.splitlines() if re.match(r"\t[^\t].* = [^{]", line))

    def is_gone(self) -> bool:
        """Whether the label is free."""
        return self.ctl(f"print {self.target}")[0] == 113

    def remove(self) -> None:
        """With everything."""
        self.ctl(f"enable {self.target}")
        self.ctl(f"bootout {self.target}")
        eventually(f"{self.label} is gone", self.is_gone)
        self.mac.sh(f"rm -f {self.path} /opt/{self.label}")


@pytest.fixture
def job(mac: MacDouble) -> Iterator[Callable[..., Job]]:
    made: list[Job] = []

    def make(label: str, script: str = "", **keys: Any) -> Job:
        made.append(Job(mac, label, script, **keys))
        return made[-1]

    yield make
    for each in made:
        each.remove()


STAY = "exec sleep 1000"


# Sections 2 and 18: launchd


def test_print_of_a_running_job(job: Callable[..., Job]) -> None:
    """Section 2: keys, their order, tabs, and blocks that repeat a key deeper."""
    one = job(
        "test.print",
        STAY,
        RunAtLoad=True,
        KeepAlive=True,
        UserName="_www",
        GroupName="_www",
        EnvironmentVariables={"TOKEN": "x y"},
        StandardOutPath="/dev/null",
        ThrottleInterval=11,
    )
    assert one.load() == (0, "", "")
    code, out, err = one.ctl(f"print {one.target}")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "system/test.print = {"
    assert lines[-1] == "}"
    wanted = """active count = 1|path = /Library/LaunchDaemons/test.print.plist|type = LaunchDaemon|state = running|program = /opt/test.print|arguments = {|stdout path = /dev/null|environment = {|domain = system|username = _www|group = _www|minimum runtime = 11|exit timeout = 5|runs = 1|last exit code = (never exited)|spawn type = daemon (3)|job state = running|properties = keepalive | runatload | inferred program"""  # noqa: E501
    places = [
        lines.index(f"\t{line}") for line in wanted.replace("keepalive | runatload | ", "keepalive & ").split("|")[:-1]
    ]
    assert places == sorted(places)
    assert "\tproperties = keepalive | runatload | inferred program" in lines
    assert "\t\tTOKEN => x y" in lines
    assert "\t\tXPC_SERVICE_NAME => test.print" in lines
    assert "\t\tstate = active" in lines
    pid = one.shown()["pid"]
    # Seen by Linux itself: the process runs as the account, in its group, in the environment that was written.
    assert one.mac.sh(f"stat -f %Su:%Sg /proc/{pid}") == "_www:_www\n"
    environment = one.mac.sh(f"cat /proc/{pid}/environ").split("\0")
    assert {"TOKEN=x y", "XPC_SERVICE_NAME=test.print", "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "USER=_www"} <= set(
        environment
    )
    assert one.mac.as_root("launchctl list | grep test.print")[1] == f"{pid}\t0\ttest.print\n"
    listed = one.ctl("list test.print")[1]
    assert listed.startswith("{\n")
    assert f'\t"PID" = {pid};' in listed.splitlines()
    assert one.mac.as_user(f"launchctl print {one.target}")[0] == 0


def test_agents_are_there_between_login_and_logout(mac: MacDouble) -> None:
    """launchd.plist(5): what is in /Library/LaunchAgents is loaded for whoever signs in, as them."""
    agent, background = "/Library/LaunchAgents/test.agent.plist", "/Library/LaunchAgents/test.background.plist"
    keys = {"ProgramArguments": ["/bin/sleep", "1000"], "KeepAlive": True, "RunAtLoad": True}
    mac.put(agent, plistlib.dumps({"Label": "test.agent", "LimitLoadToSessionType": "Aqua", **keys}))
    mac.put(background, plistlib.dumps({"Label": "test.background", "LimitLoadToSessionType": "Background", **keys}))
    shown = "launchctl print gui/501/test.agent"
    try:
        assert mac.as_root(shown)[0] == 113
        mac.login("operator")
        code, out, _ = mac.as_root(shown)
        assert (code, out.splitlines()[0]) == (0, "gui/501/test.agent = {")
        assert "\ttype = LaunchAgent" in out.splitlines()
        (pid,) = re.findall(r"^\tpid = (\d+)$", out, re.MULTILINE)
        assert mac.sh(f"ps -o user= -p {pid}").strip() == "operator"
        assert mac.sh(f"cat /proc/{pid}/environ | tr '\\0' '\\n' | grep ^HOME=") == "HOME=/Users/operator\n"
        assert "type = login" in mac.as_root("launchctl print gui/501")[1]
        # Each in the sessions that it is for.
        refused = (134, "", "Bootstrap failed: 134: Service cannot load in requested session\n")
        assert mac.as_root(f"launchctl bootstrap gui/501 {background}") == refused
        assert mac.as_root(f"launchctl bootstrap system {agent}") == refused
        # In one's own one may do everything, and root may.
        assert mac.as_user("launchctl bootout gui/501/test.agent")[0] == 0
        eventually("it is gone", lambda: mac.as_root(shown)[0] == 113)
        assert mac.as_root(f"launchctl bootstrap gui/501 {agent}")[0] == 0
        mac.logout("operator")
        eventually("it has ended", lambda: mac.as_root(shown)[0] == 113)
        assert mac.as_root("launchctl print gui/501")[0] == 112
    finally:
        mac.logout("operator")
        mac.sh(f"rm -f {agent} {background}")


def test_errors_are_as_documented(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 2, the table."""
    one = job("test.errors", STAY)
    gone = "Bad request.\n" if mac.options.version >= "26" else ""
    for words, code, err in (
        ("print system/none", 113, 'Could not find service "none" in domain for system\n'),
        ("print gui/501/none", 113, f'{gone}Could not find service "none" in domain for user gui: 501\n'),
        ("print gui/501", 112, f"{gone}Could not find domain for user gui: 501\n"),
        ("list none", 113, 'Could not find service "none" in domain for port\n'),
        ("bootout system/none", 3, "Boot-out failed: 3: No such process\n"),
        ("bootout system /tmp/none.plist", 5, "Boot-out failed: 5: Input/output error\n"),
        ("bootstrap system /tmp/none.plist", 5, "Bootstrap failed: 5: Input/output error\n"),
        (f"bootstrap gui/501 {one.path}", 125, "Bootstrap failed: 125: Domain does not support specified action\n"),
        ("bootout gui/501/x", 125, "Boot-out failed: 125: Domain does not support specified action\n"),
        ("kickstart system/none", 113, 'Could not find service "none" in domain for system\n'),
        (
            "kickstart -k system/com.openssh.sshd",
            150,
            "Could not kickstart service: 150: Operation not permitted while System Integrity Protection is engaged\n",
        ),
    ):
        assert mac.as_root(f"launchctl {words}") == (code, "", err), words
    code, _, err = mac.as_root("launchctl print nowhere")
    assert (code, err.splitlines()[0]) == (64, "Unrecognized target specifier.")
    code, _, err = mac.as_root("launchctl foo")
    assert (code, err.splitlines()[0]) == (1, "Unrecognized subcommand: foo")
    for number, text in (
        (119, "Service is disabled"),
        (122, "Path had bad ownership/permissions"),
        (2, "No such file or directory"),
    ):
        assert mac.as_root(f"launchctl error {number}") == (0, f"{number}: {text}\n", "")
    # Without root.
    assert one.load()[0] == 0
    user = "launchctl "
    assert mac.as_user(f"{user} bootstrap system {one.path}") == (
        5,
        "",
        "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors.\n",
    )
    assert mac.as_user(f"{user} bootout {one.target}") == (1, "", "Boot-out failed: 1: Operation not permitted\n")
    assert mac.as_user(f"{user} kickstart {one.target}") == (
        1,
        "",
        'Could not kickstart service "test.errors": 1: Operation not permitted\n',
    )
    assert mac.as_user(f"{user} list")[1] == "PID\tStatus\tLabel\n"


def test_bootout_returns_before_the_label_is_gone(job: Callable[..., Job]) -> None:
    """Section 18, 1."""
    one = job("test.linger", STAY, RunAtLoad=True)
    assert one.load()[0] == 0
    assert one.load() == (
        37,
        "",
        f"{one.path}: service already loaded\nBootstrap failed: 37: Operation already in progress\n",
    )
    assert one.ctl(f"bootout {one.target}") == (0, "", "")
    assert one.ctl(f"print {one.target}")[0] == 0
    assert one.load()[0] == 37
    assert one.ctl(f"bootout {one.target}") == (36, "", "Boot-out failed: 36: Operation now in progress\n")
    eventually("it is gone", one.is_gone)
    assert one.ctl(f"bootout {one.target}")[0] == 3
    assert one.load()[0] == 0


def test_a_job_that_ignores_the_end_is_killed(job: Callable[..., Job]) -> None:
    """Section 2: SIGTERM, and SIGKILL after the exit timeout; with it goes the rest of its group."""
    one = job("test.deaf", "trap '' TERM; sleep 1001 & while :; do wait; sleep 1; done", RunAtLoad=True, ExitTimeOut=2)
    assert one.load()[0] == 0
    eventually("its child runs", lambda: "sleep 1001" in one.mac.sh("ps -axo command="))
    began = time.monotonic()
    one.ctl(f"bootout {one.target}")
    eventually("it is gone", one.is_gone)
    assert time.monotonic() - began > 1.5
    assert "sleep 1001" not in one.mac.sh("ps -axo command=")


def test_disable_outlives_removal_and_reboot(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 18, 2 and 3: also of labels that do not exist; jobs come back at boot unless they are disabled."""
    one, other = job("test.disabled", STAY, RunAtLoad=True), job("test.comes-back", STAY, RunAtLoad=True)
    assert one.ctl("disable system/never.heard.of") == (0, "", "")
    assert one.ctl(f"disable {one.target}") == (0, "", "")
    assert one.load() == (119, "", "Bootstrap failed: 119: Service is disabled\n")
    assert mac.as_user(f"launchctl enable {one.target}")[0] == 1
    assert other.load()[0] == 0
    mac.sh("touch /var/run/volatile /tmp/volatile /var/tmp/lasting; sysctl iogpu.wired_limit_mb=1000")
    mac.reboot()
    assert one.is_gone()
    assert one.load()[0] == 119
    assert other.shown()["state"] == "running"
    out = one.ctl("print-disabled system")[1]
    assert out.startswith("\n\tdisabled services = {\n")
    assert out.endswith("\t}\n")
    assert '\t\t"test.disabled" => disabled\n' in out
    assert '\t\t"never.heard.of" => disabled\n' in out
    assert one.ctl(f"enable {one.target}") == (0, "", "")
    assert one.load()[0] == 0
    assert '\t\t"test.disabled" => enabled\n' in one.ctl("print-disabled system")[1]
    # What a boot takes away, and what it leaves.
    assert mac.sh("ls /var/run/volatile /tmp/volatile /var/tmp/lasting 2>/dev/null") == "/var/tmp/lasting\n"
    assert mac.sh("sysctl -n iogpu.wired_limit_mb") == "0\n"


def test_what_launchd_does_not_take(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 18, 3: owner and mode, broken lists, and the leading newline that Apple's parser takes."""
    one = job("test.refused", STAY)
    bad = f"{one.path}: Path had bad ownership/permissions\nLoad failed: 122: Path had bad ownership/permissions\n"
    for spoil, mend in (("chown operator", "chown root"), ("chmod 664", "chmod 644"), ("chmod 646", "chmod 600")):
        mac.sh(f"{spoil} {one.path}")
        assert one.load() == (122, "", bad), spoil
        mac.sh(f"{mend} {one.path}")
    mac.put(one.path, b"\n" + plistlib.dumps(one.plist))
    assert one.load()[0] == 0
    one.ctl(f"bootout {one.target}")
    eventually("it is gone", one.is_gone)
    for text in (b"<plist>", plistlib.dumps({"Label": "test.refused"}), plistlib.dumps({"Program": "/bin/sh"})):
        mac.put(one.path, text)
        assert one.load() == (5, "", "Bootstrap failed: 5: Input/output error\n")


@pytest.mark.parametrize(
    "keys",
    [
        {"ProgramArguments": ["/opt/missing"]},
        {"UserName": "_nobody_at_all"},
        {"StandardOutPath": "/var/log/missing/log"},
        {"UserName": "_www", "StandardErrorPath": "/private/var/root/log"},
        {"WorkingDirectory": "/missing"},
    ],
)
def test_what_cannot_be_spawned_ends_with_78(job: Callable[..., Job], keys: dict[str, Any]) -> None:
    """Section 18, 3: it is loaded, ends with 78, is scheduled again, and its runs grow without end."""
    one = job("test.unable", STAY, KeepAlive=True, **keys)
    assert one.load() == (0, "", "")
    assert one.shown()["last exit code"] == "78: EX_CONFIG"
    assert one.shown()["state"] == "spawn scheduled"
    assert one.shown()["job state"] == "spawn failed"
    assert one.shown()["active count"] == "0"
    assert "pid" not in one.shown()
    eventually("runs grow", lambda: int(one.shown()["runs"]) >= 3)


def test_keepalive_and_throttle(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 18, 4: a restart waits, kickstart -k does not; runs and the last exit code follow."""
    mac.set(throttle=600)
    one = job("test.keep", STAY, KeepAlive=True)
    one.load()
    first = one.shown()["pid"]
    mac.sh(f"kill -9 {first}")
    eventually("it is scheduled", lambda: one.shown()["state"] == "spawn scheduled")
    assert one.shown()["last terminating signal"] == "Killed: 9"
    assert one.ctl(f"kickstart -p {one.target}")[1] == one.shown()["pid"] + "\n"
    second = one.shown()["pid"]
    assert second != first
    code, out, _ = one.ctl(f"kickstart -kp {one.target}")
    assert (code, out.strip()) == (0, one.shown()["pid"])
    assert out.strip() not in (first, second)
    assert one.shown()["runs"] == "3"
    # Already running: 37 and not a word.
    assert one.ctl(f"kickstart {one.target}") == (37, "", "")
    assert one.ctl(f"kill SIGTERM {one.target}")[0] == 0
    eventually("it is scheduled", lambda: one.shown()["state"] == "spawn scheduled")
    assert "Pushing respawn out by" in mac.sh("cat /var/log/com.apple.xpc.launchd/launchd.log")
    assert one.ctl(f"kill TERM {one.target}")[0] == 3


@pytest.mark.parametrize(("code", "again"), [(0, False), (3, True)])
def test_successful_exit(mac: MacDouble, job: Callable[..., Job], code: int, again: bool) -> None:
    """KeepAlive {SuccessfulExit: false} starts again what failed, and only that."""
    mac.set(throttle=0)
    one = job(
        "test.success", f"echo x >>/tmp/test.success; sleep 0.2; exit {code}", KeepAlive={"SuccessfulExit": False}
    )
    mac.sh("rm -f /tmp/test.success")
    one.load()
    if again:
        eventually("it runs again and again", lambda: int(one.shown()["runs"]) >= 3)
        assert one.shown()["last exit code"] == "3"
    else:
        eventually("it has ended", lambda: one.shown()["state"] == "not running")
        assert (one.shown()["runs"], one.shown()["last exit code"], one.shown()["active count"]) == ("1", "0", "0")
        assert mac.sh("cat /tmp/test.success") == "x\n"
        assert mac.as_root("launchctl list | grep test.success")[1] == "-\t0\ttest.success\n"


def test_what_a_process_is_given(mac: MacDouble, job: Callable[..., Job]) -> None:
    """WorkingDirectory, Umask, limits, standard output and error, which the account itself must be able to write."""
    mac.sh("mkdir -p /var/log/test.given && chown _www /var/log/test.given")
    one = job(
        "test.given",
        "pwd; umask; ulimit -Sn; echo error >&2; id -un; touch /var/log/test.given/made; exec sleep 1000",
        RunAtLoad=True,
        UserName="_www",
        WorkingDirectory="/private/var/tmp",
        Umask=0o027,
        SoftResourceLimits={"NumberOfFiles": 4096},
        StandardOutPath="/var/log/test.given/out",
        StandardErrorPath="/var/log/test.given/err",
    )
    one.load()
    eventually("it has said all", lambda: "made" in mac.sh("ls /var/log/test.given"))
    assert mac.sh("cat /var/log/test.given/out").split() == ["/private/var/tmp", "0027", "4096", "_www"]
    assert mac.sh("cat /var/log/test.given/err") == "error\n"
    assert mac.sh("stat -f '%Su %Lp' /var/log/test.given/made") == "_www 640\n"
    assert mac.sh("ulimit -Sn") == "256\n"


def test_timetables(job: Callable[..., Job]) -> None:
    """StartInterval runs it, without RunAtLoad not before its time."""
    one = job("test.interval", "exit 0", StartInterval=1)
    one.load()
    assert one.shown()["runs"] == "0"
    assert one.shown()["last exit code"] == "(never exited)"
    eventually("it ran twice", lambda: int(one.shown()["runs"]) >= 2)


@pytest.mark.parametrize(
    ("wanted", "after"),
    [
        ({"Minute": 30}, "2026-11-30 13:30"),
        ({"Hour": 4, "Minute": 0}, "2026-12-01 04:00"),
        ({"Weekday": 0, "Hour": 3, "Minute": 15}, "2026-12-06 03:15"),
        ({"Weekday": 7}, "2026-12-06 00:00"),
        ({"Day": 29, "Month": 2}, "2028-02-29 00:00"),
        ([{"Minute": 45}, {"Minute": 12}], "2026-11-30 13:12"),
    ],
)
def test_calendar(mac: MacDouble, wanted: Any, after: str) -> None:
    """StartCalendarInterval: the next moment after ten past one on the last of November 2026, a Monday."""
    program = (
        "import sys; sys.path.insert(0, '/usr/libexec/double/system'); from datetime import datetime; import launchd; "
        f"print(launchd.next_calendar({wanted!r}, datetime(2026, 11, 30, 13, 10, 59)))"
    )
    said = mac.as_root("/usr/libexec/double/linux/bin/python3 -ISB -", program.encode())
    assert said == (0, f"{after}:00\n", "")


def test_a_signed_program_that_is_overwritten_is_killed(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 2: an overwrite in place keeps the inode and its signature; a new file by rename does not."""
    mac.sh("cp /bin/sleep /opt/test.signed")
    one = job("test.signed", ProgramArguments=["/opt/test.signed", "1000"], RunAtLoad=True)
    one.load()
    assert one.shown()["state"] == "running"
    one.ctl(f"bootout {one.target}")
    eventually("it is gone", one.is_gone)
    mac.sh("cat /bin/sleep >/opt/test.signed; touch -t 203001010101 /opt/test.signed")
    one.load()
    assert one.shown()["last exit reason"] == "OS_REASON_CODESIGNING"
    mac.sh("cp /bin/sleep /opt/test.new; mv -f /opt/test.new /opt/test.signed")
    one.ctl(f"kickstart {one.target}")
    assert one.shown()["state"] == "running"


def test_quarantine(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 2: 155 until the attribute of a download is taken away."""
    one = job("test.quarantine", STAY, RunAtLoad=True)
    mac.sh("xattr -w com.apple.quarantine '0083;0;Safari;' /opt/test.quarantine")
    one.load()
    assert one.shown()["last exit code"].startswith("155: Refusing to execute")
    assert mac.sh("xattr -d com.apple.quarantine /opt/test.quarantine") == ""
    assert mac.as_root("xattr -d com.apple.quarantine /opt/test.quarantine") == (
        1,
        "",
        "xattr: /opt/test.quarantine: No such xattr: com.apple.quarantine\n",
    )
    assert one.ctl(f"kickstart {one.target}")[0] == 0
    assert one.shown()["state"] == "running"


def test_a_quick_return_may_not_start(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 2: loaded again soon after its removal it may stay as it is, until it is kicked."""
    one = job("test.sluggish", STAY, RunAtLoad=True, KeepAlive=True)
    one.load()
    mac.set(sluggish=True)
    one.ctl(f"bootout {one.target}")
    eventually("it is gone", one.is_gone)
    assert one.load()[0] == 0
    assert (one.shown()["state"], one.shown()["runs"], one.shown()["last exit code"]) == (
        "not running",
        "0",
        "(never exited)",
    )
    assert one.ctl(f"kickstart {one.target}")[0] == 0
    assert one.shown()["state"] == "running"


def test_a_power_cut(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Killed in the middle it boots, and `reboot` by the operator is a boot too."""
    one = job("test.power", STAY, RunAtLoad=True)
    one.load()
    before = mac.sh("sysctl -n kern.bootsessionuuid")
    mac.power_cut()
    assert one.shown()["state"] == "running"
    after = mac.sh("sysctl -n kern.bootsessionuuid")
    assert before != after
    assert subprocess.run(mac.ssh_command("shutdown -r now"), capture_output=True, check=False).returncode == 1
    subprocess.run(mac.ssh_command("sudo shutdown -r now"), capture_output=True, check=False)
    mac.shell = None

    def booted() -> bool:
        asked = subprocess.run(mac.ssh_command("sysctl -n kern.bootsessionuuid"), capture_output=True, check=False)
        return asked.returncode == 0 and asked.stdout.decode() != after

    eventually("it has booted again", booted)
    mac.wait()
    assert one.shown()["state"] == "running"


# Sections 3, 4


def test_pmset(mac: MacDouble) -> None:
    """Section 3 and 18, 5."""
    assert mac.as_user("pmset -a disablesleep 1") == (0, "'pmset' must be run as root...\n", "")
    assert mac.as_user("pmset -a sleep 0") == (1, "'pmset' must be run as root...\n", "")
    usage = "Usage: pmset <options>\nSee pmset(1) for details: 'man pmset'\n"
    assert mac.as_root("pmset -a nonsense 1") == (1, usage, "")
    assert mac.as_root("pmset -a sleep") == (1, usage, "")
    assert mac.as_root("pmset -g foo") == (1, f"Error: unhandled argument foo\n{usage}", "")
    assert "SleepDisabled" not in mac.sh("pmset -g")
    assert mac.as_root("pmset -a sleep 0 displaysleep 0 DISKSLEEP 0 hibernatemode 0 disablesleep 1") == (0, "", "")
    assert mac.as_root("pmset -b sleep 7") == (0, "", "")
    out = mac.sh("pmset -g")
    assert out.startswith("System-wide power settings:\n SleepDisabled\t\t1\nCurrently in use:\n")
    assert " sleep                0\n" in out
    assert " Sleep On Power Button 1\n" in out
    custom = mac.sh("pmset -g custom")
    assert custom.startswith("AC Power:\n")
    assert " disksleep            0\n" in custom
    assert "hibernatemode" not in custom
    assert " autorestartatconnect 0\n" in custom
    assert " lowpowermode" in mac.sh("pmset -g cap").splitlines()
    code, _, err = mac.as_root("pmset -a sleep 5")
    assert (code, err.splitlines()[0]) == (
        0,
        'Warning: Idle sleep timings for "AC Power" may not behave as expected.',
    )
    assert " (sleep prevented by powerd)" in mac.sh("pmset -g")
    mac.set(version="26.4.1")
    assert "autorestartatconnect" not in mac.sh("pmset -g custom")
    assert mac.sh("pmset -g sched") == "No scheduled events.\n"
    assert mac.as_user("pmset restoredefaults") == (1, "You're not privileged.\n", "")
    assert mac.as_root("pmset restoredefaults")[0] == 0


def test_caffeinate_becomes_the_command(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 3: the same process, its exit code; 127 when there is none; the assertion is seen."""
    assert mac.as_root("caffeinate -s sh -c 'exit 7'")[0] == 7
    assert mac.as_root("caffeinate -s /opt/none")[0] == 127
    one = job("test.awake", ProgramArguments=["/usr/bin/caffeinate", "-s", "/bin/sleep", "1000"], RunAtLoad=True)
    one.load()
    pid = one.shown()["pid"]
    eventually("it is the command", lambda: mac.sh(f"ps -o command= -p {pid}") == "/bin/sleep 1000\n")
    assert "   PreventSystemSleep             1\n" in mac.sh("pmset -g assertions")


@pytest.mark.parametrize(
    ("version", "kernel", "full"), [("14", "23", "14."), ("15", "24", "15."), ("26", "25", "26."), ("27", "26", "27.0")]
)
def test_versions(mac: MacDouble, version: str, kernel: str, full: str) -> None:
    """Section 4: the kernel that goes with a version."""
    mac.set(version=version)
    assert mac.sh("uname -sm") == "Darwin arm64\n"
    assert mac.sh("uname -r").startswith(f"{kernel}.")
    assert mac.sh("sw_vers -productVersion").startswith(full)
    assert mac.sh("sw_vers").split()[:2] == ["ProductName:", "macOS"]
    assert mac.sh("sysctl -n kern.osproductversion").startswith(full)


def test_processor(mac: MacDouble) -> None:
    """Section 4: Apple silicon, Rosetta, Intel."""
    names = "hw.optional.arm64 sysctl.proc_translated machdep.cpu.brand_string hw.memsize hw.model"
    assert mac.sh(f"sysctl -n {names}").splitlines() == ["1", "0", "Apple M2 Max", str(64 * 2**30), "Mac14,13"]
    assert mac.sh("arch") == "arm64\n"
    mac.set(rosetta=True, chip="Apple M3 Ultra")
    assert mac.sh("uname -m; arch; sysctl -n hw.optional.arm64 sysctl.proc_translated").split() == [
        "x86_64",
        "i386",
        "1",
        "1",
    ]
    mac.set(rosetta=False, chip="Intel(R) Xeon(R) W-2140B CPU @ 3.20GHz")
    assert mac.sh("uname -m") == "x86_64\n"
    assert mac.as_root("sysctl -n hw.optional.arm64") == (1, "", "sysctl: unknown oid 'hw.optional.arm64'\n")


def test_sysctl_sets(mac: MacDouble) -> None:
    """Section 4: what is said about a change, also about none."""
    assert mac.as_root("sysctl iogpu.wired_limit_mb=114688") == (0, "iogpu.wired_limit_mb: 0 -> 114688\n", "")
    assert mac.as_root("sysctl iogpu.wired_limit_mb=114688") == (0, "iogpu.wired_limit_mb: 114688 -> 114688\n", "")
    code, _, err = mac.as_user("sysctl iogpu.wired_limit_mb=1")
    assert code == 1
    assert "Operation not permitted" in err
    assert mac.as_root("sysctl hw.memsize=1") == (1, "", "sysctl: oid 'hw.memsize' is read only\n")
    mac.set(wired_limit=False)
    assert mac.as_root("sysctl -n iogpu.wired_limit_mb")[0] == 1


def test_names(mac: MacDouble) -> None:
    """Section 18, 8: HostName is not set on a fresh machine."""
    assert mac.as_root("scutil --get HostName") == (1, "", "HostName: not set\n")
    assert mac.as_user("scutil --set HostName x")[0] == 1
    assert mac.as_root("scutil --set HostName studio") == (0, "", "")
    assert mac.sh("scutil --get HostName; hostname") == "studio\nstudio\n"
    found = json.loads(mac.sh("system_profiler -json SPHardwareDataType"))["SPHardwareDataType"][0]
    assert (found["chip_type"], found["physical_memory"], found["number_processors"]) == (
        "Apple M2 Max",
        "64 GB",
        "proc 12:8:4",
    )


# Section 5


def test_dscl_reads(mac: MacDouble) -> None:
    """Section 5: a value with a blank stands on the next line; no record 56; no attribute 0."""
    assert mac.sh("dscl . -read /Users/operator UniqueID") == "UniqueID: 501\n"
    assert mac.sh("dscl . -read /Users/operator RealName") == "RealName:\n Olivia Operator\n"
    assert mac.sh("dscl . -read /Groups/admin GroupMembership") == "GroupMembership: root operator\n"
    assert mac.as_root("dscl . -read /Users/nobody_at_all") == (
        56,
        "",
        "<dscl_cmd> DS Error: -14136 (eDSRecordNotFound)\n",
    )
    assert mac.as_root("dscl . -read /Users/operator IsHidden") == (0, "", "No such key: IsHidden\n")
    rows = dict(line.split() for line in mac.sh("dscl . -list /Users UniqueID").splitlines())
    assert (rows["root"], rows["nobody"], rows["operator"]) == ("0", "-2", "501")


def test_accounts_need_full_disk_access(mac: MacDouble) -> None:
    """Section 5 and 18, 6 and 10: without it dscl says 40, sysadminctl says so only in words."""
    refused = "<main> attribute status: eDSPermissionError\n<dscl_cmd> DS Error: -14120 (eDSPermissionError)\n"
    for words in ("-create /Users/_new", "-change /Users/nobody NFSHomeDirectory /var/empty /var/empty"):
        assert mac.as_root(f"dscl . {words}") == (40, "", refused), words
    code, out, err = mac.as_root("sysadminctl -addUser _new -UID 333 -GID 20")
    assert (code, out) == (0, "")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ sysadminctl\[\d+:[0-9a-f]+\] Creating user record", err)
    assert mac.as_root("id -u _new") == (1, "", "id: _new: no such user\n")
    assert mac.as_user("dscl . -create /Groups/x")[0] == 40


def test_a_service_user_is_made_and_runs_a_job(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 5: the way to a hidden user, by dscl alone; it is an account that processes run as."""
    mac.set(full_disk_access=True)
    create = "dscl . -create"
    for words in (
        "/Groups/_made",
        "/Groups/_made PrimaryGroupID 333",
        "/Users/_made",
        "/Users/_made UniqueID 333",
        "/Users/_made PrimaryGroupID 333",
        "/Users/_made UserShell /usr/bin/false",
        "/Users/_made NFSHomeDirectory /var/empty",
        "/Users/_made RealName 'Made by a test'",
        "/Users/_made IsHidden 1",
        "/Users/_made Password '*'",
    ):
        assert mac.as_root(f"{create} {words}") == (0, "", ""), words
    assert mac.sh("id _made") == ("uid=333(_made) gid=333(_made) groups=333(_made),12(everyone),61(localaccounts)\n")
    assert mac.sh("dscl . -read /Users/_made IsHidden") == "dsAttrTypeNative:IsHidden: 1\n"
    assert mac.as_root("dseditgroup -o edit -a _made -t user _www")[0] == 0
    assert mac.as_root("dseditgroup -o checkmember -m _made _www") == (0, "yes _made is a member of _www\n", "")
    assert mac.as_root("dseditgroup -o checkmember -m _made admin") == (67, "no _made is NOT a member of admin\n", "")
    one = job(
        "test.account", "id -un; id -gn; exec sleep 1000", RunAtLoad=True, UserName="_made", StandardOutPath="/tmp/made"
    )
    one.load()
    eventually("it has said who it is", lambda: mac.sh("cat /tmp/made") == "_made\n_made\n")
    mac.reboot()
    assert mac.sh("id -u _made") == "333\n"
    code, out, _ = mac.as_root("sysadminctl -deleteUser _made")
    assert (code, out) == (0, "")
    assert mac.as_root("dscl . -read /Users/_made")[0] == 56
    assert mac.as_root("dscl . -delete /Groups/_made")[0] == 0
    assert mac.as_root("dscl . -delete /Users/operator")[0] == 40


def test_a_group_that_exists_asks(mac: MacDouble) -> None:
    """Section 18, 9: on the terminal, where nobody answers."""
    code, out, _ = mac.as_root("dseditgroup -o create admin", b"n\n")
    assert code == 0
    assert "do you want to overwrite, y or n : " in out
    assert "operator" in mac.sh("dscl . -read /Groups/admin GroupMembership")
    assert mac.as_root("dseditgroup -o edit -a operator -t user nogroup_at_all")[2] == "Group not found.\n"


# Section 6


def test_brew(mac: MacDouble, tmp_path: Path) -> None:
    """Section 18, 7; install, list, pin, upgrade, uninstall."""
    for version in ("1.0", "1.1"):
        program = tmp_path / version / "bin" / "tool"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
    mac.formula("tool", "1.0", tmp_path / "1.0")
    brew = "/opt/homebrew/bin/brew"
    code, _, err = mac.as_root(f"{brew} install tool")
    assert (code, err.splitlines()[0]) == (
        1,
        "Error: Running Homebrew as root is extremely dangerous and no longer supported.",
    )
    assert mac.as_root(f"{brew} --prefix") == (0, "/opt/homebrew\n", "")
    assert mac.as_user(f"{brew} --prefix tool")[1] == "/opt/homebrew/opt/tool\n"
    assert mac.as_user(f"{brew} list --versions tool") == (1, "", "")
    assert mac.as_user(f"{brew} pin tool") == (1, "", "Error: tool not installed\n")
    assert mac.as_user(f"{brew} info --json=v2 none")[2] == 'Error: No available formula with the name "none".\n'
    assert mac.as_user(f"{brew} install tool")[0] == 0
    assert mac.as_user(f"{brew} list --versions tool") == (0, "tool 1.0\n", "")
    assert mac.sh("/opt/homebrew/bin/tool; /opt/homebrew/opt/tool/bin/tool") == "1.0\n1.0\n"
    assert mac.as_user(f"{brew} pin tool")[0] == 0
    assert mac.as_user(f"{brew} pin tool") == (0, "", "Warning: tool already pinned\n")
    mac.formula("tool", "1.1", tmp_path / "1.1")
    assert mac.as_user(f"{brew} upgrade tool")[0] == 1
    found = json.loads(mac.as_user(f"{brew} info --json=v2 tool")[1])["formulae"][0]
    assert (found["pinned"], found["outdated"], found["installed"][0]["version"]) == (True, True, "1.0")
    mac.as_user(f"{brew} unpin tool")
    assert mac.as_user(f"{brew} upgrade tool")[0] == 0
    assert mac.sh("/opt/homebrew/bin/tool") == "1.1\n"
    assert mac.as_user(f"{brew} uninstall tool")[0] == 0
    assert mac.as_root("/opt/homebrew/bin/tool")[0] == 127


def test_brews_python(mac: MacDouble) -> None:
    """It has no other names than Homebrew's, and makes virtual environments."""
    assert mac.as_user("/opt/homebrew/bin/brew install python")[0] == 0
    assert mac.sh("/opt/homebrew/opt/python@3.13/bin/python3.13 -c 'print(6 * 7)'") == "42\n"
    assert mac.sh("/opt/homebrew/bin/python3.13 -m venv /opt/venv && /opt/venv/bin/python -m pip --version").startswith(
        "pip "
    )
    assert mac.sh("/opt/venv/bin/python -c 'import sys; print(sys.prefix)'") == "/opt/venv\n"
    mac.sh("rm -rf /opt/venv")
    assert mac.as_user("/opt/homebrew/bin/brew uninstall python")[0] == 0


def test_brews_working_directory(mac: MacDouble) -> None:
    """Section 6: it must be readable to the user."""
    code, _, err = mac.as_root("cd /var/root && sudo -u operator /opt/homebrew/bin/brew list")
    assert (code, err) == (1, "Error: The current working directory must be readable to operator to run brew.\n")


# Sections 7 to 13


def test_firewall(mac: MacDouble) -> None:
    """Section 7: texts of 15 and later, and of 14."""
    fw = "/usr/libexec/ApplicationFirewall/socketfilterfw"
    assert mac.as_user(f"{fw} --getglobalstate")[1] == "Firewall is disabled. (State = 0)\n"
    assert mac.as_user(f"{fw} --setglobalstate on")[0] == 1
    mac.as_root(f"{fw} --setglobalstate on --setstealthmode on --add /bin/zsh")
    assert mac.sh(f"{fw} --getglobalstate; {fw} --getstealthmode; {fw} --getblockall").splitlines() == [
        "Firewall is enabled. (State = 1)",
        "Firewall stealth mode is on",
        "Firewall has block all state set to disabled.",
    ]
    listed = mac.sh(f"{fw} --listapps").splitlines()
    assert listed[:3] == [
        "Total number of apps = 3",
        "1 : /usr/libexec/sshd-session",
        "             (Block incoming connections)",
    ]
    assert listed[-2:] == ["3 : /bin/zsh", "             (Allow incoming connections)"]
    assert mac.sh(f"{fw} --add /bin/zsh") == "The application is already a part of the firewall\n"
    mac.set(version="14")
    assert mac.sh(f"{fw} --listapps").startswith(
        "ALF: total number of apps = 3 \n\n1 :  /usr/libexec/sshd-session \n \t ( Block"
    )
    mac.set(version="27", managed=True)
    assert "cannot be modified from command line on managed Mac" in mac.sh(f"{fw} --setglobalstate off")
    assert mac.sh(f"{fw} --getglobalstate") == "Firewall is enabled. (State = 1)\n"
    mac.set(managed=False)
    mac.as_root(f"{fw} --setglobalstate off --setstealthmode off --remove /bin/zsh")
    assert mac.as_root("pfctl -e")[0] == 0
    assert mac.as_root("pfctl -e")[::2] == (
        1,
        "No ALTQ support in kernel\nALTQ related functions disabled\npfctl: pf already enabled\n",
    )


def test_failures_that_end_with_0(mac: MacDouble) -> None:
    """Section 18, 6: mdutil and systemsetup."""
    assert mac.as_root("mdutil -s /") == (0, "/:\n\tIndexing enabled. \n", "")
    assert mac.as_root("mdutil -s /nowhere") == (0, "Error: invalid path `/nowhere'.\n", "")
    assert mac.as_root("mdutil -i off /Users")[0] == 0
    assert "Error: invalid operation." in mac.sh("mdutil -i off /Users")
    assert mac.sh("mdutil -i off /").splitlines()[-1] == "\tIndexing disabled. "
    assert mac.sh("mdutil -s /") == "/:\n\tIndexing disabled. \n"
    mac.set(mds_off=True)
    assert mac.as_root("mdutil -s /") == (0, "Spotlight server is disabled.\n", "")
    asked = mac.as_user("systemsetup -getremotelogin")
    assert asked == (0, "You need administrator access to run this tool... exiting!\n", "")
    assert mac.as_root("systemsetup -getremotelogin") == (0, "Remote Login: On\n", "")
    code, out, err = mac.as_root("systemsetup -setcomputersleep Never")
    assert (code, out) == (0, "setcomputersleep: Never\n")
    assert "### Error:-99 File:" in err


def test_no_full_disk_access_by_default(mac: MacDouble) -> None:
    """Section 18, 10."""
    assert mac.as_root("systemsetup -setremotelogin on") == (
        1,
        "",
        "setremotelogin: Turning Remote Login on or off requires Full Disk Access privileges.\n",
    )
    mac.sh("mkdir -p /opt/backed")
    code, _, err = mac.as_root("tmutil addexclusion -p /opt/backed")
    assert (code, err.splitlines()[0]) == (80, "tmutil: addexclusion requires Full Disk Access privileges.")
    assert len(err.splitlines()) == 4
    assert mac.sh("tmutil isexcluded /opt/backed") == "[Included]    /opt/backed\n"
    assert mac.as_root("tmutil addexclusion /opt/backed") == (0, "", "")
    assert mac.sh("tmutil isexcluded /opt/backed") == "[Excluded]    /opt/backed\n"
    mac.set(full_disk_access=True)
    assert mac.as_root("tmutil addexclusion -p /opt")[0] == 0
    assert mac.sh("tmutil isexcluded /opt/anything") == "[Excluded]    /opt/anything\n"
    assert mac.as_root("tmutil removeexclusion -p /opt")[0] == 0


def test_security_answers(mac: MacDouble) -> None:
    """Sections 10 and 11."""
    assert mac.as_user("fdesetup status") == (0, "FileVault is Off.\n", "")
    assert mac.as_user("fdesetup isactive") == (1, "false\n", "")
    mac.set(filevault=True, filevault_progress="42.5")
    assert mac.sh("fdesetup status") == "FileVault is On.\nEncryption in progress: Percent completed = 42.5\n"
    assert mac.sh("csrutil status") == "System Integrity Protection status: enabled.\n"
    assert mac.as_root("spctl --status") == (0, "assessments enabled\n", "")
    assert mac.as_root("spctl --global-disable")[0] == 1
    assert mac.as_root("nvram boot-args") == (
        1,
        "",
        "nvram: Error getting variable - 'boot-args': (iokit/common) data was not found\n",
    )
    assert mac.sh("softwareupdate --schedule") == "Automatic checking for updates is turned on\n"
    code, out, err = mac.as_root("codesign -dv /opt/homebrew/bin/brew")
    assert (code, out, err) == (1, "", "/opt/homebrew/bin/brew: code object is not signed at all\n")


def test_newsyslog(mac: MacDouble) -> None:
    """Section 12: one bad line stops all; what is due is turned over."""
    conf = "/etc/newsyslog.d/test.conf"
    mac.sh("head -c 20480 /dev/zero >/var/log/test.log")
    mac.put(conf, b"/var/log/test.log _www:wheel 640 2 10 * J\n")
    assert mac.as_user(f"newsyslog -nv -f {conf}")[2] == "newsyslog: must have root privs\n"
    assert mac.sh(f"newsyslog -nv -f {conf}") == "/var/log/test.log <2J>: size (Kb): 20 [10] --> trimming log....\n"
    assert mac.as_root("newsyslog")[0] == 0
    assert mac.sh("ls /var/log/test.log*") == "/var/log/test.log\n/var/log/test.log.0.bz2\n"
    assert mac.sh("stat -f '%Su:%Sg %Lp' /var/log/test.log") == "_www:wheel 640\n"
    assert "logfile turned over due to size>10K" in mac.sh("cat /var/log/test.log")
    mac.put(conf, b"/var/log/test.log nobody_at_all: 640 2 10 * J\n")
    code, _, err = mac.as_root("newsyslog")
    assert code == 1
    assert "unknown user" in err
    mac.sh(f"rm {conf}")


def test_defaults_and_plutil(mac: MacDouble) -> None:
    """Section 13 and 18, 8: texts of 26 and of 27, types, files with a leading newline."""
    domain = "/Library/Preferences/com.example.test"
    code, _, err = mac.as_root(f"defaults read {domain} Key")
    assert code == 1
    assert f"The domain/default pair of ({domain}, Key) does not exist" in err
    mac.set(version="27")
    assert "not found" in mac.as_root(f"defaults read {domain} Key")[2]
    assert mac.as_root(f"defaults write {domain} Key -bool true") == (0, "", "")
    assert mac.sh(f"defaults read {domain} Key; defaults read-type {domain} Key") == "1\nType is boolean\n"
    assert "Could not find key Other" in mac.as_root(f"defaults read {domain} Other")[2]
    assert plistlib.loads(mac.sh(f"defaults export {domain} -").encode()) == {"Key": True}
    assert mac.as_root(f"defaults delete {domain} Key") == (0, "", "")
    mac.put("/tmp/one.plist", b"\n" + plistlib.dumps({"A": {"B": "c"}, "D": b"1"}))
    assert mac.as_root("plutil -lint /tmp/one.plist") == (0, "/tmp/one.plist: OK\n", "")
    assert mac.sh("plutil -extract A.B raw /tmp/one.plist") == "c\n"
    assert mac.as_root("plutil -extract X raw /tmp/one.plist")[0] == 1
    assert mac.as_root("plutil -convert json -o - /tmp/one.plist")[0] == 1
    mac.put("/tmp/two.plist", b"nonsense {")
    assert mac.as_root("plutil -lint /tmp/two.plist")[0] == 1


# Section 14


@pytest.mark.parametrize(
    "command",
    [
        "stat -c %s /etc/hosts",
        "sed -i s/a/b/ /tmp/gnu",
        "sed --in-place s/a/b/ /tmp/gnu",
        "date -d now",
        "date --iso-8601",
        "readlink -e /etc/hosts",
        "find /tmp -printf x",
        "find -name x",
        "grep -P x /tmp/gnu",
        "mv -T /tmp/gnu /tmp/other",
        "cp --preserve /tmp/gnu /tmp/other",
        "ln -T /tmp/gnu /tmp/other",
        "install -D /tmp/gnu /tmp/a/b",
        "mktemp --tmpdir",
        "mkdir --parents /tmp/x",
        "chown --reference=/tmp /tmp/gnu",
        "head -n -1 /tmp/gnu",
        "base64 -w0 /tmp/gnu",
        "ls --color /tmp",
        "df --output=avail /",
        "du -b /tmp/gnu",
        "ps -C sh",
        "xargs -d x",
        "hostname -I",
        "tail --lines=1 /tmp/gnu",
        "touch --date=now /tmp/gnu",
        "wc --lines /tmp/gnu",
        "realpath -m /nowhere",
        "chown root:root /tmp/gnu",
    ],
)
def test_what_only_gnu_has_is_refused(mac: MacDouble, command: str) -> None:
    """Section 14 and 18: an error, and nothing is done."""
    mac.sh("echo a >/tmp/gnu")
    code, out, err = mac.as_root(command)
    assert code != 0
    assert err
    assert out == ""
    assert mac.sh("cat /tmp/gnu; ls /tmp | grep -c other") == "a\n0\n"


def test_what_does_not_exist(mac: MacDouble) -> None:
    """Section 14: no PATH of anybody's leads to what a Mac lacks."""
    absent = (
        "timeout flock setsid getent nproc ip ss systemctl service useradd usermod groupadd apt-get apt dpkg sha256sum "
        "free tac adduser brew python python3.13 journalctl loginctl mkfs ldconfig chpasswd md5sum lsb_release"
    )
    script = f"for each in {absent}; do command -v $each; done; true"
    assert mac.sh(script) == ""
    assert mac.as_user(script) == (0, "", "")
    login = subprocess.run(mac.ssh_command(script), capture_output=True, text=True, check=False)
    assert (login.returncode, login.stdout) == (0, "")
    for name in ("python3", "git", "cc"):
        code, _, err = mac.as_root(f"/usr/bin/{name}")
        assert code == 1
        assert err.startswith("xcode-select: note: No developer tools were found")
    # Where a program is on a Mac is where it is here, and nowhere else.
    assert mac.sh("ls /usr/bin/cat /bin/stat /usr/bin/chown /bin/launchctl 2>/dev/null") == "/bin/launchctl\n"
    assert mac.as_root("touch /usr/bin/x")[0] == 1
    assert mac.strays() == []
    mac.sh("mkdir /data")
    assert mac.strays() == ["data"]
    mac.sh("rmdir /data")


def test_bsd_tools_work(mac: MacDouble) -> None:
    """Section 14: what scripts for both systems lean on."""
    mac.sh(
        "printf 'one\\ntwo\\n' >/tmp/bsd; chmod 640 /tmp/bsd; chown operator:staff /tmp/bsd; "
        "touch -t 202001020304.05 /tmp/bsd"
    )
    assert mac.sh("stat -f '%Su:%Sg %Lp %z %m %N' /tmp/bsd") == "operator:staff 640 8 1577934245 /tmp/bsd\n"
    assert mac.sh("stat -f '%HT|%Sp|%p|%d' /tmp/bsd").split("|")[:3] == ["Regular File", "-rw-r-----", "100640"]
    assert mac.sh("stat -L -f %HT /tmp; stat -f '%HT %Y' /tmp") == "Directory\nSymbolic Link private/tmp\n"
    assert mac.sh("TZ=UTC date -r 86400 +%F; TZ=UTC date -j -f '%Y-%m-%d %H:%M:%S' '1970-01-02 00:00:01' +%s") == (
        "1970-01-02\n86401\n"
    )
    assert mac.sh("TZ=UTC date -r 86400 -v+1d -v-1H +%dT%H") == "02T23\n"
    assert mac.sh("sed -i '' s/one/1/ /tmp/bsd; sed -i .old s/1/uno/ /tmp/bsd; cat /tmp/bsd /tmp/bsd.old") == (
        "uno\ntwo\n1\ntwo\n"
    )
    assert mac.sh("echo aab | sed 's/a\\+b/x/'; echo aab | sed -E 's/a+b/x/'") == "aab\nx\n"
    assert (
        mac.sh("readlink -f /etc/hosts; realpath /tmp; readlink /var")
        == "/private/etc/hosts\n/private/tmp\nprivate/var\n"
    )
    assert mac.sh("cd /tmp && pwd -P; cd /etc && /bin/pwd") == "/private/tmp\n/etc\n"
    assert re.fullmatch(r"/var/folders/\S+/tmp\.\w{10}\n", mac.sh("unset TMPDIR; mktemp -d"))
    assert re.fullmatch(r"/tmp/a\.\w{6}\n", mac.sh("mktemp /tmp/a.XXXXXX"))
    assert mac.sh("printf '' | xargs echo never; printf 'a b' | xargs -n1 echo") == "a\nb\n"
    assert mac.sh("printf x | wc -c; wc -l </tmp/bsd") == "       1\n       2\n"
    assert mac.sh("printf abc | base64; printf YWJj | base64 -D; printf YWJj | base64 -d") == "YWJj\nabcabc"
    assert len(mac.sh("head -c 300 /dev/zero | base64").splitlines()) == 1
    assert mac.sh("printf abc | shasum -a 256").split()[0].startswith("ba7816bf8f01cfea")
    assert mac.sh("printf abc >/tmp/abc; md5 -q /tmp/abc; md5 /tmp/abc") == (
        "900150983cd24fb0d6963f7d28e17f72\nMD5 (/tmp/abc) = 900150983cd24fb0d6963f7d28e17f72\n"
    )
    assert mac.sh("tar --version").startswith("bsdtar")
    assert mac.sh("printf '1\\n2\\n3\\n' | tail -r") == "3\n2\n1\n"
    assert mac.sh("awk --version").startswith("awk version")
    mac.sh("mkdir -p /tmp/from/sub; touch /tmp/from/sub/file; rm -rf /tmp/to; mkdir /tmp/to; cp -R /tmp/from/ /tmp/to")
    assert mac.sh("ls /tmp/to") == "sub\n"
    mac.sh(
        "ln -sfn /tmp/from /tmp/link; ln -sfn /tmp/to /tmp/link; ln -s /tmp/from /tmp/new; mv -fh /tmp/new /tmp/link"
    )
    assert mac.sh("readlink /tmp/link") == "/tmp/from\n"
    assert mac.sh("find /tmp/from -type f -mmin -5 -print0 | xargs -0 ls") == "/tmp/from/sub/file\n"


def test_lockf(mac: MacDouble) -> None:
    """Section 14: it stands where Linux has flock; 75 when the lock is another's."""
    assert mac.as_root("lockf -k /tmp/lock sh -c 'lockf -k -t 0 /tmp/lock true'")[::2] == (
        75,
        "lockf: /tmp/lock: already locked\n",
    )
    assert mac.as_root("lockf -t 5 /tmp/lock sh -c 'exit 4'")[0] == 4
    assert mac.as_root("ls /tmp/lock")[0] != 0


def test_df(mac: MacDouble) -> None:
    """Section 14: columns, and the data volume."""
    lines = mac.sh("df -k /").splitlines()
    assert " ".join(lines[0].split()) == (
        "Filesystem 1024-blocks Used Available Capacity iused ifree %iused Mounted on"
    )
    assert lines[1].split()[-1] == "/"
    fields = mac.sh("df -Pk /opt").splitlines()[1].split()
    assert len(fields) == 6
    assert fields[5] == "/System/Volumes/Data"
    assert int(fields[3]) > 0
    assert mac.sh("du -sk /opt").split()[1] == "/opt"


# Sections 15, 16


def test_lsof_and_netstat(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 15 and 18, 8: columns, and 1 when nothing listens."""
    assert mac.as_root("lsof -nP -iTCP:4567 -sTCP:LISTEN") == (1, "", "")
    one = job(
        "test.listens",
        UserName="_www",
        RunAtLoad=True,
        ProgramArguments=["/usr/bin/nc", "-lk", "127.0.0.1", "4567"],
    )
    one.load()
    out = eventually("it listens", lambda: mac.sh("lsof -nP -iTCP:4567 -sTCP:LISTEN"))
    assert out.splitlines()[0].split() == ["COMMAND", "PID", "USER", "FD", "TYPE", "DEVICE", "SIZE/OFF", "NODE", "NAME"]
    fields = out.splitlines()[1].split()
    assert (fields[0], fields[1], fields[2], fields[4]) == ("nc", one.shown()["pid"], "_www", "IPv4")
    assert fields[-3:] == ["TCP", "127.0.0.1:4567", "(LISTEN)"]
    assert mac.sh("lsof -nP -iTCP:4567 -sTCP:LISTEN -Fpcn").splitlines()[::3] == [f"p{fields[1]}", "n127.0.0.1:4567"]
    # Others see only what is their own.
    assert mac.as_user("lsof -nP -iTCP:4567 -sTCP:LISTEN") == (1, "", "")
    rows = [line for line in mac.sh("netstat -anv -p tcp").splitlines() if "127.0.0.1.4567" in line]
    assert rows[0].split()[0] == "tcp4"
    assert rows[0].split()[5] == "LISTEN"
    assert f"nc:{fields[1]}" in rows[0]
    mac.set(version="15")
    assert "   pid " in mac.sh("netstat -anv -p tcp").splitlines()[1]
    assert mac.sh("pgrep -x nc").strip() == fields[1]
    assert mac.as_root("pgrep -x nothing_like_it")[0] == 1


def test_ps(mac: MacDouble, job: Callable[..., Job]) -> None:
    """Section 15: comm is the whole path, and titles are left out by `=`."""
    one = job("test.ps", ProgramArguments=["/bin/sleep", "1234"], RunAtLoad=True)
    one.load()
    pid = one.shown()["pid"]
    assert mac.sh(f"ps -p {pid} -o pid=,ppid=,user=,comm=,command=").split() == [
        pid,
        "1",
        "root",
        "/bin/sleep",
        "/bin/sleep",
        "1234",
    ]
    assert re.match(r"[A-Z][a-z]{2} [A-Z][a-z]{2} ", mac.sh(f"ps -p {pid} -o lstart="))
    assert mac.sh("ps -axo pid=,comm= | head -1").split() == ["1", "/sbin/launchd"]
    assert mac.as_root("ps -p 999999")[0] == 1


def test_sudo_keeps_home(mac: MacDouble) -> None:
    """Section 16 and 18, 7."""
    done = subprocess.run(
        mac.ssh_command(
            "echo $PATH $SHELL; sudo sh -c 'echo $HOME $PATH'; sudo -H sh -c 'echo $HOME'; launchctl managername"
        ),
        capture_output=True,
        text=True,
        check=True,
    )
    path = "/usr/bin:/bin:/usr/sbin:/sbin"
    assert done.stdout.splitlines() == [f"{path} /bin/zsh", f"/Users/operator {path}", "/var/root", "Background"]


def test_sudo_with_a_password() -> None:
    """Section 16: -n refuses, -S takes it; the options of a Mac that is made otherwise."""
    limited = {"/private/var/lib/boxwright": "8m"}
    with MacDouble(passwordless_sudo=False, brew="other", version="14", limited=limited) as mac:
        assert mac.as_user("sudo -n true") == (1, "", "sudo: a password is required\n")
        code, _, err = mac.as_user("sudo true </dev/null")
        assert code == 1
        assert "a terminal is required to read the password" in err
        assert mac.as_user("sudo -S -p '' id -u", f"{PASSWORD}\n".encode())[1] == "0\n"
        assert mac.variables["ansible_become_password"] == PASSWORD
        assert mac.sh("stat -f %Su:%Sg /opt/homebrew/Cellar") == "installer:admin\n"
        assert mac.as_root("command -v jq")[0] == 127 or mac.sh("command -v jq") == ""
        assert mac.as_root("head -c 9000000 /dev/zero >/var/lib/boxwright/file")[0] == 1
        assert "/private/var/lib/boxwright" in mac.sh("df -k /var/lib/boxwright")


def test_operations_run_on_it(mac: MacDouble) -> None:
    """As on a Machine, also those of another project, whose inventory does not say what it runs."""
    found: list[str] = []
    assert mac.run(lambda: found.append(platforms.system())).ok
    assert mac.run(lambda: found.append(platforms.system()), system=None).ok
    assert found == ["darwin", "darwin"]


@pytest.mark.parametrize("passwordless", [True, False])
def test_it_is_an_ordinary_host(tmp_path: Path, passwordless: bool) -> None:
    """pyinfra itself reaches it by its inventory, over SSH, and becomes root with and without a password."""
    with MacDouble(passwordless_sudo=passwordless) as mac:
        path = mac.inventory(tmp_path, inference_engine="none", openwebui_enabled=False)
        assert path.stat().st_mode & 0o777 == 0o600
        environment = {
            **os.environ,
            "BOXWRIGHT_INVENTORY": str(path),
            "BOXWRIGHT_STATE_DIR": str(tmp_path / "state"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        words = ["pyinfra", "-y", "inventory.py", "exec", "--", "sh", "-c", "'uname -s; id -un; echo $PATH'"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        said = [line for line in done.stderr.splitlines() if line.startswith("[mac] ")]
        assert said == ["[mac] Darwin", "[mac] root", "[mac] /usr/bin:/bin:/usr/sbin:/sbin"]
