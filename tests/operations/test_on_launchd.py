"""Services on a Mac: whatever is done to one, the next run puts it right, and only that.

The Mac is a double (tests/doubles/macos): its launchd follows what is known of Apple's, see there.
"""

import json
import plistlib
import time
from dataclasses import replace
from typing import ClassVar

import pytest

from boxwright.launchd import STARTER_PATH, log_path, plist_path
from boxwright.operations import files, services, users
from boxwright.services import Service, http_probe
from tests.doubles.macos import MacDouble

pytestmark = pytest.mark.lab

# A stock Mac has no Python.
PROGRAM = r"""
use strict; use IO::Socket::INET; use POSIX ();
sub content { open my $in, '<', $_[0] or die "$_[0]: $!"; local $/; return <$in> }
my $started = content('/etc/sample/started file');
my $loaded = content('/etc/sample/loaded');
$SIG{HUP} = sub { $loaded = content('/etc/sample/loaded') };
my ($user) = getpwuid $>;
$| = 1;
print "said at the start\n";
select undef, undef, undef, 0.3;  # not ready at once
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8099, Listen => 5, ReuseAddr => 1) or die;
while (1) {
    my $client = $server->accept or next;
    while (<$client>) { last if /^\r?$/ }
    my %answer = (pid => $$, started => $started, loaded => $loaded, env => $ENV{SAMPLE} // '', user => $user,
        token => length($ENV{TOKEN} // ''), home => $ENV{HOME} // '', mark => $ENV{MARK} // '', limit => `ulimit -n;`);
    s/\n/\\n/g for values %answer;
    my $text = '{' . join(', ', map { "\"$_\": \"$answer{$_}\"" } sort keys %answer) . '}';
    print $client "HTTP/1.1 200 OK\r\nContent-Length: ${\ length $text}\r\nConnection: close\r\n\r\n$text";
    close $client;
}
"""
SECRET = "a-token-that-nobody-may-see"

SAMPLE = Service(
    name="sample",
    description="A sample",
    command=("/usr/bin/perl", "/opt/sample program.pl"),
    user="_sample",
    environment_file="/etc/sample/secrets.env",
    restart_files=("/etc/sample/started file",),
    reload_files=("/etc/sample/loaded",),
    reload_command=("/bin/kill", "-HUP", "$MAINPID"),
    probe=http_probe("http://127.0.0.1:8099/"),
    start_timeout=60,
    state_directory="sample",
    runtime_directory="sample",
    settings={"LimitNOFILE": "4321"},
)


@pytest.fixture(scope="module")
def mac():
    with MacDouble(throttle=2, full_disk_access=True) as mac:
        mac.put("/opt/sample program.pl", PROGRAM.encode())
        yield mac


class Sample:
    """The sample service on the Mac, applied with `apply`."""

    NOTHING: ClassVar = {"started": False, "loaded": False, "secret": False, "unit": False, "running": False}

    def __init__(self, mac):
        self.mac = mac
        self.service = SAMPLE
        self.owner = "root"
        self.started, self.loaded, self.secret = "one\n", "one\n", SECRET
        self.running = {}

    def deploy(self):
        users.system_user("_sample")
        files.directory("/etc/sample")
        files.content("/etc/sample/started file", self.started)
        files.content("/etc/sample/loaded", self.loaded)
        text = f'TOKEN="{self.secret}"\n'
        files.content("/etc/sample/secrets.env", text, user=self.owner, mode="0600", secret=True)
        services.unit(self.service)
        services.running(self.service, **self.running)

    def run(self, deploy=None, **options):
        return self.mac.run(deploy or self.deploy, system="darwin", **options)

    def apply(self, **options):
        """What changed, by step; fails the test when a step fails."""
        result = self.run(**options)
        assert result.ok, result.printed
        return dict(zip(self.NOTHING, result.changed[2:], strict=True))

    def changed(self):
        """The steps that changed something; and that the next run changes nothing."""
        changed = {step for step, did in self.apply().items() if did}
        assert self.apply() == self.NOTHING
        return changed

    def fails(self):
        """What a failing run prints."""
        result = self.run()
        assert not result.ok
        return result.printed

    @property
    def says(self):
        """What the process answers."""
        text = self.mac.sh("curl --silent http://127.0.0.1:8099/")
        return json.loads(text)

    @property
    def pid(self):
        """Its number, by launchd."""
        return self.mac.sh("launchctl print system/boxwright.sample | awk '$1 == \"pid\" { print $3 }'").strip()

    def until(self, condition, seconds=60):
        """Waits for what the Mac does by itself."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.mac.sh("launchctl print system/boxwright.sample")
            time.sleep(0.2)


@pytest.fixture
def sample(mac):
    sample = Sample(mac)
    sample.apply()
    before = sample.says["pid"]
    sample.restarted = lambda: sample.says["pid"] != before
    return sample


def absent(mac, service=SAMPLE):
    result = mac.run(lambda: services.unit_absent(service), system="darwin")
    assert result.ok, result.printed
    return result.changed


def test_from_nothing_to_running_and_gone(mac):
    absent(mac)
    sample = Sample(mac)
    assert sample.apply(dry=True)["running"]
    assert "Could not find service" in mac.sh("launchctl print system/boxwright.sample")
    assert sample.changed() >= {"unit", "running"}
    says = sample.says
    assert (says["started"], says["user"], says["limit"].strip()) == ("one\n", "_sample", "4321")
    assert says["pid"] == sample.pid, "launchd watches something else"
    assert mac.sh("stat -f '%Lp %Su %Sg' /var/run/boxwright /var/run/boxwright/sample.*").splitlines() == [
        "700 root wheel",
        *["600 root wheel"] * 3,
    ]
    assert (
        mac.sh("stat -f '%Lp %Su %Sg' /var/lib/boxwright/sample /var/run/sample").splitlines()
        == ["700 _sample _sample"] * 2
    )
    assert mac.sh(f"stat -f '%Lp %Su %Sg' {plist_path('sample')}") == "644 root wheel\n"
    assert "said at the start" in mac.sh(f"cat {log_path('sample')}")
    assert absent(mac) == [True]
    assert absent(mac) == [False]
    assert "Could not find service" in mac.sh("launchctl print system/boxwright.sample")
    assert "Could not find service" in mac.sh("launchctl print system/boxwright.logs")
    left = mac.sh(
        "ls -d /Library/LaunchDaemons/boxwright* /var/run/boxwright /var/log/boxwright /opt/boxwright/launchd"
    )
    assert left.count("No such file") == 4, left


def test_a_secret_is_nowhere(sample):
    assert sample.says["token"] == str(len(SECRET))
    seen = sample.mac.sh("ps -axww -o command=; launchctl print system/boxwright.sample; cat /Library/LaunchDaemons/*")
    assert "boxwright.sample" in seen
    assert SECRET not in seen
    assert sample.mac.sh(f"grep -rl {SECRET} /var/log /var/run /private/var/lib /Library /opt") == ""
    sample.secret = SECRET[::-1]
    assert sample.changed() == {"secret", "running"}
    assert sample.restarted()


def test_a_file_read_at_the_start_restarts(sample):
    sample.started = "two\n"
    assert sample.changed() == {"started", "running"}
    assert sample.says["started"] == "two\n"


def test_a_file_read_again_reloads(sample):
    sample.loaded = "two\n"
    assert sample.changed() == {"loaded", "running"}
    assert sample.says["loaded"] == "two\n"
    assert not sample.restarted()


def test_reloaded(sample):
    sample.loaded = "by itself\n"

    def deploy():
        files.content("/etc/sample/loaded", sample.loaded)
        services.reloaded(SAMPLE)

    assert sample.run(deploy).changed == [True, True]
    assert sample.says["loaded"] == "by itself\n"
    assert sample.run(deploy).changed == [False, False]
    sample.mac.sh("launchctl bootout system/boxwright.sample")
    result = sample.run(deploy)
    assert not result.ok
    assert "sample does not run on this box" in result.printed


def test_a_run_killed_before_the_restart_is_completed(sample):
    sample.started = sample.loaded = "three\n"
    sample.run(lambda: files.content("/etc/sample/started file", sample.started))
    assert sample.changed() == {"loaded", "running"}
    assert (sample.says["started"], sample.says["loaded"]) == ("three\n", "three\n")


def test_an_edited_file_that_nobody_read_needs_no_restart(sample):
    sample.mac.sh("echo edited >'/etc/sample/started file'")
    assert sample.changed() == {"started"}
    assert not sample.restarted()


def test_an_edited_file_that_was_read_needs_one(sample):
    sample.mac.sh("echo edited >'/etc/sample/started file'; launchctl kickstart -k system/boxwright.sample")
    sample.until(lambda: "edited" in sample.mac.sh("curl --silent http://127.0.0.1:8099/"))
    assert sample.changed() == {"started", "running"}
    assert sample.says["started"] == sample.started


@pytest.mark.parametrize(
    "harm",
    [
        "launchctl bootout system/boxwright.sample",
        "launchctl bootout system/boxwright.sample; launchctl disable system/boxwright.sample",
        "launchctl bootout system/boxwright.sample; rm -rf /var/run/boxwright",
        "launchctl disable system/boxwright.sample",
    ],
)
def test_booted_out_and_disabled(sample, harm):
    sample.mac.sh(harm)
    # Without its note the task for logs is loaded anew, too.
    assert sample.changed() - {"unit"} == {"running"}
    assert '"boxwright.sample" => enabled' in sample.mac.sh("launchctl print-disabled system")
    assert sample.says["pid"] == sample.pid


def test_a_removed_definition(sample):
    sample.mac.sh(f"launchctl bootout system/boxwright.sample; rm {plist_path('sample')}")
    assert sample.changed() == {"unit", "running"}


def test_killed_it_is_started_again_by_launchd(sample):
    before = sample.pid
    sample.mac.sh(f"kill -KILL {before}")
    sample.until(lambda: sample.pid not in ("", before))
    sample.until(lambda: "pid" in sample.mac.sh("curl --silent http://127.0.0.1:8099/"))
    assert sample.changed() <= {"running"}, "it was started by launchd: at most its readiness is to be seen"
    assert sample.says["pid"] == sample.pid


def test_an_edited_definition(sample):
    """Edited and not loaded: the text is put back, the process left alone."""
    edit = f"sed -i '' s/4321/1234/ {plist_path('sample')}"
    sample.mac.sh(edit)
    assert sample.changed() == {"unit"}
    assert not sample.restarted()


def test_an_edited_definition_that_was_loaded(sample):
    sample.mac.sh(f"sed -i '' s/4321/1234/ {plist_path('sample')}; launchctl bootout system/boxwright.sample")
    sample.until(lambda: "Could not find" in sample.mac.sh("launchctl print system/boxwright.sample"))
    sample.mac.sh(f"launchctl bootstrap system {plist_path('sample')}")
    sample.until(lambda: "pid" in sample.mac.sh("curl --silent http://127.0.0.1:8099/"))
    assert sample.says["limit"].strip() == "1234"
    assert sample.changed() == {"unit", "running"}
    assert sample.says["limit"].strip() == "4321"


def test_a_wrong_owner_of_the_definition(sample):
    """launchd would refuse it at the next boot."""
    sample.mac.sh(f"chmod 666 {plist_path('sample')}")
    assert sample.changed() == {"unit"}
    assert sample.mac.sh(f"stat -f %Lp {plist_path('sample')}") == "644\n"
    assert not sample.restarted()


def test_a_new_definition_and_a_crash_before_launchd_read_it(sample):
    """The process is started again by launchd, from the definition it had: the new one is not taken for running."""
    sample.service = replace(SAMPLE, environment={"MARK": "new"})
    sample.run(lambda: services.unit(sample.service))
    before = sample.pid
    sample.mac.sh(f"kill -KILL {before}")
    sample.until(lambda: sample.pid not in ("", before))
    sample.until(lambda: "pid" in sample.mac.sh("curl --silent http://127.0.0.1:8099/"))
    assert sample.says["mark"] == ""
    assert sample.changed() == {"running"}
    assert sample.says["mark"] == "new"


def test_a_reboot(sample):
    sample.mac.reboot()
    sample.apply()
    assert sample.apply() == sample.NOTHING
    assert sample.says["started"] == "one\n"
    sample.mac.power_cut()
    sample.apply()
    assert sample.apply() == sample.NOTHING


def test_a_start_that_fails_says_why(sample):
    sample.service = replace(SAMPLE, command=("/usr/bin/perl", "-e", "die 'no such model'"))
    said = sample.fails()
    assert "no such model" in said
    assert "boxwright.sample does not stay up: ended with 2" in said
    assert "no such model" in sample.fails(), "the failed service was taken for a good one"
    sample.service = SAMPLE
    assert sample.changed() == {"unit", "running"}


def test_a_missing_program_is_explained(sample):
    sample.service = replace(SAMPLE, command=("/opt/no such program",))
    said = sample.fails()
    assert "cannot start /opt/no such program: No such file or directory" in said
    assert "78 EX_CONFIG: it could not even be started" in said


def test_a_missing_account_is_explained(sample):
    sample.service = replace(SAMPLE, user="_nobody_here")
    said = sample.fails()
    assert "there is no user _nobody_here" in said
    assert "78 EX_CONFIG" in said


def test_a_service_that_never_gets_ready_fails_in_time(sample):
    sample.service = replace(SAMPLE, command=("/usr/bin/perl", "-e", "sleep 99"), start_timeout=3)
    assert "timed out after" in sample.fails()
    sample.service = SAMPLE
    assert sample.changed() == {"unit", "running"}


def test_a_reload_that_cannot_work_becomes_a_restart(sample):
    """As when a gateway's edited configuration has closed the socket by which it is told to reload."""
    sample.service = replace(SAMPLE, reload_command=("/bin/sh", "-c", "echo cannot reach it; exit 1"))
    sample.loaded = "new\n"
    assert sample.changed() == {"loaded", "running"}
    assert sample.says["loaded"] == "new\n"
    assert sample.restarted()


@pytest.fixture
def guarded(sample):
    """The sample, asked whether it answers after each change; what it loads is taken back when it does not."""
    sample.running = {
        "answers": ("/bin/sh", "-c", "curl --silent --fail http://127.0.0.1:8099/ | grep -v broken"),
        "roll_back": (SAMPLE.unit_path, "/etc/sample/loaded"),
    }
    sample.loaded = "good\n"
    assert "running" in sample.changed()
    before = sample.says["pid"]
    sample.restarted = lambda: sample.says["pid"] != before
    yield sample
    sample.mac.sh("rm -f /etc/sample/loaded.*")


REFUSES = ("/bin/sh", "-c", "if grep -q bad /etc/sample/loaded; then echo no good; exit 1; fi; kill -HUP $MAINPID")


@pytest.mark.parametrize(("loaded", "said"), [("bad\n", "no good"), ("broken\n", "runs, but does not answer")])
def test_what_cannot_be_reloaded_is_taken_back_and_nothing_is_cut(guarded, loaded, said):
    guarded.service = replace(SAMPLE, reload_command=REFUSES)
    guarded.apply()
    before = guarded.says["pid"]
    guarded.loaded = loaded
    printed = guarded.fails()
    assert said in printed
    assert "goes on with its last good configuration; the new one was taken back" in printed
    assert guarded.mac.sh("cat /etc/sample/loaded /etc/sample/loaded.bad") == f"good\n{loaded}"
    assert (guarded.says["pid"], guarded.says["loaded"]) == (before, "good\n")
    guarded.loaded = "good\n"
    assert guarded.apply() == Sample.NOTHING


def test_a_definition_it_cannot_start_with_is_taken_back(guarded):
    """As an argument that a new version no longer knows. launchd must not take what is kept for a job."""
    guarded.service = replace(SAMPLE, command=("/usr/bin/false",))
    assert "runs again with its last good configuration; the new one was taken back" in guarded.fails()
    assert guarded.says["loaded"] == "good\n"
    assert "/usr/bin/false" not in guarded.mac.sh(f"cat {plist_path('sample')}")
    assert guarded.mac.sh("ls /Library/LaunchDaemons").split() == ["boxwright.logs.plist", "boxwright.sample.plist"]
    guarded.service = SAMPLE
    assert guarded.apply() == Sample.NOTHING
    assert absent(guarded.mac) == [True]
    assert guarded.mac.sh("find /private/var /private/etc /Library -name '*boxwright.sample*'") == ""


def test_it_waits_for_a_file(sample):
    awaited = "/var/db/a device"
    sample.service = replace(SAMPLE, wait_for_files=("/etc/hosts", awaited), start_timeout=3)
    said = sample.fails()
    assert "timed out" in said
    assert f"waits for {awaited}" in said
    sample.mac.sh(f"touch '{awaited}'")
    assert sample.changed() <= {"running"}
    assert sample.says["user"] == "_sample"
    sample.mac.sh(f"rm '{awaited}'")


def test_what_stays_behind_of_a_quick_bootout_is_started(sample):
    """launchd may leave a job that was loaded soon after a bootout without a process."""
    sample.mac.set(sluggish=True)
    try:
        sample.service = replace(SAMPLE, environment={"MARK": "slow"})
        assert sample.changed() == {"unit", "running"}
        assert sample.says["mark"] == "slow"
    finally:
        sample.mac.set(sluggish=False)


def test_a_label_that_lingers(sample):
    sample.mac.set(linger=4)
    try:
        sample.service = replace(SAMPLE, environment={"MARK": "late"})
        assert sample.changed() == {"unit", "running"}
        sample.mac.sh("launchctl bootout system/boxwright.sample")
        assert sample.changed() == {"running"}
    finally:
        sample.mac.set(linger=1)


def test_logs_are_bounded(sample):
    """By the task that goes with every service: the process goes on writing to the same file."""
    log = log_path("sample")
    sample.mac.sh(f"perl -e 'print \"x\" x 11_000_000' >>{log}")
    sample.mac.sh("launchctl kickstart system/boxwright.logs")
    sample.until(lambda: int(sample.mac.sh(f"stat -f %z {log}")) < 1_000_000)
    sample.mac.sh("launchctl kickstart -k system/boxwright.sample")
    sample.until(lambda: "said at the start" in sample.mac.sh(f"cat {log}"))
    assert int(sample.mac.sh(f"stat -f %z {log}")) < 1_000_000
    assert int(sample.mac.sh(f"stat -f %z {log}.0")) > 11_000_000
    sample.mac.sh("launchctl bootout system/boxwright.logs; launchctl disable system/boxwright.logs")
    assert "unit" in sample.changed()
    assert "state = " in sample.mac.sh("launchctl print system/boxwright.logs")


def test_a_scheduled_task(mac):
    task = Service(
        name="sample-task",
        description="Sample",
        command=("/bin/sh", "-c", "echo done >>/var/lib/boxwright/sample-task/log"),
        user="root",
        schedule="Sun 04:00",
        state_directory="sample-task",
    )

    def deploy(task=task):
        services.unit(task)
        services.scheduled(task)

    def run(deploy, **options):
        result = mac.run(deploy, system="darwin", **options)
        assert result.ok, result.printed
        return result.changed

    loaded = "launchctl print system/boxwright.sample-task"
    try:
        assert run(deploy, dry=True) == [True, True]
        assert run(deploy) == [True, True]
        assert run(deploy) == [False, False]
        assert "No such file" in mac.sh("cat /var/lib/boxwright/sample-task/log"), "it was not to run now"
        mac.sh("launchctl kickstart system/boxwright.sample-task")
        deadline = time.monotonic() + 60
        while mac.sh("cat /var/lib/boxwright/sample-task/log 2>/dev/null") != "done\n":
            assert time.monotonic() < deadline, mac.sh(loaded)
            time.sleep(0.2)
        assert run(deploy) == [False, False]
        for harm in ("bootout", "disable"):
            mac.sh(f"launchctl {harm} system/boxwright.sample-task")
            assert run(deploy) == [False, True], harm
            assert run(deploy) == [False, False], harm
            assert "state = " in mac.sh(loaded), harm
        daily = replace(task, schedule="05:30")
        assert run(lambda: deploy(daily)) == [True, True]
        assert run(lambda: deploy(daily)) == [False, False]
        text = mac.sh(f"plutil -convert xml1 -o - {plist_path('sample-task')}")
        assert plistlib.loads(text.encode())["StartCalendarInterval"] == [{"Hour": 5, "Minute": 30}]
        mac.reboot()
        assert run(lambda: deploy(daily)) == [False, False]
        assert "state = not running" in mac.sh(loaded)
    finally:
        assert absent(mac, task) == [True]
    assert absent(mac, task) == [False]


def test_stopped(mac):
    foreign = {"Label": "homebrew.mxcl.ollama", "ProgramArguments": ["/bin/sleep", "1000"], "KeepAlive": True}
    mac.put("/Library/LaunchDaemons/homebrew.mxcl.ollama.plist", plistlib.dumps(foreign))
    mac.sh("launchctl bootstrap system /Library/LaunchDaemons/homebrew.mxcl.ollama.plist")
    assert "state = running" in mac.sh("launchctl print system/homebrew.mxcl.ollama")
    assert mac.run(lambda: services.stopped("ollama"), system="darwin").changed == [True]
    assert mac.run(lambda: services.stopped("ollama"), system="darwin").changed == [False]
    assert "Could not find service" in mac.sh("launchctl print system/homebrew.mxcl.ollama")
    mac.reboot()
    assert "Could not find service" in mac.sh("launchctl print system/homebrew.mxcl.ollama")
    assert mac.run(lambda: services.stopped("com.example.nobody"), system="darwin").changed == [False]
    mac.sh("rm /Library/LaunchDaemons/homebrew.mxcl.ollama.plist")


def test_the_starter_is_root_s(sample):
    assert sample.mac.sh(f"stat -f '%Lp %Su %Sg' {STARTER_PATH}") == "755 root wheel\n"
    sample.mac.sh(f"echo >>{STARTER_PATH}")
    assert sample.changed() == {"unit"}
    assert not sample.restarted()


def test_credentials_are_the_services_alone_and_another_one_restarts_it(mac):
    """The start program does what systemd does on Linux."""
    program = (
        "use strict; my $d = $ENV{CREDENTIALS_DIRECTORY}; open my $in, '<', \"$d/token\" or die; "
        'print <$in>, "\\n"; $| = 1; print "$>\\n"; sleep 1000'
    )
    service = Service(
        name="shown",
        description="Is shown a secret",
        command=("/usr/bin/perl", "-e", program),
        user="_shown",
        group="_shown",
        credentials={"token": "/etc/shown/token"},
    )
    text = "of-the-tests"

    def deploy():
        users.system_user("_shown")
        files.directory("/etc/shown", mode="0700")
        files.content("/etc/shown/token", text, mode="0600", secret=True)
        services.unit(service)
        services.running(service)

    def apply():
        result = mac.run(deploy, system="darwin")
        assert result.ok, result.printed
        return result.changed[2:]

    def said():
        mac.sh(f"for i in $(seq 100); do grep -q {text} {log_path(service)} && break; sleep 0.1; done")
        return mac.sh(f"cat {log_path(service)}").split()

    folder = "/var/run/boxwright-credentials/shown"
    try:
        apply()
        assert apply() == [False, False, False]
        assert said()[0] == text
        assert mac.sh(f"stat -f '%Lp %Su' {folder} {folder}/token") == "700 _shown\n400 _shown\n"
        assert text not in mac.sh(f"cat {plist_path(service)}; ps -axww -o args=")
        # The service's own account put a link there: the next start follows it nowhere.
        mac.sh(f"rm {folder}/token; ln -s /etc/master.passwd {folder}/token; chown -h _shown {folder}/token")
        text = "another-of-the-tests"
        assert apply() == [True, False, True]
        assert text in said()
        assert mac.sh(f"stat -f '%Lp %Su' {folder}/token") == "400 _shown\n"
        assert text not in mac.sh("cat /etc/master.passwd")
    finally:
        mac.run(lambda: services.unit_absent(service), system="darwin")
    assert "No such file" in mac.sh(f"ls -d {folder}")


# In somebody's session


AGENT = replace(
    SAMPLE,
    user="operator",
    agent=True,
    reload_files=(),
    reload_command=(),
    state_directory="",
    runtime_directory="",
    environment={"MARK": "agent"},
)
AWAY = "sample does not run: it is a LaunchAgent of operator, who is not signed in"


class Agent(Sample):
    """The same as a LaunchAgent of somebody."""

    def __init__(self, mac, user="operator"):
        super().__init__(mac)
        self.service = replace(AGENT, user=user)
        self.owner = user

    @property
    def target(self):
        """By which launchd has it."""
        return f"gui/{self.mac.sh(f'id -u {self.owner}').strip()}/boxwright.sample"

    @property
    def pid(self):
        return self.mac.sh(f"launchctl print {self.target} | awk '$1 == \"pid\" {{ print $3 }}'").strip()

    def answers(self):
        """Whether somebody does."""
        return self.mac.as_root("curl --silent --fail http://127.0.0.1:8099/")[0] == 0


def processes(mac):
    """The numbers of all that run the program, and of all that listen."""
    running = mac.sh("ps -axww -o pid= -o command= | awk '/sample program[.]pl$/ && !/awk/ { print $1 }'").split()
    return running, mac.sh("lsof -nP -iTCP:8099 -sTCP:LISTEN -Fp | sed -n 's/^p//p'").split()


def forms(mac):
    """Where the sample is defined."""
    return mac.sh("ls -d /Library/Launch*/boxwright.sample.plist 2>/dev/null").split()


@pytest.fixture
def nobody(mac):
    """Nobody is signed in, and there is no sample."""
    if "no such user" in mac.sh("id ada 2>&1"):
        mac.sh("sysadminctl -addUser ada -password 'of the tests'")
        assert mac.sh("id -un ada") == "ada\n"
    for user in ("operator", "ada"):
        mac.logout(user)
    absent(mac)
    mac.sh("rm -f /etc/sample/*.good /etc/sample/*.bad /etc/sample/*.asked")
    return mac


@pytest.fixture
def agent(mac):
    """The sample in the session of the operator, who is signed in."""
    mac.login("operator")
    agent = Agent(mac)
    agent.apply()
    return agent


def test_an_agent_starts_when_its_user_signs_in(nobody):
    agent = Agent(nobody)
    result = agent.run()
    assert result.ok, result.printed
    assert result.changed[-2:] == [True, False]
    assert AWAY in result.printed
    assert agent.apply() == Sample.NOTHING
    assert forms(nobody) == ["/Library/LaunchAgents/boxwright.sample.plist"]
    assert nobody.sh("stat -f '%Lp %Su %Sg' /Library/LaunchAgents/boxwright.sample.plist") == "644 root wheel\n"
    assert processes(nobody) == ([], [])

    nobody.login("operator")
    agent.until(agent.answers)
    says = agent.says
    assert (says["user"], says["home"], says["mark"]) == ("operator", "/Users/operator", "agent")
    assert (says["token"], says["limit"].strip()) == (str(len(SECRET)), "4321")
    assert processes(nobody) == ([says["pid"]], [says["pid"]])
    assert says["pid"] == agent.pid
    # Its readiness is to be seen, once.
    assert agent.changed() == {"running"}
    assert agent.says["pid"] == says["pid"]
    # In a folder of root's: nobody can put a link in its place, which the task that shortens logs would follow.
    log = log_path("sample")
    assert nobody.sh(f"stat -f '%Lp %Su' {log} $(dirname {log})") == "600 operator\n755 root\n"
    assert "said at the start" in nobody.sh(f"cat {log}")
    seen = nobody.sh(f"ps -axww -o command=; launchctl print {agent.target}; cat /Library/LaunchAgents/*")
    assert "boxwright.sample" in seen
    assert SECRET not in seen
    assert nobody.sh(f"grep -rl {SECRET} /var/log /var/run /private/var/lib /Library /Users") == ""
    assert "Permission denied" in nobody.sh("sudo -u ada cat /etc/sample/secrets.env")

    # It is nobody else's.
    nobody.login("ada")
    agent.until(lambda: nobody.as_root("launchctl print gui/$(id -u ada)/boxwright.sample")[0] == 113)
    assert processes(nobody) == ([says["pid"]], [says["pid"]])
    assert agent.apply() == Sample.NOTHING

    nobody.logout("operator")
    agent.until(lambda: processes(nobody) == ([], []))
    result = agent.run()
    assert result.ok, result.printed
    assert AWAY in result.printed
    assert not any(result.changed)
    nobody.reboot()
    assert processes(nobody) == ([], [])
    assert agent.apply() == Sample.NOTHING
    nobody.login("operator")
    agent.until(agent.answers)
    assert absent(nobody) == [True]
    assert absent(nobody) == [False]
    assert processes(nobody) == ([], [])
    assert nobody.sh("find /private/var /private/etc /Library /opt -name '*boxwright.sample*' -o -name agents") == ""


@pytest.mark.parametrize(
    ("harm", "changed"),
    [
        ("launchctl bootout TARGET; launchctl disable TARGET", {"running"}),
        # It goes on writing to the file that was there.
        ("chmod 666 PLIST; chown operator PLIST; rm -rf LOG; ln -s /etc/hosts LOG", {"unit"}),
        ("rm -rf NOTES; ln -s /etc NOTES", {"unit", "running"}),
        (
            "sed -i '' s/4321/1234/ PLIST; launchctl bootout TARGET; "
            "while launchctl print TARGET; do sleep 0.2; done; launchctl bootstrap DOMAIN PLIST",
            {"unit", "running"},
        ),
        ("chown root /etc/sample/secrets.env; launchctl kickstart -k TARGET", {"secret", "running"}),
    ],
)
def test_an_agent_is_put_right(agent, harm, changed):
    domain = agent.target.rpartition("/")[0]
    for word, value in {
        "TARGET": agent.target,
        "DOMAIN": domain,
        "PLIST": "/Library/LaunchAgents/boxwright.sample.plist",
        "LOG": log_path("sample"),
        "NOTES": "/var/lib/boxwright/agents/sample",
    }.items():
        harm = harm.replace(word, value)
    before = agent.says["pid"]
    agent.mac.sh(harm)
    if "bootstrap" in harm:
        agent.until(agent.answers)
    assert agent.changed() == changed
    assert (agent.says["pid"] == before) == ("running" not in changed)
    assert '"boxwright.sample" => disabled' not in agent.mac.sh(f"launchctl print-disabled {domain}")
    assert processes(agent.mac) == ([agent.pid], [agent.pid])
    assert agent.says["limit"].strip() == "4321"
    assert agent.mac.sh("stat -Lf '%Su %Lp' /etc/hosts /etc") == "root 644\nroot 755\n"


def test_an_agent_that_is_killed_or_changed(agent):
    before = agent.pid
    agent.mac.sh(f"kill -KILL {before}")
    agent.until(lambda: agent.pid not in ("", before) and agent.answers())
    # Its log is shortened in place.
    log = log_path("sample")
    agent.mac.sh(f"perl -e 'print \"x\" x 11_000_000' >>{log}; launchctl kickstart system/boxwright.logs")
    agent.until(lambda: int(agent.mac.sh(f"stat -f %z {log}")) < 1_000_000)
    assert int(agent.mac.sh(f"stat -f %z {log}.0")) > 11_000_000
    # A file that it reads at its start; and the definition, with which it does not start.
    agent.running = {"roll_back": (SAMPLE.unit_path, "/etc/sample/secrets.env")}
    agent.started = "two\n"
    assert agent.changed() == {"started", "running"}
    assert agent.says["started"] == "two\n"
    agent.service = replace(agent.service, command=("/usr/bin/perl", "-e", "die 'no such model'"))
    said = agent.fails()
    assert "no such model" in said
    assert "runs again with its last good configuration; the new one was taken back" in said
    assert (agent.says["user"], agent.says["started"]) == ("operator", "two\n")
    agent.service = replace(AGENT, environment={"MARK": "new"})
    assert agent.changed() == {"unit", "running"}
    assert agent.says["mark"] == "new"


def test_from_daemon_to_agent_and_back(nobody):
    """There is one process and one listener, whatever way it runs, and nothing is left of the other."""
    mac = nobody
    daemon, operators, adas = Sample(mac), Agent(mac), Agent(mac, "ada")
    for user in ("operator", "ada"):
        mac.login(user)
    number = mac.sh("id -u ada").strip()
    places = {"_sample": "system", "operator": "gui/501", "ada": f"gui/{number}"}
    for one, user in ((daemon, "_sample"), (operators, "operator"), (adas, "ada"), (daemon, "_sample")):
        one.running = {"roll_back": (SAMPLE.unit_path, "/etc/sample/secrets.env")}
        assert {step for step, did in one.apply().items() if did} >= {"unit", "running"}
        assert one.says["user"] == user
        assert processes(mac) == ([one.pid], [one.pid])
        folder = "LaunchDaemons" if user == "_sample" else "LaunchAgents"
        assert forms(mac) == [f"/Library/{folder}/boxwright.sample.plist"]
        found = [
            whose for whose, place in places.items() if mac.as_root(f"launchctl print {place}/boxwright.sample")[0] == 0
        ]
        assert found == [user]
        owner = "root" if user == "_sample" else user
        assert mac.sh(f"stat -f %Su {log_path('sample')} /etc/sample/secrets.env.good").split() == [owner] * 2
    assert daemon.apply() == Sample.NOTHING
    # Its user is away: it does not go on as what it was.
    mac.logout("operator")
    result = operators.run()
    assert result.ok, result.printed
    assert AWAY in result.printed
    assert processes(mac) == ([], [])
    # A run that was killed when both were defined.
    mac.run(lambda: services.unit(SAMPLE), system="darwin")
    assert len(forms(mac)) == 2
    mac.login("operator")
    operators.until(operators.answers)
    assert operators.changed() >= {"running"}
    assert forms(mac) == ["/Library/LaunchAgents/boxwright.sample.plist"]
    assert processes(mac) == ([operators.pid], [operators.pid])


def test_an_agent_of_who_is_not_there(nobody):
    agent = Agent(nobody)
    agent.service = replace(AGENT, user="nobody-here")
    said = agent.fails()
    assert "nobody-here" in said
