"""NVIDIA's driver on a Debian machine with real apt, systemd and Docker, and doubles of what needs a card.

The doubles are tests/doubles/nvidia. The machine says that it is an Ubuntu, so that packages have Ubuntu's names.
"""

import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from harness import run
from machine import Machine
from pyinfra import host
from signed_repository import Key, Server

from boxwright.facts.nvidia import Driver
from boxwright.operations import apt
from boxwright.operations import nvidia as operations
from boxwright.preflight import Machine as Examined
from boxwright.settings import parse_box
from roles.docker import tasks as docker
from roles.nvidia import checks, tasks
from roles.registry import Box
from tests.doubles.nvidia import packages

pytestmark = pytest.mark.lab

SMI = "nvidia-smi --query-gpu=index,driver_version,persistence_mode --format=csv,noheader 2>&1"
# An engine that computes on the card.
ON_THE_CARD = {
    "llamacpp_graphics": "nvidia",
    "llamacpp_requirements": f"xllamacpp==2026.10 --hash=sha256:{'0' * 64}\n",
}
UBUNTU = Examined(
    "Linux",
    "x86_64",
    "ubuntu",
    "24.04",
    systemd=True,
    memory=2**34,
    disk_free=2**34,
    codename="noble",
    nvidia_cards=("0000:01:00.0",),
)


def a_box(**variables):
    """The settings of a box without engines."""
    given = {
        "gateway_names": ["llm.example"],
        "openwebui_enabled": False,
        "nvidia_enabled": True,
        "inference_models": [{"name": "local-llm", "path": "/srv/model.gguf"}],
    }
    return parse_box(Box, "box", (), {**given, **variables}, None, None)


class Site:
    """A machine with a card, a repository with drivers for it, and what an operator does."""

    def __init__(self, folder):
        self.key = Key(created=datetime.now(UTC) - timedelta(days=1))
        self.folder = folder
        # The machine's kernel is that of this one.
        self.kernel = os.uname().release
        (folder / "debs").mkdir()
        self.debs = packages.tools(folder / "debs")
        for flavour in ("570-server-open", "580-server-open", "580-server"):
            version = "570.195.03" if flavour.startswith("570") else "580.95.05"
            self.debs += packages.driver(folder / "debs", flavour, version, self.kernel)
        self.server = Server(folder)
        self.publish()
        self.machine = Machine()
        self.here = self.machine.sh("ip route show default | cut -d' ' -f3").strip()
        address = f"http://{self.here}:{self.server.port}"
        self.repository = replace(
            tasks.REPOSITORY,
            url=f"{address}/site",
            key_url=f"{address}/site/key.asc",
            key_fingerprint=self.key.fingerprint,
        )
        self.variables = {}
        for name in ("modprobe", "modinfo", "boot"):
            self.machine.put(f"/usr/local/sbin/{name}", packages.program(name).encode())
        self.machine.put(
            "/etc/systemd/system/double-boot.service",
            b"[Unit]\nDefaultDependencies=no\nBefore=basic.target\nAfter=local-fs.target\n[Service]\nType=oneshot\n"
            b"ExecStart=/usr/local/sbin/boot\n[Install]\nWantedBy=basic.target\n",
        )
        # The archive of the distribution: the same packages, from a source that the box has.
        self.machine.put("/etc/apt/keyrings/archive.asc", self.key.public())
        self.machine.put(
            "/etc/apt/sources.list.d/archive.sources",
            f"Types: deb\nURIs: {address}/archive\nSuites: /\nSigned-By: /etc/apt/keyrings/archive.asc\n".encode(),
        )
        said = self.machine.sh(
            "chmod +x /usr/local/sbin/*; systemctl enable --quiet --now double-boot "
            "&& apt-get --quiet=2 update && echo ok"
        )
        assert said.split()[-1] == "ok", said

    def publish(self):
        for name in ("archive", "site"):
            packages.publish_flat(self.folder / name, self.key, self.debs)

    def sh(self, text):
        return self.machine.sh(text).strip()

    def answer(self, asked):
        """As the machine; a restart that an operation begins is one of its container."""
        if "systemctl reboot" in asked.text:
            self.machine.reboot()
            return True, []
        return self.machine.answer(asked)

    def apply(self, machine=UBUNTU, **variables):
        box = a_box(**{**self.variables, "docker_enabled": False, **variables})
        return run(lambda: tasks.apply(box, machine), self.answer)

    def changes(self, **variables):
        """Which steps changed something; the run must succeed."""
        result = self.apply(**variables)
        assert result.ok, result.printed
        names = re.findall(r"^--> Starting operation: nvidia: (.*?)\s*$", result.printed, re.M)
        return [name for name, changed in zip(names, result.changed, strict=True) if changed]

    def fact(self):
        """What the fact about the driver reads on the machine."""
        found = []
        result = run(lambda: found.append(host.get_fact(Driver)), self.answer)
        assert result.ok, result.printed
        return found[0]

    def says(self, **variables):
        """What a run prints that must succeed and change nothing."""
        result = self.apply(**variables)
        assert result.ok, result.printed
        assert not any(result.changed), result.printed
        return result.printed

    def fails(self, **variables):
        """What a failing run prints."""
        result = self.apply(**variables)
        assert not result.ok, result.printed
        return result.printed

    def upgrade(self, version):
        """The archive gets another version of a driver, and apt installs it as it does for whoever asks it to."""
        for flavour in ("580-server-open", "580-server"):
            self.debs += packages.driver(self.folder / "debs", flavour, version, self.kernel)
        self.publish()
        said = self.sh("apt-get --quiet=2 update && apt-get --quiet=2 --assume-yes upgrade >/dev/null && echo ok")
        assert said.split()[-1] == "ok", said

    @property
    def smi(self):
        return self.sh(SMI)

    def remove(self):
        result = run(lambda: tasks.remove(a_box(), True), self.answer)
        assert result.ok, result.printed
        return any(result.changed)

    def packages(self):
        listed = self.sh("dpkg-query --show --showformat '${db:Status-Abbrev} ${Package} ${Version}\\n' '*nvidia*'")
        return {line.split()[1] for line in listed.splitlines() if line.startswith("ii ")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("nvidia"))
    before = tasks.REPOSITORY
    tasks.REPOSITORY = site.repository
    yield site
    tasks.REPOSITORY = before
    site.machine.close()
    site.server.close()
    site.key.close()


@pytest.fixture
def ready(site):
    """The site with a driver at work and nothing left to do."""
    site.sh("rm -f /opt/double/refuse /opt/double/fallen /usr/local/bin/mokutil")
    assert site.apply(nvidia_reboot="when_needed").ok
    assert site.changes() == []
    return site


def test_a_box_without_a_card_is_left_alone(site):
    before = site.sh("dpkg-query --show; find /etc /var/lib/boxwright -newer /proc/1 -type f 2>/dev/null")
    result = site.apply(machine=replace(UBUNTU, nvidia_cards=()), nvidia_reboot="when_needed")
    assert (result.ok, result.changed) == (True, [False])
    assert "there is no NVIDIA card in the box" in result.printed
    assert site.sh("dpkg-query --show; find /etc /var/lib/boxwright -newer /proc/1 -type f 2>/dev/null") == before
    # The same where the card is asked for on the machine itself.
    site.sh("umount /sys/bus/pci/devices")
    assert site.fact().cards == {}
    site.sh("mount --bind /opt/double/pci /sys/bus/pci/devices")
    assert site.fact().cards == {"0000:01:00.0": "nouveau"}


def test_installed_and_at_work_after_a_restart_by_hand(site):
    before = site.packages()
    assert site.changes() == [
        "install what knows the card",
        "install the driver",
        "note what the persistence daemon was started with",
        "keep the persistence daemon",
    ]
    assert site.packages() - before == {
        "linux-modules-nvidia-580-server-open-generic",
        "nvidia-headless-no-dkms-580-server-open",
        "nvidia-utils-580-server",
        "libnvidia-compute-580-server",
        "nvidia-compute-utils-580-server",
    }
    # It is not restarted without permission, and every run says that it must be.
    said = site.says()
    assert "nouveau holds the card" in said
    assert "nvidia_reboot: when_needed" in said
    # Something that computes on the card cannot do without.
    assert "nouveau holds the card" in site.fails(**ON_THE_CARD)
    site.machine.reboot()
    assert site.smi == "0, 580.95.05, Disabled"
    assert site.changes(**ON_THE_CARD) == ["persistence daemon"]
    assert site.smi == "0, 580.95.05, Enabled"
    assert site.changes() == []


def test_the_persistence_daemon_comes_back_with_a_boot(ready):
    ready.machine.reboot()
    assert ready.smi == "0, 580.95.05, Enabled"
    assert ready.changes() == []


def test_a_driver_changed_under_the_running_one_is_named_and_restarted_when_permitted(ready):
    ready.upgrade("580.126.09")
    assert "Driver/library version mismatch" in ready.smi
    said = ready.says()
    assert "the kernel runs NVIDIA's module 580.95.05, and the libraries are 580.126.09" in said
    assert ready.changes(nvidia_reboot="when_needed") == ["restart the box", "persistence daemon"] or ready.smi
    assert ready.smi == "0, 580.126.09, Enabled"
    assert ready.changes(nvidia_reboot="when_needed") in ([], ["restart the box"])
    assert ready.changes(nvidia_reboot="when_needed") == []


def test_a_restart_that_did_not_help_is_not_repeated(ready):
    """The double's module is then the one of before, as from an initramfs that nobody made anew."""
    version = ready.sh("cat /lib/modules/*/kernel/double/nvidia.version")
    try:
        ready.sh("echo 570.1.1 >$(ls /lib/modules/*/kernel/double/nvidia.version)")
        ready.machine.reboot()
        first = ready.apply(nvidia_reboot="when_needed")
        assert first.changed[4] is True, first.printed
        assert "the box was restarted, and that did not help" in ready.fails(nvidia_reboot="when_needed")
    finally:
        ready.sh(f"echo {version} >$(ls /lib/modules/*/kernel/double/nvidia.version)")
        ready.machine.reboot()
    assert ready.changes(nvidia_reboot="when_needed") == ["restart the box"], "the record of the restart is left"
    assert ready.sh(f"ls {operations.RESTARTED} 2>&1").endswith("No such file or directory")


def test_what_was_changed_by_hand_is_put_right(ready):
    ready.sh("systemctl stop nvidia-persistenced; rm /run/double-persistence")
    assert ready.changes() == ["persistence daemon"]
    ready.sh("systemctl disable --quiet nvidia-persistenced")
    assert ready.changes() == ["persistence daemon"]
    ready.sh("echo '[Unit]' >/etc/systemd/system/nvidia-persistenced.service.d/boxwright-kept.conf")
    assert "keep the persistence daemon" in ready.changes()
    # A package that a person removed, or that a run which was killed had not come to.
    ready.sh("apt-get --quiet=2 --assume-yes remove nvidia-utils-580-server")
    assert "install the driver" in ready.changes()
    ready.sh("rm /opt/double/proc/nvidia/version")
    assert ready.changes() == ["load the driver"]
    assert ready.changes() == []
    assert ready.smi.endswith("Enabled")


def test_another_branch_and_another_kind_of_modules(ready):
    assert "install the driver" in ready.changes(nvidia_driver="570-server", nvidia_reboot="when_needed")
    assert ready.smi == "0, 570.195.03, Enabled"
    # What is there stays when the newest is not asked for by name.
    assert ready.changes(nvidia_driver="auto") in ([], ["restart the box"])
    assert "install the driver" in ready.changes(
        nvidia_driver="580-server", nvidia_modules="proprietary", nvidia_reboot="when_needed"
    )
    assert "linux-modules-nvidia-580-server-generic" in ready.packages()
    assert "linux-modules-nvidia-570-server-open-generic" not in ready.packages()
    said = ready.fails(nvidia_driver="610")
    assert "`nvidia_driver: 610` does not fit the card, or is not in the archive" in said
    assert "580-server, 570-server, 570" in said


def test_secure_boot_refuses_the_module_and_the_way_out_is_told(ready):
    ready.machine.put("/usr/local/bin/mokutil", b"#!/bin/sh\necho SecureBoot enabled\n")
    ready.machine.put("/opt/double/refuse", b"Key was rejected by service\n")
    ready.sh("chmod +x /usr/local/bin/mokutil; rm /opt/double/proc/nvidia/version")
    said = ready.fails()
    assert "could not insert 'nvidia': Key was rejected by service" in said
    assert "mokutil --import /var/lib/shim-signed/mok/MOK.der" in said
    assert "Enroll MOK" in said
    ready.sh("rm /opt/double/refuse")
    assert ready.changes() == ["load the driver"]


def test_a_card_that_fell_off_the_bus(ready):
    ready.sh("touch /opt/double/fallen")
    assert "nvidia-smi fails: No devices were found" in ready.says()
    assert "No devices were found" in ready.fails(**ON_THE_CARD)


IMAGE = """
mkdir -p /tmp/image/bin && cp /bin/busybox /tmp/image/bin && ln -s busybox /tmp/image/bin/sh
tar -C /tmp/image -c . | docker import - example.test/tiny:1 >/dev/null
"""


def test_containers_keep_the_card_over_a_reload_of_systemd(ready):
    wanted = {"docker_enabled": True}
    box = a_box(**wanted)
    here = replace(UBUNTU, distribution="debian", release="13")
    result = ready.machine.run(lambda: (docker.apply(box, here), apt.packages(["busybox-static"])))
    assert result.ok, result.printed
    assert json.loads(ready.sh("cat /etc/docker/daemon.json"))["features"] == {"cdi": True}
    assert "cdi" not in docker.configuration(box, replace(here, nvidia_cards=())).get("features", {})

    changed = ready.changes(**wanted)
    assert changed[:2] == ["NVIDIA's repository of the container toolkit", "install the container toolkit"]
    assert ready.changes(**wanted) == []
    ready.sh(IMAGE)
    run_it = "docker run --rm --network none --device nvidia.com/gpu=all example.test/tiny:1 /bin/busybox"
    assert ready.sh(f"{run_it} ls /dev/nvidia0 2>&1") == "/dev/nvidia0"
    ready.sh(
        "docker run --detach --name card --network none --device nvidia.com/gpu=all example.test/tiny:1 "
        "/bin/busybox sleep 1000"
    )
    open_it = "docker exec card /bin/busybox sh -c ': >/dev/nvidia0 && echo open' 2>&1"
    assert ready.sh(open_it) == "open"
    ready.sh("systemctl daemon-reload")
    assert ready.sh(open_it) == "open"
    ready.sh("docker rm --force card")

    # The specification is of the driver that runs: after an upgrade, after a boot, and after somebody took it away.
    ready.upgrade("580.159.04")
    assert ready.apply(**wanted, nvidia_reboot="when_needed").ok
    assert ready.smi == "0, 580.159.04, Enabled"
    assert "libcuda.so.580.159.04" in ready.sh("cat /var/run/cdi/nvidia.yaml")
    assert ready.sh(f"{run_it} ls /dev/nvidia0 2>&1") == "/dev/nvidia0"
    ready.changes(**wanted)
    ready.sh("rm /var/run/cdi/nvidia.yaml; systemctl disable --quiet --now nvidia-cdi-refresh.path")
    assert ready.changes(**wanted) == ["cards for containers"]
    assert ready.sh("systemctl is-enabled nvidia-cdi-refresh.path") == "enabled"
    assert ready.changes(**wanted) == []


def test_what_newer_toolkits_write_is_read_by_this_docker(ready):
    """nvidia-ctk from 1.19 on writes specifications of version 0.7.0."""
    if not ready.sh("command -v docker"):
        pytest.skip("Docker was not installed by the test before")
    ready.sh("mkdir -p /opt/double; echo 0.7.0 >/opt/double/cdi-version; systemctl restart nvidia-cdi-refresh.service")
    said = ready.sh(
        "grep -c 'cdiVersion: 0.7.0' /var/run/cdi/nvidia.yaml; docker run --rm --network none "
        "--device nvidia.com/gpu=all example.test/tiny:1 /bin/busybox ls /dev/nvidia0 2>&1"
    )
    assert said.split() == ["1", "/dev/nvidia0"], said


class Shell:
    """The part of testinfra's host that the role's checks use, on the machine."""

    def __init__(self, machine):
        self.machine = machine

    def run(self, command):
        code, out, err = self.machine._exec(["sh", "-c", command])
        return SimpleNamespace(rc=code, stdout=out, stderr=err)

    def check_output(self, command):
        said = self.run(command)
        assert said.rc == 0, said.stderr
        return said.stdout.strip()

    def service(self, name):
        return SimpleNamespace(is_enabled=self.run(f"systemctl is-enabled --quiet {name}").rc == 0)

    def file(self, path):
        return SimpleNamespace(exists=self.run(f"test -e {path}").rc == 0)


def test_the_checks_of_the_role_hold_and_see_what_is_wrong(ready):
    host, box = Shell(ready.machine), a_box()
    checks.test_no_restart_is_due(host)
    checks.test_cards_answer(host)
    checks.test_persistence(host, box)
    checks.test_the_next_start_has_the_module(host)
    # The libraries of another version, as an upgrade leaves them; and a kernel that came without modules.
    library = ready.sh("readlink -f /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
    ready.sh(f"cp {library} {library}.9; ln -sf {library}.9 /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
    try:
        with pytest.raises(AssertionError, match=r"the box must be restarted.*Driver/library version mismatch"):
            checks.test_no_restart_is_due(host)
        with pytest.raises(AssertionError, match="Failed to initialize NVML"):
            checks.test_cards_answer(host)
    finally:
        ready.sh(f"ln -sf {library} /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1; rm {library}.9")
    ready.sh("mkdir -p /boot /lib/modules/9.9.9-new; touch /boot/vmlinuz-9.9.9-new")
    try:
        with pytest.raises(AssertionError, match=r"9\.9\.9-new has no NVIDIA module"):
            checks.test_the_next_start_has_the_module(host)
    finally:
        ready.sh("rm -rf /lib/modules/9.9.9-new /boot/vmlinuz-9.9.9-new")
    ready.sh("systemctl disable --quiet --now nvidia-persistenced; rm -f /run/double-persistence")
    with pytest.raises(AssertionError):
        checks.test_persistence(host, box)


def test_removal_takes_everything_back_and_twice_changes_nothing(ready):
    assert ready.remove()
    assert ready.packages() == set()
    left = ready.sh(
        "ls -d /etc/systemd/system/nvidia-persistenced* /etc/systemd/system/*/nvidia-* /var/run/cdi/nvidia.yaml "
        "/etc/apt/*/boxwright-nvidia* /var/lib/boxwright/nvidia* 2>/dev/null"
    )
    assert left == ""
    assert not ready.remove()
