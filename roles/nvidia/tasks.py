"""Tasks of the nvidia role."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from boxwright.artifacts import AptRepository
from boxwright.errors import Problem
from boxwright.operations import apt, apt_repositories, files, nvidia, services
from boxwright.preflight import Machine, Need
from boxwright.services import PackagedService
from boxwright.site_mirror.supply import Supply, Target, packages_of
from roles.registry import Box

# What finds a driver for the card, and what tells of Secure Boot.
TOOLS = {"ubuntu": ("ubuntu-drivers-common", "mokutil"), "debian": ("mokutil",)}
PERSISTENCE = PackagedService(
    name="nvidia-persistenced",
    # Ubuntu's unit begins with the mode switched off; the daemon is told by NVIDIA's own tool, whatever its account is.
    settings={"ExecStartPost": "/usr/bin/nvidia-smi --persistence-mode=1"},
)
# Ubuntu's unit is started by a rule of udev, has nothing by which it could be enabled, and ends when nothing needs it.
KEPT = "/etc/systemd/system/nvidia-persistenced.service.d/boxwright-kept.conf"
_KEPT = """\
# Written by boxwright: the daemon starts at boot and stays.
[Unit]
StopWhenUnneeded=no

[Install]
WantedBy=multi-user.target
"""
# https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html; the key is that of
# "NVIDIA CORPORATION (Open Source Projects) <cudatools@nvidia.com>". apt itself fills in the architecture.
REPOSITORY = AptRepository(
    name="nvidia-container-toolkit",
    url="https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH)",
    suite="/",
    components=(),
    key_url="https://nvidia.github.io/libnvidia-container/gpgkey",
    key_fingerprint="C95B321B61E88C1809C4F759DDCAE044F796ECB0",
    licence="Apache-2.0",
)
TOOLKIT = ("nvidia-container-toolkit",)
# The toolkit leaves it when it goes, and Docker would go on handing out what is no longer there.
SPECIFICATION = "/var/run/cdi/nvidia.yaml"


def supply(box: Box, target: Target) -> Supply:
    """The container toolkit. The driver comes from the distribution."""
    if not (box.nvidia.enabled and _containers(box)):
        return Supply()
    here = replace(REPOSITORY, url=REPOSITORY.url.replace("$(ARCH)", target.architecture))
    return Supply(packages=(packages_of(here, TOOLKIT, target),))


def need(box: Box) -> Need:
    """What of the declared driver the distribution cannot give."""
    return Need(conditions=(partial(_unfit, box),)) if box.nvidia.enabled else Need()


def _unfit(box: Box, machine: Machine) -> Iterable[Problem]:
    if machine.distribution == "debian" and machine.nvidia_cards and box.nvidia.driver != "auto":
        yield Problem(
            code="BW130",
            variable="nvidia_driver",
            message=f"`nvidia_driver: {box.nvidia.driver}` names a branch, and Debian {machine.release} has one driver",
            help="set `nvidia_driver: auto`, or install a driver of NVIDIA's own repository by hand, which is kept",
        )


def needed(box: Box) -> bool:
    """Whether an engine of the box computes on a card of NVIDIA, so that the run cannot end well without the driver."""
    cards = {
        "llamacpp": box.llamacpp.graphics == "nvidia",
        "ollama": box.ollama.graphics == "nvidia",
        "vllm": box.vllm.device == "cuda",
    }
    return any(computes and box.inference.runs(engine) for engine, computes in cards.items())


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order, on a box that has a card."""
    if not box.nvidia.enabled:
        return
    if not machine.nvidia_cards:
        nvidia.no_card(name="nvidia: there is no card, nothing to do")
        return
    install(box, machine)
    configure(box)
    activate(box, machine)


def install(box: Box, machine: Machine) -> None:
    """The driver, and for containers the toolkit. The driver that is loaded stays the one it was."""
    apt.packages(TOOLS[machine.distribution], name="nvidia: install what knows the card")
    if machine.distribution == "debian":
        nvidia.non_free("nvidia-smi", name="nvidia: packages that are not free")
    nvidia.driver(
        driver=box.nvidia.driver,
        modules=box.nvidia.modules,
        distribution=machine.distribution,
        name="nvidia: install the driver",
    )
    if _containers(box):
        apt_repositories.repository(REPOSITORY, box.mirror, name="nvidia: NVIDIA's repository of the container toolkit")
        apt.packages(TOOLKIT, name="nvidia: install the container toolkit")


def configure(box: Box) -> None:
    """The persistence daemon's settings."""
    if box.nvidia.persistence:
        services.unit(name="nvidia: note what the persistence daemon was started with", service=PERSISTENCE)
        files.content(name="nvidia: keep the persistence daemon", path=KEPT, text=_KEPT)


def activate(box: Box, machine: Machine) -> None:
    """The driver at work, after a restart of the box where it needs one and may have it."""
    nvidia.restarted(name="nvidia: restart the box", allowed=box.nvidia.reboot == "when_needed")
    nvidia.loaded(name="nvidia: load the driver", distribution=machine.distribution, needed=needed(box))
    if box.nvidia.persistence:
        nvidia.persistence(name="nvidia: persistence daemon", service=PERSISTENCE)
    if _containers(box):
        nvidia.containers(name="nvidia: cards for containers")


def _containers(box: Box) -> bool:
    return box.nvidia.containers and box.docker.enabled


def remove(box: Box, purge: bool) -> None:
    """Takes everything back that boxwright installed. What of the driver is loaded goes when the box is restarted."""
    if not box.has("nvidia"):
        return
    services.unit_absent(name="nvidia: the persistence daemon's settings go", service=PERSISTENCE)
    nvidia.persistence_absent(name="nvidia: the persistence daemon is as it was", path=KEPT)
    tools = sorted({name for names in TOOLS.values() for name in names})
    nvidia.driver_absent(name="nvidia: remove the driver and its tools", others=(*TOOLKIT, *tools), purge=purge)
    apt_repositories.repository_absent(REPOSITORY.name, name="nvidia: remove NVIDIA's repository")
    files.absent(name="nvidia: remove the specification of the cards", path=SPECIFICATION)
    files.absent(name="nvidia: remove the source of packages that are not free", path=nvidia.NON_FREE)
    files.absent(name="nvidia: remove the record of a restart", path=nvidia.RESTARTED)
