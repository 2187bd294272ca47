"""No secret where it does not belong: arguments of processes, files that others can read, logs, output."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kit import STACK, Box, Done
from leaks import leaks, open_to_others, readable_by_others, watched_command_lines

pytestmark = pytest.mark.lab

# Files whose loss makes the next run write every secret of the box again.
SECRET_FILES = (
    "/opt/boxwright/openwebui/openwebui.env",
    "/etc/boxwright/caddy/openwebui.key",
    "/etc/boxwright/caddy/Caddyfile",
)
# Folders with everything that a service, a package or a run may have written.
PLACES = ("/etc", "/opt", "/usr/local", "/var", "/run", "/tmp", "/home", "/root", "/srv", "/dev/shm")
TRACE = "/root/trace"


def known(box: Box) -> dict[str, str]:
    """Everything that is secret about a box."""
    password = (box.lab.state / "lab" / box.name / "secured_password").read_text(encoding="utf-8").strip()
    found = {**box.secrets, "sudo password": password}
    assert {"gateway_password", "openwebui_admin_password", "openwebui_secret_key", "openwebui_engine_key"} <= set(
        found
    )
    assert all(len(secret) >= 12 for secret in found.values())
    return found


@pytest.fixture
def strace(full: Box) -> Iterator[Box]:
    """strace on the box, taken away again afterwards."""
    full.sh("apt-get update -qq && apt-get install -qq --no-install-recommends strace >/dev/null 2>&1")
    yield full
    full.sh("apt-get purge -qq --autoremove strace >/dev/null 2>&1")


def test_no_secret_is_an_argument_of_a_process(strace: Box) -> None:
    """While every secret is written anew: on the box each started program is traced, here all processes are watched."""
    full = strace
    full.settled = False
    full.sh(f"rm {' '.join(SECRET_FILES)}; rm -f {TRACE}")
    # The kernel tells strace of each program that any session over SSH starts, none is missed.
    command = f"exec strace --follow-forks --seccomp-bpf -e trace=execve -s 100000 -o {TRACE} -p $(pgrep -o -x sshd)"
    full.container.exec_run(["sh", "-c", command], detach=True)
    full.sh(f"until [ -e {TRACE} ] && grep -q TracerPid:.[1-9] /proc/$(pgrep -o -x sshd)/status; do sleep 0.1; done")
    try:
        with watched_command_lines() as here:
            done = full.apply("-vvv")
        done.expect()
    finally:
        full.sh("pkill -x strace; until ! pgrep -x strace; do sleep 0.1; done", check=False)
    changed = done.json["hosts"][full.host]["changed"]
    assert {
        "openwebui: write the environment",
        "gateway: write Open WebUI's key",
        "gateway: write the Caddyfile",
    } <= set(changed)
    traced = full.sh(f"cat {TRACE}; rm {TRACE}")
    assert traced.count("execve(") > 100
    assert leaks(traced, known(full)) == []
    assert any("boxwright" in line and "apply" in line for line in here)
    assert leaks("\n".join(here), known(full)) == []
    full.settled = True


def test_no_secret_is_an_argument_of_a_service(full: Box) -> None:
    """Nothing that runs on, on the box or in its containers, was given a secret to be seen in `ps`."""
    lines = full.sh("for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$file; echo; done")
    assert "caddy run" in lines
    assert leaks(lines, known(full)) == []


def test_no_file_that_others_can_read_holds_a_secret(full: Box) -> None:
    secrets = known(full)
    assert readable_by_others(full, secrets.values(), PLACES) == []
    # That the search finds something where there is something.
    full.put("/var/tmp/careless", f"password={secrets['gateway_password']}\n", 0o644)
    full.put("/var/tmp/careful", f"password={secrets['gateway_password']}\n", 0o600)
    assert readable_by_others(full, secrets.values(), PLACES) == ["/var/tmp/careless"]
    full.sh("rm /var/tmp/careless /var/tmp/careful")


def test_logs_on_the_box_hold_no_secret(full: Box) -> None:
    assert full.answers()
    logs = full.sh(
        "journalctl --no-pager --output=verbose; for each in $(docker ps --all --quiet); do docker "
        "logs $each 2>&1; done"
    )
    assert "llamacpp" in logs
    assert leaks(logs, known(full)) == []


def logs_here(box: Box) -> str:
    """Everything that runs have written into their logs on this machine."""
    logs = list((box.lab.state / "log").glob("*"))
    assert logs
    return "\n".join(path.read_text(encoding="utf-8") for path in logs)


COMMANDS = (
    "boxwright apply -vvv --diff",
    "boxwright apply --json",
    "boxwright plan --diff -vvv",
    "boxwright verify --json",
    "pyinfra -y -vvv --diff inventory.py deploys/stack.py",
    "pyinfra -y --debug --json inventory.py deploys/stack.py",
    "pyinfra --dry -vv --diff inventory.py deploys/stack.py",
    "pyinfra inventory.py debug-inventory",
    "pyinfra inventory.py debug-inventory --json",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_output_holds_no_secret(full: Box, command: str) -> None:
    """Also where the secret files themselves must be written again, and everything is asked to be shown."""
    if "-y" in command or "apply" in command or "plan" in command:
        full.settled = False
        full.sh(f"for file in {' '.join(SECRET_FILES)}; do echo '# by hand' >>$file; done")
    done = full.run(*shlex.split(command)).expect()
    assert full.host in done.text
    assert leaks(done.text, known(full)) == []
    assert leaks(logs_here(full), known(full)) == []


def test_a_failure_shows_no_secret(full: Box) -> None:
    """The steps that write secrets fail: neither what is printed nor the log gives them away."""
    secrets = known(full)
    for path in SECRET_FILES:
        full.settled = False
        full.sh(f"mv {path} {path}.aside && mkdir {path}")
        try:
            done = full.apply("-vvv", "--diff").expect(1)
            own = full.run("pyinfra", "-y", "-vvv", "--diff", "inventory.py", STACK).expect(1)
        finally:
            full.sh(f"rmdir {path}; mv {path}.aside {path}")
        for output in (done.text, own.text, logs_here(full)):
            assert leaks(output, secrets) == []
        assert "Traceback" not in done.text + own.text
    full.expect_settled()


def test_generated_secrets_are_for_their_owner_alone_here(full: Box) -> None:
    for folder in ("secrets", "log", "netrc", "ssh"):
        path = full.lab.state / folder
        if path.exists():
            assert open_to_others(path) == [], folder
    assert (full.lab.state / "secrets" / f"{full.host}.json").stat().st_mode & 0o777 == stat.S_IRUSR | stat.S_IWUSR


AWKWARD = 'it\'s "quoted", $HOME `id` %n {{ 7*7 }} \\ grün#1'


@pytest.fixture
def vault(light: Box) -> Iterator[tuple[Path, dict[str, str]]]:
    """An inventory with gateway_password from a file made by ansible-vault, and the environment that opens it."""
    folder = light.with_variables("vault").parent
    password_file = folder / "vault-password"
    password_file.write_text("opens the vault\n", encoding="utf-8")
    password_file.chmod(0o600)
    variables = folder / "group_vars" / "lab" / "vault.yml"
    variables.parent.mkdir(parents=True, exist_ok=True)
    variables.write_text(f"gateway_password: !unsafe {yaml.safe_dump(AWKWARD, width=1000)}", encoding="utf-8")
    encrypt = ("ansible-vault", "encrypt", "--vault-password-file", str(password_file), str(variables))
    light.lab.run(*encrypt).expect()
    assert variables.read_text(encoding="utf-8").startswith("$ANSIBLE_VAULT;")
    yield folder / "hosts.yml", {"ANSIBLE_VAULT_PASSWORD_FILE": str(password_file)}
    light.settled = False


def test_a_password_from_the_vault_is_used_and_shown_nowhere(light: Box, vault: tuple[Path, dict[str, str]]) -> None:
    inventory, environment = vault

    def run(command: str) -> Done:
        return light.run(*shlex.split(command), inventory=inventory, environment=environment)

    with watched_command_lines() as here:
        outputs = [run("boxwright apply -vvv --diff --json").expect().text]
    assert light.http("GET", "v1/models", auth=("boxwright", AWKWARD.encode())).status_code == 200
    assert light.http("GET", "v1/models", auth=light.credentials).status_code == 401
    outputs += [run("pyinfra -y -vvv --debug inventory.py deploys/stack.py").expect().text]
    outputs += [run("pyinfra inventory.py debug-inventory").expect().text, *here, logs_here(light)]
    secret = {"gateway_password": AWKWARD}
    assert leaks("\n".join(outputs), secret) == []
    assert readable_by_others(light, [AWKWARD], PLACES) == []
