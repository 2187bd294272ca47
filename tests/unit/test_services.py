"""Unit files: their text, that systemd accepts them, and how much it says they expose."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from boxwright.services import PackagedService, Service, http_probe
from boxwright.systemd import (
    RECORDER,
    SANDBOX,
    STAMP_LINES,
    command_line,
    identity,
    systemd_timer,
    systemd_unit,
)

GOLDEN = Path(__file__).parent / "golden"

ENGINE = Service(
    name="engine",
    description="Engine: 100% local",
    command=("/opt/engine/bin/python", "/opt/engine/server.py", "--name", "it's $HOME"),
    environment={"GREETING": 'say "hi" to %h'},
    environment_file="/etc/engine/secrets.env",
    restart_files=("/etc/engine/a file.json",),
    probe=http_probe("http://127.0.0.1:8081/health", ("http://127.0.0.1:8081/v1/x", '{"a": "it\'s"}')),
    start_timeout=600,
    wait_for_files=("/dev/nvidiactl",),
    state_directory="engine",
)
GATEWAY = Service(
    name="gateway",
    description="Gateway",
    command=("/opt/gateway/bin/caddy", "run"),
    user="caddy",
    reload_command=("/opt/gateway/bin/caddy", "reload"),
    reload_files=("/etc/gateway/Caddyfile",),
    notify=True,
    after=("docker.service",),
    wait_for_address="172.30.77.1",
    runtime_directory="gateway",
    capabilities={"CAP_NET_BIND_SERVICE": "the door is port 443"},
    sandbox_exceptions={"IPAddressDeny": (None, "clients come from any address")},
    settings={"LimitNOFILE": "65536"},
)
DOCKER = PackagedService(
    name="docker", restart_files=("/etc/docker/daemon.json",), environment={"HTTP_PROXY": "http://10.0.0.2:3128"}
)
UPDATE = Service(
    name="update",
    description="Update",
    command=("/bin/sh", "/opt/update"),
    user="root",
    schedule="Sun 04:00",
    wants=("network-online.target",),
)
ALL = {"engine.service": ENGINE, "gateway.service": GATEWAY, "docker.conf": DOCKER, "update.service": UPDATE}


@pytest.mark.parametrize("name", ALL)
def test_text(name):
    """The text as it was read and found good; write it anew with BOXWRIGHT_WRITE_GOLDEN=1 and read the difference."""
    texts = {name: systemd_unit(ALL[name])}
    if name == "update.service":
        texts["update.timer"] = systemd_timer(UPDATE)
    for file, text in texts.items():
        if os.environ.get("BOXWRIGHT_WRITE_GOLDEN"):
            (GOLDEN / file).write_text(text)
        assert text == (GOLDEN / file).read_text()


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ("plain-1.0/x=y", "plain-1.0/x=y"),
        ("two words", '"two words"'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ("${HOME} x", '"$${HOME} x"'),
        ('"quoted"', '"\\"quoted\\""'),
        ("it's", '"it\'s"'),
        ("back\\slash", '"back\\\\slash"'),
        ("line\nbreak", '"line\\nbreak"'),
        ("", '""'),
        (";", '";"'),
        ("$MAINPID", "$MAINPID"),
    ],
)
def test_arguments_reach_the_program_as_they_are(argument, word):
    assert command_line(("/bin/x", argument)) == f"/bin/x {word}"


def test_a_program_with_a_prefix_and_a_space():
    assert command_line(("/opt/my program", "x"), prefix="+") == '"+/opt/my program" x'
    with pytest.raises(ValueError, match="dollar"):
        command_line(("/opt/$x",))
    with pytest.raises(ValueError, match="control character"):
        command_line(("/bin/x", "a\x01"))


def test_an_exception_says_why():
    text = systemd_unit(GATEWAY)
    assert "# CAP_NET_BIND_SERVICE: the door is port 443\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n" in text
    assert "# IPAddressDeny is left out: clients come from any address\n" in text
    assert not re.search(r"^IPAddress", text, re.MULTILINE)
    with pytest.raises(ValueError, match="needs a reason"):
        systemd_unit(replace(ENGINE, sandbox_exceptions={"PrivateDevices": ("no", " ")}))


def test_an_exception_replaces_its_line_and_a_further_directive_is_added():
    exceptions = {"PrivateDevices": ("no", "uses a GPU"), "DeviceAllow": (("/dev/a rw", "/dev/b rw"), "the GPU's own")}
    lines = systemd_unit(replace(ENGINE, sandbox_exceptions=exceptions)).splitlines()
    assert lines[lines.index("# uses a GPU") + 1] == "PrivateDevices=no"
    assert "PrivateDevices=yes" not in lines
    assert lines[lines.index("# the GPU's own") + 1 :][:2] == ["DeviceAllow=/dev/a rw", "DeviceAllow=/dev/b rw"]


@pytest.mark.parametrize(
    "change",
    [
        {"command": ("/opt/engine/bin/python", "/opt/other.py")},
        {"environment": {"GREETING": "other"}},
        {"restart_files": ("/etc/other",)},
        {"sandbox_exceptions": {"PrivateDevices": ("no", "a GPU")}},
    ],
)
def test_another_definition_has_another_identity(change):
    assert identity(replace(ENGINE, **change)) != identity(ENGINE)
    assert f" started {identity(ENGINE)} " in systemd_unit(ENGINE)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": "a b"},
        {"command": ()},
        {"command": ("python",)},
        {"restart_files": ("relative",)},
        {"restart_files": ("/line\nbreak",)},
        {"reload_files": ("/etc/x",), "reload_command": ()},
    ],
)
def test_what_is_no_service(change):
    with pytest.raises(ValueError, match=r"service|absolute path"):
        replace(ENGINE, **change)


def test_what_is_read_at_the_start():
    assert ENGINE.started_with == (
        "/etc/systemd/system/engine.service",
        "/etc/engine/secrets.env",
        "/etc/engine/a file.json",
    )


def lines_of(*paths):
    """What the recorder would note about `paths`."""
    return subprocess.run(
        ["sh", "-c", STAMP_LINES, "lines", *map(str, paths)], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_a_record_changes_with_the_file(tmp_path):
    file, folder, big = tmp_path / "a 'file'", tmp_path / "folder", tmp_path / "big"
    assert lines_of(file) == [f"absent  {file}"]
    file.write_text("one")
    folder.mkdir()
    with big.open("wb") as sparse:
        sparse.truncate(65 * 2**20)
    before = lines_of(file, folder, big)
    assert len(before) == 3
    assert lines_of(file, folder, big) == before
    file.write_text("two")
    (folder / "new").touch()
    os.utime(big, ns=(1, 1))
    after = lines_of(file, folder, big)
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert f"{65 * 2**20} " in before[2], "a big file was read"


def test_the_recorder_is_a_script_of_plain_sh(tmp_path):
    script = tmp_path / "started-with"
    script.write_text(RECORDER)
    shells = [shell for shell in ("dash", "sh", "bash") if shutil.which(shell)]
    for shell in shells:
        assert subprocess.run([shell, "-n", script], capture_output=True, check=False).returncode == 0, shell


def analyze(*arguments):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed on this machine")
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


def existing(service):
    """`service` with programs that this machine has: systemd looks for them."""
    reload_command = ("/bin/true", *service.reload_command[1:]) if service.reload_command else ()
    return replace(
        service,
        command=("/bin/true", *service.command[1:]),
        reload_command=reload_command,
        environment_file="",
        user="",
    )


@pytest.mark.parametrize("service", [ENGINE, GATEWAY], ids=str)
def test_systemd_accepts_it(service, tmp_path):
    text = systemd_unit(existing(service)).replace("/usr/local/lib/boxwright/started-with", "/bin/true")
    unit = tmp_path / f"{service.name}.service"
    unit.write_text(text)
    found = analyze("verify", "--man=no", "--recursive-errors=no", unit)
    complaints = [line for line in found.stderr.splitlines() if unit.name in line]
    assert not complaints
    unit.write_text(text.replace("ProtectHome=yes", "ProtectHome=perhaps"))
    assert unit.name in analyze("verify", "--man=no", unit).stderr, "systemd-analyze does not look"


@pytest.mark.parametrize("service", [ENGINE, GATEWAY], ids=str)
def test_exposure(service, tmp_path):
    unit = tmp_path / f"{service.name}.service"
    unit.write_text(systemd_unit(service))
    if not re.search(r"--offline", analyze("--help").stdout):
        pytest.skip("this machine's systemd-analyze cannot look at a file that is not installed")
    said = analyze("security", "--offline=true", "--no-pager", unit).stdout
    exposure = float(re.search(r"Overall exposure level for .*: ([0-9.]+)", said).group(1))
    assert exposure <= 1.5, said


def test_every_line_of_the_sandbox_is_rendered():
    lines = systemd_unit(ENGINE).splitlines()
    for directive, value in SANDBOX.items():
        for one in (value,) if isinstance(value, str) else value:
            assert f"{directive}={one}" in lines
