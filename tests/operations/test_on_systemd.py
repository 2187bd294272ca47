"""Services on a machine with a real systemd: whatever is done to one, the next run puts it right, and only that."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest
from machine import Machine

from boxwright.operations import files, services
from boxwright.services import PackagedService, Service, http_probe
from boxwright.systemd import systemd_unit

pytestmark = pytest.mark.lab

PROGRAM = """\
import http.server, json, os, signal, time
started = open("/etc/sample/started file").read()
loaded = open("/etc/sample/loaded").read()
def load(*_):
    global loaded
    loaded = open("/etc/sample/loaded").read()
signal.signal(signal.SIGHUP, load)
time.sleep(0.3)  # not ready at once
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        answer = {"pid": os.getpid(), "started": started, "loaded": loaded, "env": os.environ.get("SAMPLE"),
                  "nice": os.getpriority(os.PRIO_PROCESS, 0)}
        self.wfile.write(json.dumps(answer).encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 8099), Handler).serve_forever()
"""

SAMPLE = Service(
    name="sample",
    description="A sample, 100% alive",
    command=("/usr/bin/python3", "/opt/sample program.py"),
    restart_files=("/etc/sample/started file",),
    reload_files=("/etc/sample/loaded",),
    reload_command=("/bin/kill", "-HUP", "$MAINPID"),
    probe=http_probe("http://127.0.0.1:8099/"),
    start_timeout=20,
    state_directory="sample",
)


@pytest.fixture(scope="module")
def machine():
    machine = Machine()
    machine.put("/opt/sample program.py", PROGRAM.encode())
    yield machine
    machine.close()


class Sample:
    """The sample service on the machine, applied with `apply`."""

    NOTHING: ClassVar = {"started": False, "loaded": False, "unit": False, "running": False}

    def __init__(self, machine):
        self.machine = machine
        self.service = SAMPLE
        self.started, self.loaded = "one\n", "one\n"

    def deploy(self):
        files.directory("/etc/sample")
        files.content("/etc/sample/started file", self.started)
        files.content("/etc/sample/loaded", self.loaded)
        services.unit(self.service)
        services.running(self.service)

    def apply(self, **options):
        """What changed, by step; fails the test when a step fails."""
        result = self.machine.run(self.deploy, **options)
        assert result.ok, result.printed
        return dict(zip(self.NOTHING, result.changed[1:], strict=True))

    def changed(self):
        """The steps that changed something; and that the next run changes nothing."""
        changed = {step for step, did in self.apply().items() if did}
        assert self.apply() == self.NOTHING
        return changed

    def fails(self):
        """What a failing run prints."""
        result = self.machine.run(self.deploy)
        assert not result.ok
        return result.printed

    @property
    def says(self):
        """What the process answers."""
        return json.loads(self.machine.sh("curl --silent http://127.0.0.1:8099/"))


@pytest.fixture
def sample(machine):
    sample = Sample(machine)
    sample.apply()
    before = sample.says["pid"]
    sample.restarted = lambda: sample.says["pid"] != before
    return sample


def test_from_nothing_to_running_and_gone(machine):
    machine.run(lambda: services.unit_absent(SAMPLE))
    sample = Sample(machine)
    assert sample.apply(dry=True)["running"]
    assert "could not be found" in machine.sh("systemctl status sample")
    assert sample.changed() >= {"unit", "running"}
    assert sample.says["started"] == "one\n"
    assert machine.sh("systemctl is-enabled sample").strip() == "enabled"
    assert machine.sh("stat -c '%a %U' /run/boxwright /run/boxwright/*") == "700 root\n600 root\n600 root\n"
    assert machine.run(lambda: services.unit_absent(SAMPLE)).changed == [True]
    assert machine.run(lambda: services.unit_absent(SAMPLE)).changed == [False]
    assert "could not be found" in machine.sh("systemctl status sample")
    assert machine.sh("ls -d /run/boxwright /usr/local/lib/boxwright /etc/systemd/system/*/sample* 2>/dev/null") == ""


def test_a_file_read_at_the_start_restarts(sample):
    sample.started = "two\n"
    assert sample.changed() == {"started", "running"}
    assert sample.says["started"] == "two\n"


def test_a_file_read_again_reloads(sample):
    sample.loaded = "two\n"
    assert sample.changed() == {"loaded", "running"}
    assert sample.says["loaded"] == "two\n"
    assert not sample.restarted()


def test_a_run_killed_before_the_restart_is_completed(sample):
    sample.started = sample.loaded = "three\n"
    sample.machine.run(lambda: files.content("/etc/sample/started file", sample.started))
    assert sample.changed() == {"loaded", "running"}
    assert (sample.says["started"], sample.says["loaded"]) == ("three\n", "three\n")


def test_an_edited_file_that_nobody_read_needs_no_restart(sample):
    sample.machine.sh("echo edited >'/etc/sample/started file'")
    assert sample.changed() == {"started"}
    assert not sample.restarted()


def test_an_edited_file_that_was_read_needs_one(sample):
    sample.machine.sh("echo edited >'/etc/sample/started file'; systemctl restart sample")
    assert sample.says["started"] == "edited\n"
    assert sample.changed() == {"started", "running"}
    assert sample.says["started"] == sample.started


@pytest.mark.parametrize("harm", ["stop", "disable", "kill --signal=KILL", "stop sample; rm -rf /run/boxwright; true"])
def test_stopped_disabled_killed(sample, harm):
    sample.machine.sh(f"systemctl {harm} sample")
    assert sample.changed() == {"running"}
    assert sample.machine.sh("systemctl is-enabled sample; systemctl is-active sample") == "enabled\nactive\n"


def test_masked(sample):
    sample.machine.sh("systemctl stop sample; rm /etc/systemd/system/sample.service; systemctl mask sample")
    assert sample.changed() == {"unit", "running"}
    assert sample.machine.sh("systemctl is-enabled sample; systemctl is-active sample") == "enabled\nactive\n"


def test_an_edited_unit(sample):
    sample.machine.sh("sed -i s/Restart=always/Restart=no/ /etc/systemd/system/sample.service; systemctl daemon-reload")
    assert sample.changed() == {"unit"}, "the process was started before the edit: no restart"
    assert sample.machine.sh("systemctl show --property=Restart --value sample") == "always\n"
    assert not sample.restarted()


def test_an_edited_unit_that_was_started(sample):
    edit = "sed -i s/RestartSec=2/Nice=7/ /etc/systemd/system/sample.service"
    sample.machine.sh(f"{edit}; systemctl daemon-reload; systemctl restart sample")
    assert sample.says["nice"] == 7
    assert sample.changed() == {"unit", "running"}
    assert sample.says["nice"] == 0


def test_a_new_definition_and_a_crash_before_systemd_read_it(sample):
    """The process is started again by systemd, from the definition it had: the new one is not taken for running."""
    sample.service = replace(SAMPLE, environment={"SAMPLE": "new"})
    text = systemd_unit(sample.service)
    sample.machine.put("/etc/systemd/system/sample.service", text.encode())
    sample.machine.sh("systemctl kill --signal=KILL sample; sleep 0.1; systemctl start sample")
    assert sample.says["env"] is None
    assert sample.changed() == {"unit", "running"}, "systemd was not told of the new definition"
    assert sample.says["env"] == "new"


def test_a_drop_in_of_the_administrator_comes_into_force_and_stays(sample):
    folder = "/etc/systemd/system/sample.service.d"
    sample.machine.sh(f"mkdir {folder}; printf '[Service]\\nNice=5\\n' >{folder}/mine.conf")
    try:
        assert "running" in sample.changed()
        assert sample.says["nice"] == 5
    finally:
        sample.machine.sh(f"rm -r {folder}")
    assert "running" in sample.changed()
    assert sample.says["nice"] == 0


def test_a_replaced_program(sample):
    sample.machine.sh("cp /usr/bin/python3.?? /opt/python")
    sample.service = replace(SAMPLE, command=("/opt/python", *SAMPLE.command[1:]))
    assert sample.changed() == {"unit", "running"}
    sample.machine.sh("cp /opt/python /opt/python.new; mv /opt/python.new /opt/python")
    assert sample.changed() == {"running"}


def test_a_reboot(sample):
    sample.machine.reboot()
    sample.apply()
    assert sample.apply() == sample.NOTHING
    assert sample.says["started"] == "one\n"


def test_a_start_that_fails_says_why(sample):
    sample.service = replace(SAMPLE, command=("/usr/bin/python3", "-c", "raise SystemExit('no such model')"))
    said = sample.fails()
    assert "no such model" in said
    assert "no such model" in sample.fails(), "the failed service was taken for a good one"
    sample.service = SAMPLE
    assert sample.changed() == {"unit", "running"}


def test_a_service_that_never_gets_ready_fails_in_time(sample):
    sample.service = replace(SAMPLE, command=("/usr/bin/python3", "-c", "import time; time.sleep(99)"), start_timeout=2)
    assert "timed out" in sample.fails()
    sample.service = SAMPLE
    assert sample.changed() == {"unit", "running"}


def test_a_reload_that_cannot_work_becomes_a_restart(sample):
    """As when a gateway's edited configuration has closed the socket by which it is told to reload."""
    sample.service = replace(SAMPLE, reload_command=("/bin/sh", "-c", "echo cannot reach it; exit 1"))
    sample.apply()
    before = sample.says["pid"]
    sample.loaded = "new\n"
    assert sample.changed() == {"loaded", "running"}
    assert sample.says["loaded"] == "new\n"
    assert sample.says["pid"] != before


@pytest.fixture
def guarded(sample):
    """The sample, asked whether it answers after each change; what it loads is taken back when it does not."""
    sample.answers = ("/bin/sh", "-c", "curl --silent --fail http://127.0.0.1:8099/ | grep -v broken")

    def deploy():
        files.directory("/etc/sample")
        files.content("/etc/sample/started file", sample.started)
        files.content("/etc/sample/loaded", sample.loaded)
        services.unit(sample.service)
        services.running(sample.service, answers=sample.answers, roll_back=("/etc/sample/loaded",))

    sample.deploy = deploy
    sample.loaded = "good\n"
    assert sample.changed() == {"loaded", "running"}
    before = sample.says["pid"]
    sample.restarted = lambda: sample.says["pid"] != before
    yield sample
    sample.machine.sh("rm -f /etc/sample/loaded.*")


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
    assert guarded.machine.sh("cat /etc/sample/loaded /etc/sample/loaded.bad") == f"good\n{loaded}"
    assert (guarded.says["pid"], guarded.says["loaded"]) == (before, "good\n")
    guarded.loaded = "good\n"
    assert guarded.apply() == Sample.NOTHING
    guarded.loaded = "better\n"
    assert guarded.changed() == {"loaded", "running"}
    assert (guarded.says["pid"], guarded.says["loaded"]) == (before, "better\n")


def test_what_was_taken_back_is_asked_as_it_was_before(guarded):
    """Where the new configuration would have answered, the old one need not."""
    guarded.loaded, answers, guarded.answers = (
        "elsewhere\n",
        guarded.answers,
        ("/bin/sh", "-c", "echo not here; exit 1"),
    )
    printed = guarded.fails()
    assert printed.count("does not answer: not here") == 1
    assert "goes on with its last good configuration" in printed
    guarded.loaded, guarded.answers = "good\n", answers
    assert guarded.apply() == Sample.NOTHING
    assert not guarded.restarted()


def test_what_it_cannot_start_with_is_taken_back(guarded):
    guarded.service = replace(SAMPLE, environment={"SAMPLE": "anew"})
    guarded.loaded = "broken\n"
    assert "runs again with its last good configuration; the new one was taken back" in guarded.fails()
    assert guarded.restarted()
    assert guarded.says["loaded"] == "good\n"


def test_a_unit_it_cannot_start_with_is_taken_back(sample):
    """As an argument that a new version no longer knows."""

    def deploy():
        files.directory("/etc/sample")
        files.content("/etc/sample/started file", sample.started)
        files.content("/etc/sample/loaded", sample.loaded)
        services.unit(sample.service)
        services.running(sample.service, roll_back=(sample.service.unit_path, "/etc/sample/loaded"))

    sample.deploy = deploy
    sample.loaded = "good\n"
    assert "running" in sample.changed()
    sample.service = replace(SAMPLE, command=("/bin/false",))
    sample.loaded = "for the other\n"
    assert "runs again with its last good configuration; the new one was taken back" in sample.fails()
    assert sample.says["loaded"] == "good\n"
    path = SAMPLE.unit_path
    assert "/bin/false" in sample.machine.sh(f"cat {path}.bad")
    assert "/bin/false" not in sample.machine.sh("systemctl show --property=ExecStart sample")
    sample.service, sample.loaded = SAMPLE, "good\n"
    assert sample.apply() == Sample.NOTHING
    assert sample.machine.run(lambda: services.unit_absent(SAMPLE)).ok
    assert sample.machine.sh(f"ls {path}* 2>/dev/null") == ""
    sample.machine.sh("rm -f /etc/sample/loaded.*")
    sample.apply()


def test_a_reload_that_can_never_work_is_not_the_new_configurations_fault(guarded):
    guarded.service = replace(SAMPLE, reload_command=("/bin/sh", "-c", "echo cannot reach it; exit 1"))
    guarded.apply()
    guarded.loaded = "new\n"
    assert guarded.changed() == {"loaded", "running"}
    assert guarded.says["loaded"] == "new\n"
    assert guarded.machine.sh("cat /etc/sample/loaded.good") == "new\n"


def test_it_waits_for_an_address(sample):
    address = "10.99.99.99"
    sample.service = replace(SAMPLE, wait_for_address=address, start_timeout=2)
    assert "timed out" in sample.fails()
    sample.machine.sh(f"ip address add {address}/32 dev lo")
    assert sample.changed() == {"running"}
    sample.machine.sh(f"ip address del {address}/32 dev lo")


def test_it_waits_for_a_file(sample):
    """As for the device of a graphics card whose driver loads after the services have begun to start."""
    device = "/var/lib/a device"
    sample.service = replace(SAMPLE, wait_for_files=("/etc/hostname", device), start_timeout=2)
    assert "timed out" in sample.fails()
    sample.machine.sh(f"touch '{device}'")
    assert sample.changed() == {"running"}
    sample.machine.sh(f"rm '{device}'")


def test_the_sandbox_in_force(sample):
    """What systemd says of the loaded unit, which is what counts."""
    said = sample.machine.sh("systemd-analyze security sample.service --no-pager")
    exposure = float(said.rpartition("exposure level for sample.service: ")[2].split()[0])
    assert exposure <= 1.5, said
    pid = sample.says["pid"]
    status = sample.machine.sh(f"cat /proc/{pid}/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def test_a_packaged_service(machine):
    cron = PackagedService(name="systemd-journald", restart_files=("/etc/sample-journald",))

    def deploy():
        services.unit(cron)
        services.running(cron)

    first = machine.run(deploy)
    assert first.ok, first.printed
    assert machine.run(deploy).changed == [False, False]
    pid = machine.sh("systemctl show --property=MainPID --value systemd-journald")
    machine.sh("echo changed >/etc/sample-journald")
    assert machine.run(deploy).changed == [False, True]
    assert machine.sh("systemctl show --property=MainPID --value systemd-journald") != pid
    assert machine.run(lambda: services.unit_absent(cron)).changed == [True]
    assert machine.run(lambda: services.unit_absent(cron)).changed == [False]
    assert machine.sh("systemctl is-active systemd-journald") == "active\n", "a packaged service is not ours to stop"


def test_a_scheduled_task(machine):
    task = Service(
        name="sample-task",
        description="Sample",
        command=("/bin/sh", "-c", "echo done >>/var/lib/sample-task/log"),
        schedule="Sun 04:00",
        state_directory="sample-task",
    )

    def deploy(task=task):
        services.unit(task)
        services.scheduled(task)

    try:
        assert machine.run(deploy, dry=True).changed == [True, True]
        assert machine.run(deploy).changed == [True, True]
        assert machine.run(deploy).changed == [False, False]
        assert machine.sh("ls /var/lib/sample-task/log 2>&1 | grep -c 'No such file'") == "1\n", "it was not to run now"
        next_time = "systemctl show --property=TimersCalendar sample-task.timer"
        assert "OnCalendar=Sun *-*-* 04:00:00" in machine.sh(next_time)
        machine.sh("systemctl start sample-task")
        assert machine.sh("cat /var/lib/sample-task/log") == "done\n"
        assert machine.sh("systemctl show --value --property=Result sample-task") == "success\n"
        assert machine.run(deploy).changed == [False, False]

        for harm in ("stop", "disable --now", "mask --now"):
            if harm.startswith("mask"):
                machine.sh("rm /etc/systemd/system/sample-task.timer")
            machine.sh(f"systemctl {harm} sample-task.timer")
            assert machine.run(deploy).ok, harm
            assert machine.sh("systemctl is-enabled sample-task.timer; systemctl is-active sample-task.timer") == (
                "enabled\nactive\n"
            ), harm
            assert machine.run(deploy).changed == [False, False], harm
        daily = replace(task, schedule="05:30")
        assert machine.run(lambda: deploy(daily)).changed == [True, False]
        assert "OnCalendar=*-*-* 05:30:00" in machine.sh(next_time)
        machine.reboot()
        assert machine.run(lambda: deploy(daily)).changed == [False, False]
        assert machine.sh("systemctl is-active sample-task.timer") == "active\n"
    finally:
        assert machine.run(lambda: services.unit_absent(task)).changed == [True]
    assert machine.run(lambda: services.unit_absent(task)).changed == [False]
    assert machine.sh("find /etc/systemd /run -xdev -name '*sample-task*'") == ""
    assert "sample-task" not in machine.sh("systemctl list-timers --all --no-pager")


def test_stopped(sample):
    assert sample.machine.run(lambda: services.stopped("sample")).changed == [True]
    assert sample.machine.run(lambda: services.stopped("sample")).changed == [False]
    assert sample.machine.sh("systemctl is-active sample; systemctl is-enabled sample") == "inactive\ndisabled\n"
    assert sample.machine.run(lambda: services.stopped("no-such-service")).changed == [False]


def test_credentials_are_the_services_alone_and_another_one_restarts_it(machine):
    """systemd shows it what only root reads."""
    show = (
        'import os; d = os.environ["CREDENTIALS_DIRECTORY"]; print(open(d + "/token").read(), os.getuid(), flush=True)'
    )
    service = Service(
        name="shown",
        description="Is shown a secret",
        command=("/usr/bin/python3", "-c", f"{show}; import time; time.sleep(1000)"),
        user="nobody",
        group="nogroup",
        credentials={"token": "/etc/shown/token"},
    )
    text = "of-the-tests"

    def deploy():
        files.directory("/etc/shown", mode="0700")
        files.content("/etc/shown/token", text, mode="0600", secret=True)
        services.unit(service)
        services.running(service)

    def said():
        return machine.sh("journalctl --quiet --output=cat --unit shown | grep tests").split()

    try:
        assert machine.run(deploy).changed[-1]
        assert not any(machine.run(deploy).changed)
        machine.sh("for i in $(seq 100); do journalctl -q --unit shown | grep -q tests && break; sleep 0.1; done")
        assert said()[0] == "of-the-tests"
        assert said()[1] != "0"
        assert "of-the-tests" not in machine.sh("cat /etc/systemd/system/shown.service; ps -axww -o args=")
        text = "another-of-the-tests"
        assert machine.run(deploy).changed[1:] == [True, False, True]
        machine.sh("for i in $(seq 100); do journalctl -q --unit shown | grep -q another && break; sleep 0.1; done")
        assert said()[-2] == "another-of-the-tests"
        assert not any(machine.run(deploy).changed)
    finally:
        machine.run(lambda: services.unit_absent(service))


def test_what_it_requires_comes_first_and_says_why_not(machine):
    """A oneshot is run at each start, and a service whose oneshot fails is not started."""
    before = Service(
        name="needed-before",
        description="Prepares",
        command=(
            "/bin/sh",
            "-c",
            "test ! -e /etc/refuses || { echo it refuses to prepare; exit 1; }; echo >>/var/tmp/runs",
        ),
        user="root",
        group="root",
        oneshot=True,
        sandbox_exceptions={"ReadWritePaths": ("/var/tmp", "the test"), "PrivateTmp": ("no", "the test")},
    )
    service = Service(
        name="needing", description="Needs it", command=("/bin/sleep", "1000"), requires=("needed-before",)
    )

    def deploy():
        services.unit(before)
        services.unit(service)
        services.running(service)

    def runs():
        return len(machine.sh("cat /var/tmp/runs 2>/dev/null").splitlines())

    try:
        machine.sh("touch /etc/refuses")
        failed = machine.run(deploy)
        assert not failed.ok
        assert "it refuses to prepare" in failed.printed
        assert runs() == 0
        machine.sh("rm /etc/refuses")
        assert machine.run(deploy).ok
        assert runs() == 1
        assert not any(machine.run(deploy).changed)
        assert runs() == 1
        machine.sh("kill -9 $(systemctl show --value -p MainPID needing)")
        machine.sh("for i in $(seq 100); do [ $(wc -l </var/tmp/runs) = 2 ] && break; sleep 0.1; done")
        assert runs() == 2
    finally:
        for one in (service, before):
            machine.run(lambda one=one: services.unit_absent(one))
        machine.sh("rm -f /var/tmp/runs /etc/refuses")
