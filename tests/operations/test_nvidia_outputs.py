"""What each distribution gets: the real operations and parsers, on a host that answers as real machines did.

Ubuntu's and Debian's outputs are published ones; those of apt on Debian were taken from Debian 12 and 13.
"""

import pytest
from harness import run

from boxwright.operations import nvidia

CARD = ["card=0000:01:00.0 nouveau", "examined=yes"]
# In the words of the published outputs: Ubuntu 22.04 before Turing, 24.04 with Ada, 26.04 as its archive has it.
OFFERS = {
    "22.04": [
        "nvidia-driver-418-server, (kernel modules provided by nvidia-dkms-418-server)",
        "nvidia-driver-470-server, (kernel modules provided by linux-modules-nvidia-470-server-generic-hwe-22.04)",
        "nvidia-driver-535, (kernel modules provided by linux-modules-nvidia-535-generic-hwe-22.04)",
        "nvidia-driver-535-server, (kernel modules provided by linux-modules-nvidia-535-server-generic-hwe-22.04)",
    ],
    "24.04": [
        "udevadm hwdb is deprecated. Use systemd-hwdb instead.",
        "nvidia-driver-570-server, (kernel modules provided by linux-modules-nvidia-570-server-generic)",
        "nvidia-driver-580-server-open, (kernel modules provided by linux-modules-nvidia-580-server-open-generic)",
        "nvidia-driver-595, (kernel modules provided by linux-modules-nvidia-595-generic)",
    ],
    "26.04": [
        "nvidia-driver-595-server-open, (kernel modules provided by linux-modules-nvidia-595-server-open-generic)",
        "nvidia-driver-580-server-open, (kernel modules provided by linux-modules-nvidia-580-server-open-generic)",
        "nvidia-driver-615-open, (kernel modules provided by nvidia-dkms-615-open)",
    ],
}
# The flavour that is chosen of them, and the package with its modules.
CHOSEN = {
    "22.04": ("535-server", "linux-modules-nvidia-535-server-generic-hwe-22.04"),
    "24.04": ("580-server-open", "linux-modules-nvidia-580-server-open-generic"),
    "26.04": ("595-server-open", "linux-modules-nvidia-595-server-open-generic"),
}
NVRM = "loaded=NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@x)"
MISMATCH = [
    "card=0000:01:00.0 nvidia",
    "kernel=6.8.0-134-generic",
    NVRM,
    "library=/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.126.09",
    "smi=Failed to initialize NVML: Driver/library version mismatch",
    "smi=NVML library version: 580.126",
    "package=nvidia-utils-580-server",
    "examined=yes",
]


class Host:
    """Answers the facts; what is installed, it notes."""

    def __init__(self, driver, offers=(), packages=("end",), sources=(), candidate=True):
        self.driver, self.offers, self.packages, self.sources = driver, offers, packages, sources
        self.candidate = candidate
        self.fetched = True
        self.installed, self.written = [], []

    def answer(self, asked):
        if "/proc/driver/nvidia/version" in asked.text and "library=" in asked.text:
            return True, list(self.driver)
        if "ubuntu-drivers list" in asked.text:
            return True, [*self.offers, "end"]
        if "indextargets" in asked.text:
            return True, list(self.sources) if self.fetched else ["examined=yes"]
        if asked.text.endswith("apt update"):
            self.fetched = True
            return True, []
        if "apt-cache policy" in asked.text:
            return True, [*(["yes"] if self.candidate else []), "end"]
        if "note asked" in asked.text:
            self.installed += asked.arguments[3:]
        elif "binary:Package" in asked.text:
            return True, list(self.packages)
        elif asked.stdin:
            self.written.append((asked.arguments[0], asked.stdin))
        elif "printf" in asked.text and "exit 1" in asked.text and len(asked.arguments) == 1:
            return False, [asked.arguments[0]]
        return True, []

    def run(self, deploy):
        return run(deploy, self.answer)


@pytest.mark.parametrize("release", OFFERS)
def test_ubuntu(release):
    host = Host([*CARD[:1], "kernel=6.8.0-1-generic", *CARD[1:]], OFFERS[release])
    assert host.run(lambda: nvidia.driver("auto", "auto", "ubuntu")).changed == [True]
    flavour, modules = CHOSEN[release]
    tools = f"nvidia-utils-{flavour.removesuffix('-open')}"
    now = f"linux-modules-nvidia-{flavour}-6.8.0-1-generic"
    assert host.installed == [modules, f"nvidia-headless-no-dkms-{flavour}", tools, now]
    # With them installed nothing more is asked for, whatever the archive has by now.
    names = ["available=595.71.05", *(f"package={name}" for name in host.installed)]
    again = Host([CARD[0], *names, "examined=yes"], ["nvidia-driver-999, (kernel modules provided by nvidia-dkms-999)"])
    result = again.run(lambda: nvidia.driver("auto", "auto", "ubuntu"))
    assert (result.changed, len(result.asked)) == ([False], 1)


@pytest.mark.parametrize(("modules", "kind"), [("auto", "nvidia-kernel-dkms"), ("open", "nvidia-open-kernel-dkms")])
def test_debian(modules, kind):
    host = Host([CARD[0], "architecture=x86_64", "examined=yes"])
    assert host.run(lambda: nvidia.driver("auto", modules, "debian")).changed == [True]
    assert kind in host.installed
    assert {"linux-headers-amd64", "nvidia-smi", "libcuda1", "firmware-nvidia-gsp"} <= set(host.installed)


def test_a_driver_from_elsewhere_is_left_alone():
    """NVIDIA's own packages on Debian, and its installer on Ubuntu."""
    theirs = ["package=nvidia-driver-cuda", "package=nvidia-kernel-open-dkms", "package=cuda-drivers"]
    for distribution, packages in (("debian", theirs), ("ubuntu", [])):
        host = Host([CARD[0], NVRM, *packages, "examined=yes"], OFFERS["24.04"])
        result = host.run(lambda distribution=distribution: nvidia.driver("auto", "auto", distribution))
        assert (result.ok, result.changed, host.installed) == (True, [False], [])


def test_the_kernel_that_runs_gets_modules_too():
    """As on a machine whose kernel was upgraded, and whose package of modules was not (Ubuntu 24.04, 595-open)."""
    kernel = "6.8.0-139-generic"
    there = ["linux-modules-nvidia-595-open-generic", "nvidia-headless-no-dkms-595-open", "nvidia-utils-595"]
    state = [CARD[0], f"kernel={kernel}", f"next={kernel}", "module=6.8.0-134-generic"]
    host = Host([*state, *(f"package={name}" for name in there), "examined=yes"])
    assert host.run(lambda: nvidia.driver("auto", "auto", "ubuntu")).changed == [True]
    assert host.installed == [f"linux-modules-nvidia-595-open-{kernel}"]
    # An archive that has none is no reason to fail here: the driver's own step says what is missing.
    host = Host([*state, *(f"package={name}" for name in there), "examined=yes"], candidate=False)
    assert host.run(lambda: nvidia.driver("auto", "auto", "ubuntu")).changed == [False]
    assert f"no NVIDIA kernel module for the kernel {kernel}" in host.run(lambda: nvidia.loaded("ubuntu", True)).printed


def test_what_ubuntu_drivers_says_is_told_where_it_offers_nothing():
    said = "WARNING: the running kernel 6.8.0-31 is older than the installed one: restart first"
    host = Host(CARD, [said])
    result = host.run(lambda: nvidia.driver("auto", "auto", "ubuntu"))
    assert not result.ok
    assert said in result.printed
    assert host.installed == []


def test_a_mismatch_is_named_and_only_permitted_restarts_happen():
    host = Host(MISMATCH)
    text = "the kernel runs NVIDIA's module 580.95.05, and the libraries are 580.126.09"
    result = host.run(lambda: nvidia.loaded("ubuntu", needed=False))
    assert (result.ok, result.changed) == (True, [False])
    assert text in result.printed
    assert not host.run(lambda: nvidia.loaded("ubuntu", needed=True)).ok
    assert host.run(lambda: nvidia.restarted(allowed=False)).changed == [False]


DEBIAN_12 = [
    "source=http://archive.example/debian|bookworm|main|/usr/share/keyrings/debian-archive-keyring.gpg",
    "source=http://archive.example/debian|bookworm-updates|main|/usr/share/keyrings/debian-archive-keyring.gpg",
    "source=http://archive.example/debian-security|bookworm-security|main|/usr/share/keyrings/debian-archive-keyring.gpg",
    "examined=yes",
]


def test_debians_packages_that_are_not_free():
    host = Host(CARD, sources=DEBIAN_12)
    assert host.run(lambda: nvidia.non_free("nvidia-smi")).changed == [True]
    ((path, text),) = host.written
    assert path == "/etc/apt/sources.list.d/boxwright-non-free.sources"
    assert text.count("Components: contrib non-free non-free-firmware\n") == 3
    assert text.count("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n") == 3
    # As a fresh image is, which has fetched no lists yet: apt 3.0 names no source then.
    fresh = Host(CARD, sources=DEBIAN_12)
    fresh.fetched = False
    assert fresh.run(lambda: nvidia.non_free("nvidia-smi")).changed == [True]
    assert fresh.written == host.written
    has_it = Host(CARD, sources=["candidate=yes", *DEBIAN_12])
    assert has_it.run(lambda: nvidia.non_free("nvidia-smi")).changed == [False]
    inline = Host(CARD, sources=["source=http://archive.example/debian|trixie|main|inline", "examined=yes"])
    result = inline.run(lambda: nvidia.non_free("nvidia-smi"))
    assert not result.ok
    assert "contrib non-free non-free-firmware" in result.printed


@pytest.mark.parametrize("cut", [[], ["card=0000:01:00.0 nvidia"], ["loaded=GCC version: 12", "examined=yes"]])
def test_an_answer_that_makes_no_sense_fails_the_step(cut):
    assert not Host(cut).run(lambda: nvidia.loaded("ubuntu", needed=False)).ok
