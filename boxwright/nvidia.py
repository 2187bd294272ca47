"""NVIDIA's driver: which one belongs on a box, and what is wrong with the one that is there. Pure functions.

What is known of it comes from `DriverState`, which `boxwright.facts.nvidia` reads on the box in one command.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Modules = Literal["auto", "open", "proprietary"]
SecureBoot = Literal["enabled", "disabled", "none"]

# Packages that unattended-upgrades must leave alone, as it takes them: regular expressions that match from the start
# of a package's name. A new driver under a running one stops everything that computes ("Driver/library version
# mismatch") until the box is restarted.
HELD_DRIVER = (
    "nvidia-",
    "libnvidia-",
    "libcuda1$",
    "libcudadebugger1$",
    "linux-(modules|objects|signatures)-nvidia-",
    "firmware-nvidia-gsp",
    "xserver-xorg-video-nvidia",
    "cuda-drivers",
)
# On Ubuntu the modules are made for one kernel each: a new kernel without them has no driver at its next start.
HELD_KERNEL = ("linux-(image|headers|modules|modules-extra|tools)-", "linux-(generic|virtual|aws|azure|gcp|oem)")

# Where the key lies with which a module was signed that was built on the box itself (shim-signed's and dkms's own
# README), by distribution.
OWNER_KEYS = {"ubuntu": "/var/lib/shim-signed/mok/MOK.der", "debian": "/var/lib/dkms/mok.pub"}


class NoDriver(ValueError):
    """There is no driver for what was asked for; the text says why and what to do."""


@dataclass(frozen=True)
class Offer:
    """One line of `ubuntu-drivers list --gpgpu`: a driver for the card, and the package with its kernel modules."""

    flavour: str
    modules: str

    @property
    def branch(self) -> int:
        """First number of its versions: 580."""
        return int(self.flavour.partition("-")[0])

    @property
    def server(self) -> bool:
        """Whether it is of the branches that NVIDIA supports for servers."""
        return "-server" in self.flavour

    @property
    def open(self) -> bool:
        """Whether the kernel modules are the open ones, which only cards from Turing on (2018) can use."""
        return self.flavour.endswith("-open")

    @property
    def prebuilt(self) -> bool:
        """Whether the modules come built, and signed with a key that Secure Boot accepts."""
        return self.modules.startswith("linux-modules-nvidia-")

    @property
    def name(self) -> str:
        """As `nvidia_driver` names it: without the kind of its modules."""
        return self.flavour.removesuffix("-open")

    def packages(self, kernel: str) -> tuple[str, ...]:
        """What makes it complete on a box without a screen; `kernel` is the running one, as `uname -r` says.

        Not the package nvidia-driver-...: that brings a desktop, and on some releases a compiler to build its modules
        with. `nvidia-utils` is where nvidia-smi is.
        """
        headers = () if self.prebuilt else (f"linux-headers-{kernel}",)
        # From the same source, of the same version; the last two are for video and for NVIDIA's own libraries.
        return (*headers, self.modules, f"nvidia-headless-no-dkms-{self.flavour}", f"nvidia-utils-{self.name}")


def modules_for(flavour: str, kernel: str) -> str:
    """Ubuntu's package with the built modules of a driver for one kernel alone.

    The package that an offer names has those of the newest kernel, which need not be the one that runs.
    """
    return f"linux-modules-nvidia-{flavour}-{kernel}"


_OFFER = re.compile(
    r"nvidia-driver-(?P<flavour>\d{3}(?:-server)?(?:-open)?), \(kernel modules provided by (?P<modules>[a-z0-9.+-]+)\)"
)


def offers(lines: Iterable[str]) -> tuple[Offer, ...]:
    """The drivers in the output of `ubuntu-drivers list --gpgpu` of ubuntu-drivers-common 0.9 to 0.10.

    Other lines are no offers: hints of udevadm, warnings about the kernel, and drivers for which the archive has no
    kernel modules (a bare name, or `None` in their place).
    """
    found = (_OFFER.fullmatch(line.strip()) for line in lines)
    return tuple(Offer(match["flavour"], match["modules"]) for match in found if match and match["modules"] != "None")


def choose(found: Sequence[Offer], driver: str, modules: Modules) -> Offer:
    """The driver to install of those that fit the card. Raises NoDriver where none does.

    `driver` is `auto` or a name such as `580-server` or `595`. Of several, those come first whose modules are built
    and signed, then open modules (cards from Blackwell on have no others, and cards before Turing are not offered
    them), then the branches for servers, then the newest.
    """
    if not found:
        raise NoDriver(
            "ubuntu-drivers knows no driver for the card: the archive's components `restricted` and `multiverse` must "
            "be configured, and a kernel update that waits for a restart must be finished first "
            "(`ubuntu-drivers list --gpgpu` on the box says more)"
        )
    named = [offer for offer in found if driver in ("auto", offer.name)]
    known = ", ".join(dict.fromkeys(offer.name for offer in sorted(found, key=_rank)))
    if not named:
        raise NoDriver(f"`nvidia_driver: {driver}` does not fit the card, or is not in the archive; there is: {known}")
    fitting = [offer for offer in named if modules == "auto" or offer.open == (modules == "open")]
    if not fitting:
        raise NoDriver(
            f"`nvidia_modules: {modules}`: there are no such kernel modules for this card with the driver {driver}; "
            "set `nvidia_modules: auto`"
        )
    return min(fitting, key=_rank)


def _rank(offer: Offer) -> tuple[bool, bool, bool, int]:
    return (not offer.prebuilt, not offer.open, not offer.server, -offer.branch)


def debian_packages(modules: Modules, architecture: str) -> tuple[str, ...]:
    """The driver of Debian's own archive on a box without a screen; `architecture` as `uname -m` says.

    Debian 12 has branch 535, Debian 13 has 550. Both know no card that needs the open modules.
    """
    kind = "nvidia-open-kernel-dkms" if modules == "open" else "nvidia-kernel-dkms"
    headers = {"x86_64": "linux-headers-amd64", "aarch64": "linux-headers-arm64"}[architecture]
    return (headers, kind, "nvidia-smi", "libcuda1", "nvidia-persistenced", "firmware-nvidia-gsp")


@dataclass(frozen=True)
class Source:
    """Where apt takes an archive's lists from, in the words of `apt-get indextargets`: one index of packages.

    `signed_by` is the path of a key, or several with commas between them; empty where the source names none, and
    `inline` where the whole key is written into it.
    """

    site: str
    suite: str
    component: str
    signed_by: str = ""


def _usable(source: Source) -> bool:
    return source.component == "main" and source.signed_by != "inline"


# The parts of Debian's archive in which the driver, what belongs to it and its firmware are.
NON_FREE = ("contrib", "non-free", "non-free-firmware")


def non_free(sources: Iterable[Source]) -> str:
    """A deb822 file that adds Debian's packages that are not free to the suites that the box has; empty for none.

    The same servers and keys: to apt, the same suite with another key is a contradiction ("Conflicting values set for
    option Signed-By").
    """
    text = ""
    known = list(sources)
    for source in dict.fromkeys((one.site, one.suite, one.signed_by) for one in known if _usable(one)):
        site, suite, signed_by = source
        has = {one.component for one in known if (one.site, one.suite) == (site, suite)}
        missing = [part for part in NON_FREE if part not in has]
        if missing:
            text += f"\nTypes: deb\nURIs: {site}\nSuites: {suite}\nComponents: {' '.join(missing)}\n"
            text += f"Signed-By: {signed_by}\n" if signed_by else ""
    return f"# Written by boxwright: the packages that are not free, for NVIDIA's driver.\n{text}" if text else ""


@dataclass(frozen=True)
class DriverState:
    """What a box says of its NVIDIA driver.

    Versions are as NVIDIA writes them (`580.95.05`), empty where there is none: `loaded` is that of the kernel module
    at work, `available` that of the module which modprobe would load into this kernel, `libraries` that of the
    libraries of programs. `kernels` are those for which a module is installed, `next_kernel` is the one that the next
    start takes, empty where that cannot be told. `smi` is what nvidia-smi says where it
    fails, empty where it works; `cards` maps a card's address to the kernel driver that holds it, empty for none.
    `packages` are those that are installed and belong to a driver.
    """

    cards: dict[str, str] = field(default_factory=dict)
    kernel: str = ""
    architecture: str = ""
    loaded: str = ""
    loaded_open: bool = False
    available: str = ""
    libraries: str = ""
    kernels: tuple[str, ...] = ()
    next_kernel: str = ""
    smi: str = "nvidia-smi: not found"
    secure_boot: SecureBoot = "none"
    owner_key: Literal["enrolled", "not enrolled", "none"] = "none"
    packages: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether there is a driver at all, from wherever: packages, or NVIDIA's own installer."""
        return bool(self.loaded or self.libraries or self.packages)


_VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")


def module_version(text: str) -> tuple[str, bool]:
    """Version of the loaded kernel module, and whether it is the open one, from /proc/driver/nvidia/version.

    Raises ValueError for a text that is not of that kind.
    """
    line = next((line for line in text.splitlines() if line.startswith("NVRM version:")), "")
    match = _VERSION.search(line)
    if match is None:
        raise ValueError(f"not the version of NVIDIA's kernel module: {text[:120]!r}")
    return match[1], "Open Kernel Module" in line


def secure_boot(text: str) -> SecureBoot:
    """What `mokutil --sb-state` says. A machine without UEFI has no Secure Boot, and neither has a container."""
    if "SecureBoot enabled" in text:
        # In Setup Mode or with validation switched off in shim, nothing is refused.
        return "disabled" if re.search(r"validation is disabled|Setup Mode", text) else "enabled"
    return "disabled" if "SecureBoot disabled" in text else "none"


@dataclass(frozen=True)
class Diagnosis:
    """How a driver is: `works`, or what is wrong in `text` with the way out; `restart` where only that helps.

    `load` means that the module can be loaded as things are.
    """

    kind: Literal["works", "no card", "none", "mismatch", "held", "no module", "not loaded", "fails"]
    text: str = ""
    restart: bool = False
    load: bool = False


def diagnose(state: DriverState) -> Diagnosis:
    """What is wrong with the driver of a box, the first thing that must be put right."""
    if not state.cards:
        return Diagnosis("no card", "there is no NVIDIA card in the box")
    elsewhere = {address: by for address, by in state.cards.items() if by.startswith("vfio")}
    if elsewhere and len(elsewhere) == len(state.cards):
        return Diagnosis("held", f"the card {', '.join(elsewhere)} is handed on to a virtual machine (vfio-pci)")
    if not state.installed:
        return Diagnosis("none", "no driver is installed")
    if state.loaded and state.libraries and state.loaded != state.libraries:
        return Diagnosis(
            "mismatch",
            f"the kernel runs NVIDIA's module {state.loaded}, and the libraries are {state.libraries} "
            '(NVML: "Driver/library version mismatch"): the driver was changed under the running one; nothing can '
            "compute before the box is restarted",
            restart=True,
        )
    if state.loaded:
        if not state.smi:
            return Diagnosis("works")
        return Diagnosis("fails", f"the driver {state.loaded} is loaded, and nvidia-smi fails: {state.smi}")
    has_module = state.next_kernel in state.kernels if state.next_kernel else bool(state.available)
    if has_module and "nouveau" in state.cards.values():
        return Diagnosis(
            "held",
            "the kernel's own driver nouveau holds the card; NVIDIA's takes its place when the box is restarted",
            restart=True,
        )
    if not state.available:
        if state.next_kernel != state.kernel and state.next_kernel in state.kernels:
            return Diagnosis(
                "no module",
                f"NVIDIA's kernel module is there for {state.next_kernel}, and the box runs {state.kernel}: it needs a "
                "restart into that kernel",
                restart=True,
            )
        others = f" (there is one for {', '.join(state.kernels)})" if state.kernels else ""
        return Diagnosis(
            "no module",
            f"there is no NVIDIA kernel module for the kernel {state.kernel}{others}: the archive has no package with "
            "it (`apt-cache search linux-modules-nvidia` on the box), or it could not be built (`dkms status`)",
        )
    return Diagnosis("not loaded", f"the kernel module {state.available} is not loaded", load=True)


def owner_key_help(distribution: str) -> str:
    """What somebody has to do by hand whose box refuses a module that was built on it."""
    key = OWNER_KEYS.get(distribution, OWNER_KEYS["debian"])
    return (
        f"Secure Boot is on, and accepts only modules that are signed with a key which the machine knows. At the "
        f"machine's own screen, once: `sudo mokutil --import {key}` (choose a password for the next step), restart, "
        "and at the blue screen: Enroll MOK, Continue, Yes, the password, Reboot. Nobody can do that over the network; "
        "the other way is to switch Secure Boot off in the firmware's setup"
    )


# What a module says of a card that is too old or too new for it, or of the wrong kind.
WRONG_MODULES = (
    "It found no card that it can drive: the card may need the other kind of modules (`nvidia_modules`) or another "
    "branch (`nvidia_driver`); on the box, `dmesg` has the reason in the lines that begin with NVRM"
)


def of_driver(package: str) -> bool:
    """Whether a package belongs to a driver: one that `Offer.packages` or `debian_packages` names."""
    return bool(
        re.match(r"(nvidia-(?!container)|libnvidia-(?!container)|linux-modules-nvidia-|linux-headers-)", package)
        or package in ("libcuda1", "firmware-nvidia-gsp")
    )
