"""Variables of the nvidia role."""

from typing import Literal

from pydantic import Field

from boxwright.nvidia import HELD_DRIVER, HELD_KERNEL
from boxwright.settings import RoleSettings


class NvidiaSettings(RoleSettings, prefix="nvidia", systems={"linux"}):
    """NVIDIA's driver, its persistence daemon, and the toolkit that hands cards to containers."""

    enabled: bool = Field(
        False,
        description="Install the driver and keep it working, on a box that has a card of NVIDIA; on another box "
        "nothing is done. When it is set to false later, everything stays as it is until `boxwright remove`.",
    )
    driver: str = Field(
        "auto",
        pattern=r"^(auto|[1-9][0-9]{2}(-server)?)$",
        description="Branch of the driver on Ubuntu, as `ubuntu-drivers list --gpgpu` names them. `auto` keeps a "
        "driver that is there, from wherever, and else takes the newest branch for servers that fits the card. Debian "
        "has one branch, and `auto` alone.",
        examples=["580-server", "595"],
    )
    modules: Literal["auto", "open", "proprietary"] = Field(
        "auto",
        description="Kind of the kernel modules. Cards from Blackwell on (2025) need the open ones, cards before "
        "Turing (2018) the proprietary ones. `auto` takes open ones on Ubuntu where the card can use them, and "
        "proprietary ones on Debian, whose branches know no card that needs the others.",
    )
    persistence: bool = Field(
        True, description="Keep the driver's hold on a card that nobody uses, so that the next use begins at once."
    )
    reboot: Literal["never", "when_needed"] = Field(
        "never",
        description="Whether a run may restart the box where only that brings the driver to work: after its first "
        "installation, or when it was changed under the running one. With `never` the run says that it is needed.",
    )
    containers: bool = Field(
        True,
        description="Install NVIDIA's container toolkit from NVIDIA's repository when the box has Docker, so that "
        "containers can be given cards by their names (`--device nvidia.com/gpu=all`).",
    )
    hold_kernel: bool = Field(
        True,
        description="Hold the kernel, too, against unattended upgrades: Ubuntu's modules are made for one kernel each, "
        "and a kernel that comes without them has no driver after its first start.",
    )

    @property
    def held(self) -> tuple[str, ...]:
        """Packages that unattended upgrades must leave alone: regular expressions, matched from a name's start."""
        if not self.enabled:
            return ()
        return HELD_DRIVER + (HELD_KERNEL if self.hold_kernel else ())
