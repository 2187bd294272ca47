"""When a run ends before its time, the next one completes it: nothing half done, no restart forgotten."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit import LIGHT, MODEL_ENTRY, Box, Lab, eventually, kill
from snapshots import contents, made_of

pytestmark = pytest.mark.lab

CHANGED = re.compile(r"changed: (.*) \([^()]*\)$")


def changed_by(line: str) -> str | None:
    """The operation that a line of a run's output reports as changed."""
    found = CHANGED.search(line.strip())
    return found.group(1) if found else None


def killed_after(box: Box, inventory: Path, wanted: Callable[[str], bool]) -> tuple[list[str], bool]:
    """Start a run and kill it, not to be caught, as soon as it has reported a change that is `wanted`.

    The changes reported, and whether it was killed before its end.
    """
    box.settled = False
    process = box.lab.start("boxwright", "apply", "--no-check", inventory=inventory)
    changes, said = [], ""
    killed = False
    assert process.stderr is not None
    try:
        for line in process.stderr:
            said += line
            if change := changed_by(line):
                changes.append(change)
                if not killed and wanted(change):
                    kill(process)
                    killed = True
        assert killed or process.wait(timeout=30) == 0, said
    finally:
        kill(process)
    return changes, killed


@pytest.fixture
def torn(lab: Lab) -> Box:
    """A new light box, not converged."""
    return lab.up("torn", LIGHT)


def test_a_box_that_was_built_by_runs_that_were_killed(torn: Box, light: Box) -> None:
    """The first run is killed after its first change, the second after its second, the third after its third ..."""
    torn.lab.run("boxwright", "lab", "down", torn.name).expect()
    torn.lab.up("torn", LIGHT)
    changes: list[str] = []
    killed = True
    runs = 0
    while killed:
        runs += 1
        countdown = iter(range(runs - 1, -1, -1))
        now, killed = killed_after(torn, torn.inventory, lambda change, countdown=countdown: next(countdown) == 0)
        changes += now
    assert runs >= 5
    assert len(changes) >= 15
    torn.expect_settled()
    assert torn.answers()
    # The box that was built in one go is the measure.
    (made, files), (measure, measured_files) = compared(torn), compared(light)
    assert sorted(made ^ measure) == []
    assert files == measured_files


def compared(box: Box) -> tuple[set[str], dict[str, str]]:
    """What must be the same on two boxes with the same settings: what they are made of, and what their files hold."""
    # Certificates, addresses, secrets and what logins leave are each box's own; the time zone's link has two spellings.
    own = ("/var/lib/caddy/", "/etc/ssh/ssh_host_", "/etc/localtime", "/home/", box.host, box.address)
    made = {line for line in made_of(box) if not any(word in line for word in own)}
    files = contents(box, "/etc/boxwright", "/opt/boxwright", "/var/lib/boxwright", "/etc/systemd/system")
    # A note on a model holds its inode, what belongs to the door its address.
    own_content = ("Caddyfile", "Caddyfile.asked", "Caddyfile.bad", "Caddyfile.good", ".sha256")
    return made, {path: digest for path, digest in files.items() if not path.endswith(own_content)}


def during(box: Box, what: str, process: subprocess.Popen[str]) -> None:
    """Wait until a process whose command line matches `what` is at work on the box."""

    def seen() -> bool:
        assert process.poll() is None, f"the run ended before {what} was seen: {process.communicate()[1]}"
        # Without a shell, whose own command line would match.
        return bool(box.container.exec_run(["pgrep", "--full", "--", what]).exit_code == 0)

    eventually(what, seen, 120)


STRIPPED = """
systemctl stop caddy llamacpp
rm -r /opt/boxwright/llamacpp /opt/boxwright/caddy /var/lib/boxwright/models
apt-get -qq remove --purge libgomp1 >/dev/null 2>&1
"""


def interrupted(box: Box, work: str, interrupt: Callable[[subprocess.Popen[str]], str]) -> str:
    """Start a run and end it by `interrupt` while `work` is going on on the box; what `interrupt` returned."""
    process = box.lab.start("boxwright", "apply", "--no-check", inventory=box.inventory)
    try:
        during(box, work, process)
        return interrupt(process)
    finally:
        kill(process)


def killed(process: subprocess.Popen[str]) -> str:
    kill(process)
    return ""


def stopped(process: subprocess.Popen[str]) -> str:
    """As by Ctrl-C; what the command said."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    return said


def test_runs_killed_in_the_middle_of_long_steps(torn: Box) -> None:
    """Each is killed while something takes its time on the box, which goes on there and is not waited for."""
    torn.settle()
    torn.settled = False
    torn.sh(STRIPPED)
    for work in ("curl .*gguf", "apt-get.*install.*libgomp1", "-m venv"):
        interrupted(torn, work, killed)
    torn.apply().expect()
    torn.expect_settled()
    assert torn.answers()


def test_a_run_that_was_stopped_and_a_box_that_lost_power(torn: Box) -> None:
    """Ctrl-C ends the command at once, with a code of its own, and says what to do; a power cut says nothing."""
    torn.settle()
    torn.settled = False
    torn.sh(STRIPPED)
    said = interrupted(torn, "pip.*install.*requirement", stopped)
    assert "interrupted during: llamacpp: install the server" in said
    assert "the same command again completes what was begun" in said
    assert "Traceback" not in said

    torn.sh("pkill -f pip.*install.*requirement; rm -rf /opt/boxwright/llamacpp", check=False)
    interrupted(torn, "pip.*install.*requirement", lambda process: torn.container.kill() or "")
    torn.container.start()
    eventually("sshd on the box", lambda: torn.succeeds("systemctl is-active ssh"), 60)
    torn.apply().expect()
    torn.expect_settled()
    assert torn.answers()


def test_no_restart_is_forgotten(full: Box) -> None:
    """Settings of every service change; each run is killed between the change of a file and the restart that it needs.

    The runs after it know nothing of what the killed one did: what must be restarted they see from the box itself.
    """
    inventory = full.with_variables(
        "restarts",
        docker_log_max_size="11m",
        inference_models=[{**MODEL_ENTRY, "context": 2048}],
        openwebui_environment={"WEBUI_NAME": "Renamed"},
        gateway_user="renamed",
    )
    before = {name: pid_of(full, name) for name in ("docker", "llamacpp", "caddy", "openwebui")}
    last_writes = [
        ("docker: settings of the engine", "docker: running", "docker"),
        ("llamacpp: write the settings", "llamacpp: running", "llamacpp"),
        ("openwebui: write the Compose file", "openwebui: running", "openwebui"),
        ("gateway: write the Caddyfile", "gateway: running", None),
    ]
    previous: list[str] = []
    for write, activation, process in last_writes:
        changes, killed = killed_after(full, inventory, lambda change, write=write: change == write)
        assert killed
        # The first thing this run did was what the one before had been kept from.
        assert changes[: len(previous)] == previous
        assert changes[-1] == write
        if process:
            assert pid_of(full, process) == before[process], "the run got further than it should have"
        previous = [activation]
    assert full.http("GET", "v1/models", auth=full.credentials).status_code == 200, "reloaded already"

    assert full.changes(inventory) == ["gateway: running"]
    full.expect_settled(inventory)
    after = {name: pid_of(full, name) for name in before}
    assert {name for name in before if after[name] != before[name]} == {"docker", "llamacpp", "openwebui"}

    # And what runs now runs with what was written.
    assert full.http("GET", "v1/models", auth=full.credentials).status_code == 401
    assert full.http("GET", "v1/models", auth=("renamed", full.credentials[1])).status_code == 200
    assert full.http("GET", "api/config").json()["name"].startswith("Renamed")
    assert '"n_ctx":2048' in full.sh("curl --silent http://127.0.0.1:8081/props").replace(" ", "")
    image = full.sh("docker ps --format '{{.Image}}'").strip()
    full.sh(f"docker create --name probe {image}")
    assert (
        full.sh("docker inspect --format '{{index .HostConfig.LogConfig.Config \"max-size\"}}' probe").strip() == "11m"
    )
    full.sh("docker rm probe")


def pid_of(box: Box, service: str) -> int:
    """The process of a service, or of Open WebUI's container."""
    if service == "openwebui":
        return int(box.sh("docker inspect --format '{{.State.Pid}}' openwebui-openwebui-1"))
    return box.pid(service)


def test_a_run_killed_while_a_service_starts(full: Box) -> None:
    """Open WebUI takes its time to start: the next run waits for what the killed one began."""
    full.settled = False
    full.sh("docker rm --force $(docker ps --quiet)")
    process = full.lab.start("boxwright", "apply", "--no-check", inventory=full.inventory)
    try:
        starting = "docker ps --filter health=starting --quiet | grep ."
        eventually("Open WebUI starts", lambda: full.succeeds(starting), 120)
    finally:
        kill(process)
    full.apply().expect()
    # Ready when the run says so, not some time later.
    assert full.http("GET", "health").json() == {"status": True}
    full.expect_settled()


def test_two_runs_at_once_do_not_hurt_each_other(torn: Box) -> None:
    torn.settle()
    torn.settled = False
    torn.sh(STRIPPED)
    processes = [torn.lab.start("boxwright", "apply", "--no-check", inventory=torn.inventory) for _ in range(2)]
    deadline = time.monotonic() + 300
    for process in processes:
        process.communicate(timeout=max(1, deadline - time.monotonic()))
    assert 0 in [process.returncode for process in processes]
    torn.apply().expect()
    torn.expect_settled()
    assert torn.answers()
