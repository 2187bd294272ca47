"""What launchd prints is read as it is meant, what is to be done follows, and the commands do just that.

The texts are those that macOS 13 to 27 printed (`print`, `print-disabled`) and its errors, with their exit statuses;
the program `launchctl` that says them is made up by each test. A whole Mac is in test_on_launchd.py.
"""

import hashlib
import os
import subprocess
from dataclasses import replace

import pytest
from harness import asked_of, run
from pyinfra.api.exceptions import FactProcessError, OperationValueError

from boxwright import launchd
from boxwright.facts.launchd import LOOK, ForeignJob, ForeignJobs, Job, JobState, SignedIn, Task, Traces
from boxwright.facts.services import Record
from boxwright.launchd import STARTER_PATH, identity, plist, plist_path
from boxwright.operations import services
from boxwright.operations.launchd import needed, stale
from boxwright.services import PackagedService, Service, http_probe

RUNNING = """\
system/com.example.job = {
	active count = 1
	path = /Library/LaunchDaemons/com.example.job.plist
	type = LaunchDaemon
	state = running

	program = /usr/local/bin/job
	arguments = {
		/usr/local/bin/job
		--flag
a line of an argument
}
	pid = 9
		state = strange
	}

	stdout path = /var/log/job.log
	environment = {
		XPC_SERVICE_NAME => com.example.job
		SECRET => hush
	}
	default environment = {
		PATH => /usr/bin:/bin:/usr/sbin:/sbin
	}

	domain = system
	username = _job
	group = _job
	minimum runtime = 10
	exit timeout = 5
	runs = 1
	pid = 54109
	immediate reason = speculative
	forks = 0
	execs = 1
	last exit code = (never exited)

	resource coalition = {
		ID = 777
		type = resource
		state = active
		active count = 1
	}

	spawn type = daemon (3)
	job state = running
	properties = keepalive | runatload | inferred program
}
""".replace(
    # In one argument, the text of another job could stand: what looks like its end is where it ends.
    "}\n\tpid = 9\n\t\tstate = strange\n",
    "}\npid = 9\n\t\tstate = strange\n",
)
CRASHING = """\
system/com.example.job = {
	active count = 0
	path = /Library/LaunchDaemons/com.example.job.plist
	state = spawn scheduled

	environment = {
		SECRET => hush
	}
	runs = 5282
	last exit code = 78: EX_CONFIG

	job state = exited
	properties =@
}
""".replace("@", " ")
KILLED = CRASHING.replace("last exit code = 78: EX_CONFIG", "last exit reason = OS_REASON_CODESIGNING")
LOADED = CRASHING.replace("spawn scheduled", "not running").replace("78: EX_CONFIG", "(never exited)")
LOADED = LOADED.replace("runs = 5282", "runs = 0")

DISABLED = '\n\tdisabled services = {\n\t\t"com.apple.ftpd" => disabled\n\t\t"com.example.job" => %s\n\t}\n'

NOT_FOUND = 'Could not find service "com.example.job" in domain for system'


class Mac:
    """This machine with a `launchctl` that says what it is told to."""

    def __init__(self, folder):
        self.folder = folder
        tool = folder / "launchctl"
        tool.write_text(
            f'#!/bin/sh\necho "$@" >>{folder}/asked\n'
            f'file={folder}/"$1-$(printf %s "$2" | tr / _)"\n[ -e "$file" ] || file={folder}/"$1"\n'
            f'[ -e "$file" ] || {{ echo "no answer to $*" >&2; exit 99; }}\n'
            'read -r code <"$file"\nif [ "$code" = 0 ]; then tail -n +2 "$file"; else tail -n +2 "$file" >&2; fi\n'
            'exit "$code"\n'
        )
        tool.chmod(0o755)
        self.says("print", 113, NOT_FOUND)
        self.says("print-disabled", 0, DISABLED % "enabled")

    def says(self, verb, code, text=""):
        (self.folder / verb).write_text(f"{code}\n{text}\n")

    def sh(self, text, *arguments):
        environment = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}"}
        command = ["sh", "-c", text, "boxwright", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)

    def fact(self, fact, **arguments):
        asked = asked_of(fact.command(**arguments), None)
        found = self.sh(asked.text, *asked.arguments)
        assert "hush" not in found.stdout + found.stderr, "the environment was printed"
        if found.returncode:
            return found.stderr.strip()
        return fact.process(found.stdout.splitlines())

    def job(self):
        return self.fact(Job(), service="x", started_with=("/a",), reloads=())


@pytest.fixture
def mac(tmp_path):
    return Mac(tmp_path)


def test_a_running_job(mac):
    mac.says("print", 0, RUNNING)
    found = mac.job()
    assert (found.here, found.disabled, found.state, found.pid) == (True, False, "running", 54109)
    assert (found.ended, found.starting, found.ready, found.started) == ("(never exited)", False, False, None)


@pytest.mark.parametrize(
    ("said", "state", "ended"),
    [
        (CRASHING, "spawn scheduled", "78: EX_CONFIG"),
        (KILLED, "spawn scheduled", "OS_REASON_CODESIGNING"),
        (LOADED, "not running", "(never exited)"),
    ],
)
def test_a_job_without_a_process(mac, said, state, ended):
    mac.says("print", 0, said)
    found = mac.job()
    assert (found.here, found.state, found.pid, found.ended) == (True, state, 0, ended)
    assert not found.running


@pytest.mark.parametrize("said", [NOT_FOUND, f"Bad request.\n{NOT_FOUND}", "Could not find it"])
def test_no_job_is_told_by_the_status_alone(mac, said):
    mac.says("print", 113, said)
    assert mac.job() == JobState(here=False, disabled=False)


@pytest.mark.parametrize(
    ("code", "said"), [(1, "Operation not permitted"), (5, "Input/output error"), (112, "Could not find domain for X")]
)
def test_what_launchctl_does_not_know_is_not_taken_for_absent(mac, code, said):
    mac.says("print", code, said)
    assert mac.job() == f"launchctl cannot say whether system/boxwright.x is loaded: {said}"


@pytest.mark.parametrize(
    ("word", "is_disabled"), [("disabled", True), ("true", True), ("enabled", False), ("false", False)]
)
def test_disabled(mac, word, is_disabled):
    """The second form is that of macOS 12 and before."""
    mac.says("print-disabled", 0, DISABLED.replace("com.example.job", "boxwright.x") % word)
    assert mac.job().disabled is is_disabled
    mac.says("print-disabled", 0, DISABLED.replace("com.example.job", "boxwright.xy") % "disabled")
    assert not mac.job().disabled


SESSIONS = "Could not find domain for user gui: 502"


@pytest.fixture
def ada(mac):
    """The number of a person on that Mac, who is signed in there."""
    tool = mac.folder / "id"
    tool.write_text('#!/bin/sh\ncase $* in "-u ada") echo 502 ;; *) exit 1 ;; esac\n')
    tool.chmod(0o755)
    mac.says("print-gui_502", 0, "gui/502 = {\n\ttype = login\n}")


def agent_job(mac):
    return mac.fact(Job(), service="x", started_with=("/a",), reloads=(), session="ada")


def test_an_agent_is_asked_about_in_its_session(mac, ada):
    mac.says("print-gui_502_boxwright.x", 0, RUNNING)
    found = agent_job(mac)
    assert (found.here, found.away, found.pid) == (True, False, 54109)
    mac.says("print-gui_502_boxwright.x", 113, f"Bad request.\n{NOT_FOUND}")
    assert agent_job(mac) == JobState(here=False, disabled=False)
    assert mac.fact(SignedIn(), user="ada") is True


@pytest.mark.parametrize(
    ("code", "said"),
    # The last where the person has come by SSH alone.
    [(112, SESSIONS), (113, f"Bad request.\n{SESSIONS}"), (125, "Domain does not support specified action")],
)
def test_an_agent_of_who_is_not_signed_in(mac, ada, code, said):
    mac.says("print-gui_502", code, said)
    mac.says("print-gui_502_boxwright.x", code, said)
    found = agent_job(mac)
    assert (found.here, found.away) == (False, True)
    assert mac.fact(SignedIn(), user="ada") is False


def test_what_is_not_known_of_a_session_is_not_taken_for_absent(mac, ada):
    mac.says("print-gui_502", 1, "Could not print domain: 1: Operation not permitted")
    assert agent_job(mac) == "launchctl cannot say whether ada is signed in"
    mac.says("print-gui_502", 0)
    mac.says("print-gui_502_boxwright.x", 5, "Input/output error")
    assert "cannot say whether gui/502/boxwright.x is loaded" in agent_job(mac)
    found = mac.fact(Job(), service="x", started_with=("/a",), reloads=(), session="bob")
    assert found == "there is no user bob"


def test_an_agent_that_is_a_daemon_too(mac, ada):
    mac.says("print-gui_502_boxwright.x", 0, RUNNING)
    mac.says("print-system_boxwright.x", 0, RUNNING)
    assert agent_job(mac).elsewhere == ("system/boxwright.x",)


def test_a_process_is_named_as_the_starter_names_it(mac, tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    try:
        mac.says("print", 0, RUNNING.replace("54109", str(process.pid)))
        found = mac.job()
        program = tmp_path / "start"
        program.write_text(launchd.STARTER.replace('"$$"', str(process.pid)))
        text = program.read_text().replace("my $what = shift // '';", "print invocation(); exit;\nmy $what = '';")
        said = subprocess.run(["perl", "-e", text], capture_output=True, text=True, check=True).stdout
        assert found.invocation == said
        assert found.invocation.startswith(f"{process.pid}@")
    finally:
        process.kill()
        process.wait()


def test_what_a_job_is_must_be_said():
    with pytest.raises(FactProcessError, match="did not say: here"):
        Job().process(["disabled=yes"])
    with pytest.raises(FactProcessError, match="not what is known"):
        Job().process(["nonsense"])


SERVICE = Service(
    name="x",
    description="x",
    command=("/bin/x",),
    user="_x",
    restart_files=("/a",),
    reload_files=("/b",),
    reload_command=("/bin/kill", "-HUP", "$MAINPID"),
    probe=http_probe("http://127.0.0.1:1/"),
)
GOOD = JobState(
    here=True,
    disabled=False,
    state="running",
    pid=7,
    invocation="7@now",
    ready=True,
    started=Record("7@now", identity(SERVICE), ("0  /plist", "1  /a")),
    loaded=Record("7@now", identity(SERVICE), ("2  /b",)),
    started_now=("0  /plist", "1  /a"),
    loaded_now=("2  /b",),
)


@pytest.mark.parametrize(
    ("change", "verbs"),
    [
        ({}, ()),
        ({"disabled": True}, ("enable",)),
        ({"here": False, "pid": 0}, ("define",)),
        ({"here": False, "pid": 0, "disabled": True}, ("define",)),
        ({"pid": 0, "state": "spawn scheduled"}, ("define",)),
        ({"pid": 0, "state": "not running"}, ("define",)),
        ({"state": "exited"}, ("define",)),
        ({"state": "xpcproxy", "starting": True}, ("await",)),
        ({"started": None}, ("define",)),
        ({"started": replace(GOOD.started, invocation="6@then")}, ("define",)),
        ({"started": replace(GOOD.started, identity="other")}, ("define",)),
        ({"started_now": ("9  /plist", "1  /a")}, ("define",)),
        ({"started_now": ("0  /plist", "9  /a")}, ("restart",)),
        ({"started_now": ("0  /plist", "9  /a"), "disabled": True}, ("enable", "restart")),
        ({"started_now": ("0  /plist", "9  /a"), "loaded_now": ("9  /b",)}, ("restart",)),
        ({"loaded_now": ("9  /b",)}, ("reload",)),
        ({"loaded": None}, ("reload",)),
        ({"loaded": replace(GOOD.loaded, invocation="6@then")}, ("reload",)),
        ({"ready": False}, ("await",)),
        ({"ready": False, "loaded_now": ("9  /b",)}, ("await", "reload")),
        ({"starting": True}, ("await",)),
        ({"starting": True, "started": None}, ("define",)),
        ({"elsewhere": ("system/boxwright.x",)}, ("leave", "define")),
        ({"left": ("/Library/LaunchDaemons/boxwright.x.plist",)}, ("leave", "define")),
        ({"here": False, "pid": 0, "away": True}, ()),
        ({"here": False, "pid": 0, "away": True, "elsewhere": ("system/boxwright.x",)}, ("leave",)),
    ],
)
def test_what_a_service_needs(change, verbs):
    assert needed(SERVICE, replace(GOOD, **change)) == verbs


def test_a_service_without_a_probe_is_ready_when_it_runs():
    plain = replace(SERVICE, probe=())
    assert needed(plain, replace(GOOD, ready=False)) == ()
    assert stale(plain, GOOD) == ""


# With a host that is made up: what is asked, and that nothing is done where nothing is to be done.


class FakeMac:
    """Answers the facts of launchd's operations; remembers every other command."""

    def __init__(self, job=(), task=("here=yes", "current=yes"), files=(), traces=("traces=",), jobs=("jobs=",)):
        self.job, self.task, self.files, self.traces, self.jobs = job, task, files, traces, jobs
        self.done = []

    def __call__(self, asked):
        if "describe " in asked.text:
            return True, [*self.files, "perl=yes", "folders=yes", *self.task]
        for mark, answer in (
            ("started_now=", self.job),
            ('task "$@"', self.task),
            ("echo other=", self.traces),
            ("other=$path", self.traces),
            ("echo jobs=", self.jobs),
        ):
            if mark in asked.text:
                return True, list(answer)
        self.done.append(asked)
        return True, []


def good_file(path, text, mode):
    return f"regular file|root|wheel|{mode}|{len(text)}|{hashlib.sha256(text.encode()).hexdigest()}"


FILES = (
    good_file(STARTER_PATH, launchd.STARTER, "755"),
    good_file("", plist(launchd.ROTATION), "644"),
    good_file("", plist(SERVICE), "644"),
)


def job_lines(found):
    lines = ["here=yes", f"state={found.state}", f"pid={found.pid}", f"invocation={found.invocation}", "ready=yes"]
    for name, record in (("started", found.started), ("loaded", found.loaded)):
        lines += [f"{name}={record.invocation} {record.identity}", *(f"{name}={line}" for line in record.files)]
    lines += [f"started_now={line}" for line in found.started_now]
    return lines + [f"loaded_now={line}" for line in found.loaded_now]


def test_nothing_to_do_is_no_command():
    mac = FakeMac(job=job_lines(GOOD), files=FILES)

    def deploy():
        services.unit(SERVICE)
        services.running(SERVICE)
        services.reloaded(SERVICE)
        services.scheduled(replace(SERVICE, schedule="daily"))
        services.unit_absent(SERVICE)
        services.stopped("com.ollama.ollama")

    result = run(deploy, mac, system="darwin")
    assert result.ok, result.printed
    assert result.changed == [False] * 6
    assert mac.done == []


def test_a_definition_is_written_for_root_alone_to_change():
    mac = FakeMac(files=(FILES[0], FILES[1], FILES[2].replace("|644|", "|664|")))
    assert run(lambda: services.unit(SERVICE), mac, system="darwin").changed == [True]
    (written,) = [asked for asked in mac.done if asked.stdin]
    assert written.stdin.rstrip("\n") == plist(SERVICE).rstrip("\n")
    assert written.arguments[0] == "/Library/LaunchDaemons/boxwright.x.plist"
    assert written.arguments[2:4] == ("root:wheel", "0644")


def test_an_agent_is_defined_for_all_sessions_and_hands_its_user_what_it_writes():
    service = replace(
        SERVICE, user="ada", agent=True, reload_files=(), reload_command=(), environment_file="/etc/x.env"
    )
    own = ("regular file|ada|wheel|600|5|0", "directory|ada|wheel|700|64|")
    files = (FILES[0], FILES[1], good_file("", plist(service), "644"))
    mac = FakeMac(files=(*files, *own))
    assert run(lambda: services.unit(service), mac, system="darwin").changed == [False]
    for wrong in (
        ("absent", own[1]),
        ("symbolic link|ada|wheel|777|5|", own[1]),
        (own[0], own[1].replace("700", "755")),
    ):
        mac = FakeMac(files=(*files, *wrong))
        assert run(lambda: services.unit(service), mac, system="darwin").changed == [True]
        (handed,) = mac.done
        assert handed.arguments == ("ada", "/var/log/boxwright/x/x.log", "/var/lib/boxwright/agents/x")
    mac = FakeMac(files=(*files[:2], "absent", *own))
    assert run(lambda: services.unit(service), mac, system="darwin").changed == [True]
    (written,) = [asked for asked in mac.done if asked.stdin]
    assert written.arguments[0] == "/Library/LaunchAgents/boxwright.x.plist"
    assert written.arguments[2:4] == ("root:wheel", "0644")


def test_the_task_for_logs_comes_with_the_first_service():
    mac = FakeMac(files=("absent", "absent", "absent"), task=("here=no",))
    assert run(lambda: services.unit(SERVICE), mac, system="darwin").ok
    assert [asked.arguments[0] for asked in mac.done if asked.stdin] == [
        STARTER_PATH,
        plist_path("logs"),
        plist_path("x"),
    ]
    assert mac.done[-1].arguments[:3] == ("logs", "boxwright.logs", plist_path("logs"))


def test_no_secret_is_in_a_command():
    """The environment file's name is; what a probe asks with a key, too, but as a variable."""
    service = replace(
        SERVICE, environment_file="/etc/x.env", probe=http_probe("http://127.0.0.1:1/", ("/q", "{}"), "KEY")
    )
    mac = FakeMac(job=["here=no"], files=FILES)
    assert run(lambda: services.running(service), mac, system="darwin").changed == [True]
    (job,) = mac.done
    assert "/etc/x.env" in job.arguments[8]
    assert '"$KEY"' in job.arguments[11]


def test_the_unit_of_systemd_stands_for_the_definition_that_is_taken_back():
    mac = FakeMac(job=["here=no"], files=FILES)
    assert run(lambda: services.running(SERVICE, roll_back=(SERVICE.unit_path, "/b")), mac, system="darwin").ok
    (job,) = mac.done
    assert job.arguments[4] == f"{plist_path('x')} /b"
    assert job.arguments[12] == '/bin/kill -HUP "$pid"'


@pytest.mark.parametrize("service", [PackagedService(name="docker"), replace(SERVICE, user="")])
def test_what_a_mac_cannot_run_is_refused(service):
    mac = FakeMac(job=["here=no"], files=FILES)
    with pytest.raises(OperationValueError, match=r"comes with a Linux package|names no user"):
        run(lambda: services.unit(service), mac, dry=True, system="darwin")
    assert mac.done == []


def test_a_foreign_service_is_told_to_stay_away():
    jobs = ["jobs=", "system/homebrew.mxcl.ollama=here", "gui/501/sh.brew.ollama=no,disabled", "user/501/x.y=no"]
    mac = FakeMac(jobs=jobs)
    assert run(lambda: services.stopped("ollama"), mac, system="darwin").changed == [True]
    assert [(asked.text.split("\n")[-1].split()[:2], asked.arguments) for asked in mac.done] == [
        (["launchctl", "disable"], ("system/homebrew.mxcl.ollama",)),
        (["boot_out"], ("system/homebrew.mxcl.ollama",)),
        (["launchctl", "disable"], ("user/501/x.y",)),
    ]


def test_foreign_services_are_asked_for_by_both_names(mac):
    mac.says("print-system_homebrew.mxcl.ollama", 0, RUNNING)
    mac.says("print-disabled", 0, DISABLED.replace("com.example.job", "sh.brew.ollama") % "disabled")
    mac.says("print-system_sh.brew.ollama", 0, LOADED)
    found = mac.fact(ForeignJobs(), labels=("homebrew.mxcl.ollama", "sh.brew.ollama", "com.ollama.ollama"))
    assert found == (
        ForeignJob("system/homebrew.mxcl.ollama", here=True, disabled=False),
        ForeignJob("system/sh.brew.ollama", here=True, disabled=True),
    )


def test_the_shell_of_a_mac_reads_all_scripts(tmp_path):
    """bash as sh, which is what /bin/sh is there, and dash."""
    from boxwright.operations import launchd as operations

    texts = (operations._JOB, operations._SCHEDULE, operations._REMOVE, operations._HAND_OVER, LOOK)
    for number, text in enumerate(texts):
        for shell in (["bash", "--posix"], ["dash"]):
            path = tmp_path / str(number)
            path.write_text(text)
            assert subprocess.run([*shell, "-n", path], capture_output=True, check=False).returncode == 0, shell


def test_traces_of_what_was_never_there(mac):
    found = mac.fact(Traces(), service="x")
    assert (found.paths, found.jobs) == ((), ())


def test_a_task_is_not_there(mac):
    found = mac.fact(Task(), service="x")
    assert (found.here, found.good) == (False, False)
