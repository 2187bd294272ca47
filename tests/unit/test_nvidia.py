"""Which driver belongs to a card, and what is wrong with the one that is there: pure decisions on real outputs."""

from dataclasses import replace

import pytest

from boxwright.nvidia import (
    HELD_DRIVER,
    HELD_KERNEL,
    DriverState,
    NoDriver,
    Offer,
    Source,
    choose,
    debian_packages,
    diagnose,
    module_version,
    non_free,
    of_driver,
    offers,
    owner_key_help,
    secure_boot,
)

# `ubuntu-drivers list --gpgpu` on real machines, as people published it: Ubuntu 22.04 with a card of the kind before
# Turing, 24.04 (HWE kernel) with a GeForce RTX 3090, 24.04 with RTX PRO 6000 cards of Blackwell in July 2026.
JAMMY = """\
nvidia-driver-418-server, (kernel modules provided by nvidia-dkms-418-server)
nvidia-driver-470-server, (kernel modules provided by linux-modules-nvidia-470-server-generic-hwe-22.04)
nvidia-driver-535, (kernel modules provided by linux-modules-nvidia-535-generic-hwe-22.04)
nvidia-driver-470, (kernel modules provided by linux-modules-nvidia-470-generic-hwe-22.04)
nvidia-driver-545, (kernel modules provided by nvidia-dkms-545)
nvidia-driver-535-server, (kernel modules provided by linux-modules-nvidia-535-server-generic-hwe-22.04)
nvidia-driver-390, (kernel modules provided by nvidia-dkms-390)
nvidia-driver-450-server, (kernel modules provided by nvidia-dkms-450-server)
""".splitlines()
NOBLE = """\
nvidia-driver-570-server-open, (kernel modules provided by linux-modules-nvidia-570-server-open-generic-hwe-24.04)
nvidia-driver-580-server-open, (kernel modules provided by linux-modules-nvidia-580-server-open-generic-hwe-24.04)
nvidia-driver-535-server, (kernel modules provided by linux-modules-nvidia-535-server-generic-hwe-24.04)
nvidia-driver-570-server, (kernel modules provided by linux-modules-nvidia-570-server-generic-hwe-24.04)
nvidia-driver-535, (kernel modules provided by linux-modules-nvidia-535-generic-hwe-24.04)
nvidia-driver-580-server, (kernel modules provided by linux-modules-nvidia-580-server-generic-hwe-24.04)
nvidia-driver-570-open, (kernel modules provided by linux-modules-nvidia-570-open-generic-hwe-24.04)
nvidia-driver-580-open, (kernel modules provided by linux-modules-nvidia-580-open-generic-hwe-24.04)
nvidia-driver-535-server-open, (kernel modules provided by linux-modules-nvidia-535-server-open-generic-hwe-24.04)
nvidia-driver-570, (kernel modules provided by linux-modules-nvidia-570-generic-hwe-24.04)
nvidia-driver-535-open, (kernel modules provided by linux-modules-nvidia-535-open-generic-hwe-24.04)
nvidia-driver-580, (kernel modules provided by linux-modules-nvidia-580-generic-hwe-24.04)
""".splitlines()
BLACKWELL = """\
udevadm hwdb is deprecated. Use systemd-hwdb instead.
udevadm hwdb is deprecated. Use systemd-hwdb instead.
nvidia-driver-595-server-open, (kernel modules provided by linux-modules-nvidia-595-server-open-generic)
nvidia-driver-580-server-open, (kernel modules provided by linux-modules-nvidia-580-server-open-generic)
nvidia-driver-595-server, (kernel modules provided by linux-modules-nvidia-595-server-generic)
nvidia-driver-580-server, (kernel modules provided by linux-modules-nvidia-580-server-generic)
nvidia-driver-595-open, (kernel modules provided by linux-modules-nvidia-595-open-generic)
nvidia-driver-580-open, (kernel modules provided by linux-modules-nvidia-580-open-generic)
nvidia-driver-595, (kernel modules provided by linux-modules-nvidia-595-generic)
nvidia-driver-580, (kernel modules provided by linux-modules-nvidia-580-generic)
""".splitlines()

PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22-I3-B17-02-5)  \
Tue Sep 23 09:55:41 UTC 2025
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04.2)
"""
ARM = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  595.71  Release Build  (x@y)  Tue Jun 23 2026\n"


class TestOffers:
    def test_lines_that_are_no_offers_are_passed_by(self) -> None:
        junk = ["", "nvidia-driver-999", "nvidia-driver-470, (kernel modules provided by None)", "aplay not found"]
        assert len(offers(BLACKWELL)) == 8
        assert offers(junk) == ()
        assert offers(JAMMY)[1] == Offer("470-server", "linux-modules-nvidia-470-server-generic-hwe-22.04")

    @pytest.mark.parametrize(
        ("lines", "driver", "modules", "chosen"),
        [
            (JAMMY, "auto", "auto", "535-server"),
            (JAMMY, "545", "auto", "545"),
            (JAMMY, "535", "proprietary", "535"),
            (NOBLE, "auto", "auto", "580-server-open"),
            (NOBLE, "auto", "proprietary", "580-server"),
            (NOBLE, "570-server", "auto", "570-server-open"),
            (NOBLE, "535", "open", "535-open"),
            (BLACKWELL, "auto", "auto", "595-server-open"),
            (BLACKWELL, "580", "auto", "580-open"),
        ],
    )
    def test_which_is_chosen(self, lines: list[str], driver: str, modules: str, chosen: str) -> None:
        assert choose(offers(lines), driver, modules).flavour == chosen  # type: ignore[arg-type]

    def test_built_modules_come_before_a_newer_branch_without(self) -> None:
        found = offers(
            ["nvidia-driver-610-server-open, (kernel modules provided by nvidia-dkms-610-server-open)", *NOBLE]
        )
        assert choose(found, "auto", "auto").flavour == "580-server-open"
        assert choose(found, "610-server", "auto").flavour == "610-server-open"

    @pytest.mark.parametrize(
        ("lines", "driver", "modules", "said"),
        [
            ([], "auto", "auto", "`restricted` and `multiverse`"),
            (NOBLE, "610", "auto", "there is: 580-server, 570-server, 535-server, 580, 570, 535"),
            (JAMMY, "auto", "open", "`nvidia_modules: open`"),
        ],
    )
    def test_where_there_is_none(self, lines: list[str], driver: str, modules: str, said: str) -> None:
        with pytest.raises(NoDriver, match=r"(?s).") as error:
            choose(offers(lines), driver, modules)  # type: ignore[arg-type]
        assert said in str(error.value)

    def test_packages(self) -> None:
        assert choose(offers(BLACKWELL), "auto", "auto").packages("6.8.0-134-generic") == (
            "linux-modules-nvidia-595-server-open-generic",
            "nvidia-headless-no-dkms-595-server-open",
            "nvidia-utils-595-server",
        )
        # Modules that are built on the box need the headers of its kernel.
        assert choose(offers(JAMMY), "545", "auto").packages("6.5.0-41-generic") == (
            "linux-headers-6.5.0-41-generic",
            "nvidia-dkms-545",
            "nvidia-headless-no-dkms-545",
            "nvidia-utils-545",
        )


class TestDebian:
    def test_packages(self) -> None:
        assert "nvidia-kernel-dkms" in debian_packages("auto", "x86_64")
        assert "nvidia-open-kernel-dkms" in debian_packages("open", "x86_64")
        assert "linux-headers-arm64" in debian_packages("auto", "aarch64")

    # `apt-get indextargets` of Debian 12 with one source and its key, and of Debian 13 with one without.
    KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"

    def test_the_source_has_the_servers_and_keys_of_the_box(self) -> None:
        found = non_free(
            [
                Source("http://archive.example/debian", "bookworm", "main", self.KEY),
                Source("http://archive.example/debian", "bookworm-updates", "main", self.KEY),
                Source("http://mirror.example/security", "bookworm-security", "main"),
            ]
        )
        entries = [entry.splitlines() for entry in found.split("\n\n")]
        assert entries[1:] == [
            self.entry("http://archive.example/debian", "bookworm", f"Signed-By: {self.KEY}"),
            self.entry("http://archive.example/debian", "bookworm-updates", f"Signed-By: {self.KEY}"),
            self.entry("http://mirror.example/security", "bookworm-security"),
        ]

    @staticmethod
    def entry(site: str, suite: str, *more: str) -> list[str]:
        components = "Components: contrib non-free non-free-firmware"
        return ["Types: deb", f"URIs: {site}", f"Suites: {suite}", components, *more]

    def test_only_what_is_missing_is_added(self) -> None:
        has = [Source("http://d/debian", "trixie", part) for part in ("main", "non-free-firmware")]
        assert "Components: contrib non-free\n" in non_free(has)
        assert non_free([*has, *(Source("http://d/debian", "trixie", part) for part in ("contrib", "non-free"))]) == ""
        # Another publisher's repository has no such parts.
        assert non_free([Source("https://download.docker.com/linux/debian", "trixie", "stable")]) == ""


def test_versions_of_the_loaded_module() -> None:
    assert module_version(PROPRIETARY) == ("550.90.07", False)
    assert module_version(OPEN) == ("580.95.05", True)
    assert module_version(ARM) == ("595.71", True)
    with pytest.raises(ValueError, match="not the version"):
        module_version("GCC version:  gcc version 12.3.0")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("SecureBoot enabled\n", "enabled"),
        ("SecureBoot enabled\nSecureBoot validation is disabled in shim\n", "disabled"),
        ("SecureBoot disabled\n", "disabled"),
        ("SecureBoot disabled\nPlatform is in Setup Mode\n", "disabled"),
        ("EFI variables are not supported on this system\n", "none"),
        ("", "none"),
    ],
)
def test_secure_boot(said: str, found: str) -> None:
    assert secure_boot(said) == found


WORKS = DriverState(
    cards={"0000:01:00.0": "nvidia"},
    kernel="6.8.0-134-generic",
    loaded="580.95.05",
    available="580.95.05",
    libraries="580.95.05",
    kernels=("6.8.0-134-generic",),
    smi="",
    packages=("nvidia-utils-580-server",),
)


@pytest.mark.parametrize(
    ("state", "kind", "restart", "said"),
    [
        (WORKS, "works", False, ""),
        (replace(WORKS, cards={}), "no card", False, "no NVIDIA card"),
        (replace(WORKS, cards={"0000:01:00.0": "vfio-pci"}), "held", False, "virtual machine"),
        (DriverState(cards={"0000:01:00.0": "nouveau"}), "none", False, "no driver is installed"),
        (
            replace(WORKS, libraries="580.126.09", smi="Failed to initialize NVML: Driver/library version mismatch"),
            "mismatch",
            True,
            "module 580.95.05, and the libraries are 580.126.09",
        ),
        (replace(WORKS, loaded="", cards={"0000:01:00.0": "nouveau"}), "held", True, "nouveau"),
        # A restart alone would bring nouveau again.
        (replace(WORKS, loaded="", available="", cards={"0": "nouveau"}, kernels=()), "no module", False, "no NVIDIA"),
        (
            replace(WORKS, loaded="", available="", kernel="6.8.0-131-generic", next_kernel="6.8.0-134-generic"),
            "no module",
            True,
            "the box runs 6.8.0-131-generic",
        ),
        # A newer kernel came without the modules: to start it once more helps nobody.
        (
            replace(WORKS, loaded="", available="", kernel="6.8.0-139-generic", next_kernel="6.8.0-139-generic"),
            "no module",
            False,
            "for the kernel 6.8.0-139-generic (there is one for 6.8.0-134-generic)",
        ),
        (replace(WORKS, loaded="", available="", kernels=()), "no module", False, "could not be built"),
        (replace(WORKS, loaded="", cards={"0000:01:00.0": ""}), "not loaded", False, "not loaded"),
        (replace(WORKS, smi="No devices were found"), "fails", False, "No devices were found"),
    ],
)
def test_diagnosis(state: DriverState, kind: str, restart: bool, said: str) -> None:
    found = diagnose(state)
    assert (found.kind, found.restart) == (kind, restart)
    assert said in found.text
    assert found.load == (kind == "not loaded")


def test_what_to_do_where_secure_boot_refuses() -> None:
    assert "mokutil --import /var/lib/shim-signed/mok/MOK.der" in owner_key_help("ubuntu")
    assert "mokutil --import /var/lib/dkms/mok.pub" in owner_key_help("debian")
    assert "Enroll MOK" in owner_key_help("debian")


def test_what_is_held_against_unattended_upgrades() -> None:
    import re

    def held(name: str, patterns: tuple[str, ...] = HELD_DRIVER) -> bool:
        return any(re.match(pattern, name) for pattern in patterns)

    for names in (offers(NOBLE)[1].packages("6.8.0-1"), debian_packages("auto", "x86_64")[1:]):
        assert [name for name in names if not held(name)] == []
    assert held("nvidia-container-toolkit")
    assert held("libnvidia-compute-580-server")
    assert not held("linux-image-generic")
    assert held("linux-image-generic", HELD_KERNEL)
    assert held("linux-modules-6.8.0-134-generic", HELD_KERNEL)
    assert not any(
        held(name, HELD_DRIVER + HELD_KERNEL) for name in ("openssl", "linux-libc-dev", "libcurl4", "docker-ce")
    )


def test_which_packages_are_a_drivers() -> None:
    for name in (*choose(offers(JAMMY), "545", "auto").packages("6.5.0"), *debian_packages("open", "x86_64")):
        assert of_driver(name), name
    for name in ("nvidia-container-toolkit", "libnvidia-container1", "curl", "mokutil"):
        assert not of_driver(name), name
