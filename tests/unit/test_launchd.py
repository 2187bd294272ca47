"""LaunchDaemons: their text, the times they know, and the program that stands before each service, which runs here."""

import os
import plistlib
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_services import ENGINE, GATEWAY

from boxwright import launchd
from boxwright.launchd import STARTER, calendar, identity, plist
from boxwright.services import Service, http_probe
from boxwright.systemd import systemd_unit

GOLDEN = Path(__file__).parent / "golden"

# As a role describes it on a Mac: an account, and a probe where the program cannot tell launchd that it is ready.
MAC_ENGINE = replace(ENGINE, user="_engine", wait_for_files=(), stop_timeout=60)
MAC_GATEWAY = replace(
    GATEWAY,
    user="_caddy",
    probe=http_probe("http://127.0.0.1:2019/"),
    state_directory="gateway",
    logs_directory="gateway",
)
MAC_UPDATE = Service(
    name="update",
    description="Update",
    command=("/bin/sh", "/opt/update"),
    user="root",
    schedule="Sun 04:00",
    wants=("network-online.target",),
)


# In the session of a person.
MAC_AGENT = replace(MAC_ENGINE, name="agent", user="ada", group="", agent=True, state_directory="")


@pytest.mark.parametrize("service", [MAC_ENGINE, MAC_GATEWAY, MAC_UPDATE, MAC_AGENT, launchd.ROTATION], ids=str)
def test_text(service):
    """The text as it was read and found good; write it anew with BOXWRIGHT_WRITE_GOLDEN=1 and read the difference."""
    text, path = plist(service), GOLDEN / f"boxwright.{service.name}.plist"
    if os.environ.get("BOXWRIGHT_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_what_launchd_reads():
    values = plistlib.loads(plist(MAC_ENGINE).encode())
    assert values["Label"] == "boxwright.engine"
    assert values["ProgramArguments"][-5:] == ["--", *MAC_ENGINE.command]
    assert (values["RunAtLoad"], values["KeepAlive"], values["ExitTimeOut"], values["Umask"]) == (True, True, 60, 63)
    assert values["EnvironmentVariables"]["HOME"] == "/var/lib/boxwright/engine"
    assert values["EnvironmentVariables"]["GREETING"] == 'say "hi" to %h'
    assert values["StandardOutPath"] == values["StandardErrorPath"] == "/var/log/boxwright/engine/engine.log"
    limits = plistlib.loads(plist(MAC_GATEWAY).encode())
    assert limits["SoftResourceLimits"] == limits["HardResourceLimits"] == {"NumberOfFiles": 65536}
    task = plistlib.loads(plist(MAC_UPDATE).encode())
    assert task["StartCalendarInterval"] == [{"Weekday": 0, "Hour": 4, "Minute": 0}]
    assert "KeepAlive" not in task
    assert "RunAtLoad" not in task


def test_what_launchd_reads_of_an_agent():
    values = plistlib.loads(plist(MAC_AGENT).encode())
    words = values["ProgramArguments"]
    assert launchd.plist_path(MAC_AGENT) == "/Library/LaunchAgents/boxwright.agent.plist"
    assert words[words.index("--user") + 1] == "ada"
    # Whatever that is on the Mac.
    assert words[words.index("--group") + 1] == ""
    assert words[words.index("--notes") + 1] == "/var/lib/boxwright/agents/agent"
    assert words[words.index("--log") + 1] == "/var/log/boxwright/agent/agent.log"
    assert (values["LimitLoadToSessionType"], values["RunAtLoad"], values["KeepAlive"]) == ("Aqua", True, True)
    # The session's own home; and no log that another user's session could not open.
    assert not {"HOME", "USER", "CREDENTIALS_DIRECTORY"} & values["EnvironmentVariables"].keys()
    assert not {"StandardOutPath", "StandardErrorPath", "UserName"} & values.keys()
    assert "--identity" in words
    assert [word for word in launchd.as_service(MAC_AGENT) if word.startswith("HOME=")] == []
    with pytest.raises(ValueError, match="only a Mac has"):
        systemd_unit(MAC_AGENT)


@pytest.mark.parametrize(
    "change",
    [
        {"command": ("/opt/engine/bin/python", "/opt/other.py")},
        {"environment": {"GREETING": "other"}},
        {"environment_file": "/etc/other.env"},
        {"restart_files": ("/etc/other",)},
        {"user": "_other"},
        {"stop_timeout": 5},
    ],
)
def test_another_definition_has_another_identity(change):
    assert identity(replace(MAC_ENGINE, **change)) != identity(MAC_ENGINE)
    assert f"<string>{identity(MAC_ENGINE)}</string>" in plist(MAC_ENGINE)


def test_what_launchd_does_not_see_is_no_other_definition():
    assert identity(replace(MAC_ENGINE, probe=(), description="x", start_timeout=1)) == identity(MAC_ENGINE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": ""}, "names no user"),
        ({"user": "engine"}, "begin with `_`"),
        ({"probe": (), "notify": True}, "give it a `probe`"),
        ({"settings": {"PrivateFoo": "yes"}}, "does not know: PrivateFoo=yes"),
        ({"settings": {"LimitNOFILE": "many"}}, "LimitNOFILE=many"),
        ({"schedule": "2027-01-01"}, "no time that launchd knows"),
        ({"agent": True, "user": "root", "state_directory": ""}, "LaunchAgent of root, who never signs in"),
        ({"agent": True, "user": "", "state_directory": ""}, "LaunchAgent of nobody"),
        ({"agent": True, "user": "_engine", "state_directory": ""}, "LaunchAgent of _engine"),
        ({"agent": True, "user": "ada", "state_directory": "x"}, "no folders of its own"),
        ({"agent": True, "user": "ada", "state_directory": "", "schedule": "daily"}, "no `schedule`"),
        ({"agent": True, "user": "ada", "state_directory": "", "credentials": {"a": "/b"}}, "`credentials`"),
    ],
)
def test_what_launchd_cannot_do_is_said(change, said):
    with pytest.raises(ValueError, match=said):
        plist(replace(MAC_ENGINE, **change))


def test_settings_without_a_meaning_here_are_left_out():
    assert plist(replace(MAC_ENGINE, settings={"KillMode": "mixed", "LimitMEMLOCK": "infinity"})) == plist(MAC_ENGINE)


def test_groups_of_root():
    arguments = launchd.as_service(MAC_UPDATE)
    assert arguments[arguments.index("--group") + 1] == "wheel"
    assert arguments[arguments.index("--user") + 1] == "root"


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        ("hourly", [{"Minute": 0}]),
        ("daily", [{"Hour": 0, "Minute": 0}]),
        ("Weekly", [{"Weekday": 1, "Hour": 0, "Minute": 0}]),
        ("monthly", [{"Day": 1, "Hour": 0, "Minute": 0}]),
        ("05:30", [{"Hour": 5, "Minute": 30}]),
        ("*-*-* 05:30:00", [{"Hour": 5, "Minute": 30}]),
        ("*-*-15 4:05", [{"Day": 15, "Hour": 4, "Minute": 5}]),
        ("*:15", [{"Minute": 15}]),
        ("*:0/20", [{"Minute": 0}, {"Minute": 20}, {"Minute": 40}]),
        ("Sun 04:00", [{"Weekday": 0, "Hour": 4, "Minute": 0}]),
        ("monday,Thu 4:00", [{"Weekday": 1, "Hour": 4, "Minute": 0}, {"Weekday": 4, "Hour": 4, "Minute": 0}]),
        ("Fri..Sun 04:00", [{"Weekday": day, "Hour": 4, "Minute": 0} for day in (0, 5, 6)]),
        ("Mon *-*-* 04:00", [{"Weekday": 1, "Hour": 4, "Minute": 0}]),
    ],
)
def test_times(schedule, times):
    assert calendar(schedule) == times


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "yearly",
        "2027-01-01 04:00",
        "*-01-01",
        "25:00",
        "04:60",
        "*-*-32 04:00",
        "*-*-0 04:00",
        "Foo 04:00",
        "Mon.. 04:00",
        "Mon.Tue 04:00",
        ", 04:00",
        "04:00:30",
        "*:0/0",
        "04:00 UTC",
        "Mon",
    ],
)
def test_other_times_are_refused(schedule):
    with pytest.raises(ValueError, match="no time that launchd knows"):
        calendar(schedule)


def test_times_are_those_of_systemd():
    """systemd and launchd would start it at the same time: asked of systemd itself where it is."""
    for schedule in ("Fri..Sun 04:00", "*-*-15 4:05", "weekly", "*:0/20"):
        try:
            said = subprocess.run(
                ["systemd-analyze", "calendar", "--iterations=12", schedule], capture_output=True, text=True, check=True
            )
        except FileNotFoundError:
            pytest.skip("systemd-analyze is not installed on this machine")
        stamps = [
            time.strptime(line.partition(": ")[2].strip().rpartition(" ")[0], "%a %Y-%m-%d %H:%M:%S")
            for line in said.stdout.splitlines()
            if "Next elapse:" in line or "Iter. #" in line
        ]
        assert len(stamps) == 12, said.stdout
        for when in stamps:
            have = {"Weekday": (when.tm_wday + 1) % 7, "Day": when.tm_mday, "Hour": when.tm_hour, "Minute": when.tm_min}
            assert any(all(have[key] == value for key, value in one.items()) for one in calendar(schedule)), schedule


# The starter


@pytest.fixture
def starter(tmp_path):
    """The starter, which keeps its records below this test's folder; called with its arguments."""
    stamps, program = tmp_path / "stamps", tmp_path / "start"
    said = tmp_path / "launchctl"
    said.write_text('#!/bin/sh\necho "launchctl $*"\n')
    said.chmod(0o755)
    program.write_text(STARTER.replace(launchd.STAMPS, str(stamps)).replace("/bin/launchctl", str(said)))
    program.chmod(0o755)

    def run(*arguments, background=False, **options):
        command = [str(program), *map(str, arguments)]
        if background:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)

    run.stamps = stamps
    return run


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
ME = ("--name", "x", "--user", "root", "--group", "root")


@as_root
def test_it_becomes_the_program(starter):
    """The very process: launchd watches the program, not a parent of it. Nothing of root is left in it."""
    process = starter(
        *("start", "--name", "x", "--user", "nobody", "--group", "nogroup", "--"),
        *("/bin/sh", "-c", "echo $$; exec grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status"),
        background=True,
    )
    said, _ = process.communicate(timeout=60)
    pid, *status = said.splitlines()
    assert pid == str(process.pid)
    found = {name: values.split() for name, values in (line.split(":") for line in status)}
    four = ["65534"] * 4
    assert found == {"Uid": four, "Gid": four, "Groups": ["65534"], "CapEff": ["0000000000000000"]}


def test_an_agent_notes_and_logs_where_its_user_may(starter, tmp_path):
    notes, log, read = tmp_path / "notes", tmp_path / "log", tmp_path / "read"
    notes.mkdir()
    read.write_text("1\n")
    log.write_text("before\n")
    name = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    user = ("--name", "x", "--user", name, "--group", "", "--notes", notes, "--log", log)
    print_home = ("/bin/sh", "-c", 'echo "$HOME $(id -un)"; echo problem >&2')
    bare = {"PATH": os.environ["PATH"]}
    found = starter("start", *user, "--identity", "abc", "--reads", read, "--", *print_home, env=bare)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert log.read_text().splitlines() == ["before", f"{Path(f'~{name}').expanduser()} {name}", "problem"]
    first, line = (notes / "x.started").read_text().splitlines()
    assert first.endswith(" abc")
    assert line.endswith(f"  {read}")
    assert not starter.stamps.exists()


@as_root
def test_an_agent_leaves_the_session_of_anybody_else(starter, tmp_path):
    """launchd loads what is in /Library/LaunchAgents for everybody."""
    (tmp_path / "notes").mkdir()
    log = tmp_path / "log"
    user = ("--name", "x", "--user", "nobody", "--group", "", "--notes", tmp_path / "notes", "--log", log)
    found = starter("start", *user, "--identity", "abc", "--", "/bin/echo", "started")
    assert found.stdout == "launchctl bootout gui/0/boxwright.x\n"
    assert not log.exists()
    assert list((tmp_path / "notes").iterdir()) == []


def test_arguments_arrive_as_they_are(starter):
    arguments = ["it's $HOME", "two  words", "", "line\nbreak", "--", "*"]
    found = starter("start", *ME, "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *arguments)
    assert found.stdout == f"{arguments}\n"


def record_of(starter, name):
    return (starter.stamps / f"x.{name}").read_text().splitlines()


def test_it_notes_what_the_process_was_started_with(starter, tmp_path):
    one, two = tmp_path / "one file", tmp_path / "two"
    one.write_text("1\n")
    gate = tmp_path / "gate"
    process = starter(
        *("start", *ME, "--file", gate),
        *("--identity", "abc", "--reads", one, "--reads", two, "--loads", one, "--"),
        *("/bin/sh", "-c", "echo here; read line"),
        background=True,
        stdin=subprocess.PIPE,
    )
    assert "waits for" in process.stdout.readline()
    # So that a time of its own would differ from that of the process.
    time.sleep(2)
    gate.touch()
    assert process.stdout.readline() == "here\n"
    first, *files = record_of(starter, "started")
    start = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(process.pid)],
        env={"LC_ALL": "C", "TZ": "UTC0", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert first == f"{process.pid}@{'_'.join(start.split())} abc"
    assert files == [
        f"4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865  {one}",
        f"absent  {two}",
    ]
    assert record_of(starter, "loaded") == [first, files[0]]
    assert stat.S_IMODE(starter.stamps.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in starter.stamps.iterdir()} == {0o600}
    assert starter("stamps", one, two).stdout.splitlines() == files
    process.communicate("\n", timeout=60)


def test_a_line_changes_with_the_file(starter, tmp_path):
    file, folder, big = tmp_path / "a\\ 'file'", tmp_path / "folder", tmp_path / "big"
    file.write_text("one")
    folder.mkdir()
    with big.open("wb") as sparse:
        sparse.truncate(65 * 2**20)
    for path in (folder, big):
        os.utime(path, (1, 1))
    before = starter("stamps", file, folder, big).stdout.splitlines()
    assert len(before) == 3
    assert starter("stamps", file, folder, big).stdout.splitlines() == before
    file.write_text("two")
    os.utime(big, (2, 2))
    (folder / "new").touch()
    after = starter("stamps", file, folder, big).stdout.splitlines()
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert before[2].startswith(f"{65 * 2**20} "), "a big file was read"


def test_a_missing_program_is_78_and_says_so(starter):
    found = starter("start", *ME, "--", "/no/such program")
    assert found.returncode == 78
    assert found.stderr == "boxwright: cannot start /no/such program: No such file or directory\n"


@as_root
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--user", "no-such", "--group", "root"), "there is no user no-such"),
        (("--user", "root", "--group", "no-such"), "there is no group no-such"),
        ((*ME, "--environment", "/no/such"), "cannot read the environment /no/such"),
        ((*ME, "--address", "nonsense"), "not an address: nonsense"),
        ((*ME, "--other", "x"), "an option that is not known: other"),
    ],
)
def test_what_it_cannot_do_is_78_and_starts_nothing(starter, arguments, said):
    found = starter("start", *arguments, "--", "/bin/echo", "started")
    assert (found.returncode, found.stdout) == (78, "")
    assert said in found.stderr


ENVIRONMENT = """\
# secrets
; more

PLAIN=one two = three
EMPTY=
QUOTED="it's \\"so\\" \\\\ \\$HOME \\`x\\` \\n"
SINGLE='a "b" \\n $c'
"""


def test_the_environment_file_is_read_as_systemd_does(starter, tmp_path):
    file = tmp_path / "env"
    file.write_text(ENVIRONMENT)
    script = "import os; print([os.environ[x] for x in ('PLAIN', 'EMPTY', 'QUOTED', 'SINGLE')])"
    found = starter("start", *ME, "--environment", file, "--", sys.executable, "-c", script)
    values = ["one two = three", "", 'it\'s "so" \\ $HOME `x` \\n', 'a "b" \\n $c']
    assert found.stdout == f"{values}\n"


@pytest.mark.parametrize("line", ["no value", "1X=2", 'OPEN="secret', "= secret"])
def test_a_broken_environment_starts_nothing_and_shows_no_value(starter, tmp_path, line):
    file = tmp_path / "env"
    file.write_text(f"GOOD=1\n{line}\n")
    found = starter("start", *ME, "--environment", file, "--", "/bin/echo", "started")
    assert (found.returncode, found.stdout) == (78, "")
    assert f"{file}, line 2" in found.stderr
    assert "secret" not in found.stderr


def test_it_waits_for_a_file(starter, tmp_path):
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.touch()
    process = starter("start", *ME, "--file", there, "--file", missing, "--", "/bin/echo", "go", background=True)
    assert process.stdout.readline() == f"boxwright: waits for {missing}\n"
    assert process.poll() is None
    missing.touch()
    assert process.communicate(timeout=60)[0] == "go\n"


def test_it_waits_for_an_address(starter):
    """RFC 5737's addresses are nobody's."""
    for own in ("127.0.0.1", "::1") if Path("/proc/net/if_inet6").exists() else ("127.0.0.1",):
        assert starter("start", *ME, "--address", own, "--", "/bin/echo", "go").stdout == "go\n"
    process = starter("start", *ME, "--address", "192.0.2.1", "--", "/bin/echo", "go", background=True)
    assert process.stdout.readline() == "boxwright: waits for the address 192.0.2.1\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM, "launchd could not end it"


@as_root
def test_it_makes_the_folders_of_the_service(starter, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("root's")
    folder = tmp_path / "state" / "x"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    (folder / "link").symlink_to(outside)
    more = tmp_path / "more" / "y"
    user = ("--name", "x", "--user", "nobody", "--group", "nogroup")
    assert starter("start", *user, "--folder", folder, "--folder", more, "--", "/bin/true", umask=0o077).returncode == 0
    assert stat.S_IMODE(more.parent.stat().st_mode) == 0o755, "nobody else could have a folder there"
    for path in (folder, more):
        found = path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o700)
    assert (folder / "file").stat().st_uid == 65534
    assert outside.stat().st_uid == 0, "a link of the service's was followed"
    more.rmdir()
    more.symlink_to(tmp_path)
    assert starter("start", *user, "--folder", more, "--", "/bin/true").returncode == 78
    assert tmp_path.stat().st_uid == 0


@as_root
def test_a_call_is_made_as_the_service(starter, tmp_path):
    file = tmp_path / "env"
    file.write_text("SECRET=x\n")
    file.chmod(0o600)
    user = ("--name", "x", "--user", "nobody", "--group", "nogroup", "--environment", file)
    found = starter(
        "call", *user, "--main-pid", "77", "--", "/bin/sh", "-c", 'echo "$(id -un) $SECRET $MAINPID"; exit 3'
    )
    assert (found.stdout, found.returncode) == ("nobody x 77\n", 3)


def test_a_call_that_takes_too_long_ends_with_all_it_began(starter):
    began = time.monotonic()
    found = starter("call", *ME, "--seconds", "1", "--", "/bin/sh", "-c", "sleep 50 & echo $!; sleep 50")
    assert found.returncode == 124
    assert "timed out after 1 s" in found.stderr
    assert time.monotonic() - began < 40
    child = Path(f"/proc/{found.stdout.strip()}/stat")

    def ended() -> bool:
        try:
            return child.read_text().split(") ")[1].startswith("Z")
        except (FileNotFoundError, ProcessLookupError):
            return True

    # It was killed; on a busy machine it takes a moment until it has heard.
    deadline = time.monotonic() + 20
    while not ended():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_logs_are_shortened_in_place(starter, tmp_path):
    """As launchd has them: open, and appended to."""
    (tmp_path / "logs" / "x").mkdir(parents=True)
    (tmp_path / "logs" / "y").mkdir()
    log, small = tmp_path / "logs/x/x.log", tmp_path / "logs/y/y.log"
    small.write_text("short")
    with log.open("a") as program:
        for number in range(4):
            program.write(f"{number}" * 100)
            program.flush()
            assert starter("rotate", 50, 3, tmp_path / "logs").returncode == 0
            assert log.stat().st_size == 0
        program.write("more")
    assert log.read_text() == "more"
    assert {path.name: path.read_text()[:1] for path in (tmp_path / "logs/x").iterdir()} == {
        "x.log": "m",
        "x.log.0": "3",
        "x.log.1": "2",
        "x.log.2": "1",
    }
    assert small.read_text() == "short"
