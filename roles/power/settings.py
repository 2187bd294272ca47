"""Variables of the power role."""

from typing import Literal

from pydantic import Field

from boxwright.settings import RoleSettings


class PowerSettings(RoleSettings, prefix="power", systems={"darwin"}):
    """A Mac that serves unattended: awake, and back after a power cut."""

    enabled: bool = Field(
        True,
        description="Set the power settings, `host_sleep` among them, and look at what keeps the Mac from starting by "
        "itself. When it is set to false later, the settings are what they were before.",
    )
    start_up: Literal["as_is", "after_power_failure", "when_connected"] = Field(
        "after_power_failure",
        description="When the Mac starts by itself: after a power failure, or, from macOS 26.5 on and where the Mac "
        "can do that, whenever it is connected to power. `as_is` leaves it to System Settings.",
    )
    wake_on_network: bool = Field(True, description="Wake for a packet of the network (Wake on LAN).")
    display_sleep: int | None = Field(
        None,
        ge=0,
        le=180,
        description="Minutes after which the display sleeps, 0 for never. Unset it is left to System Settings.",
        examples=[10],
    )
    nap: bool | None = Field(
        None, description="Power Nap: work of macOS's own while the Mac sleeps. Unset it is left to System Settings."
    )
    tcp_keep_alive: bool | None = Field(
        None, description="Keep connections alive while the Mac sleeps. Unset it is left to System Settings."
    )
    caffeinate: bool = Field(
        False,
        description="Run `caffeinate -s` as a service too, which keeps the Mac awake on AC power as long as it runs, "
        "whatever becomes of the settings.",
    )
    accept_filevault: bool = Field(
        False,
        description="Set the Mac up although FileVault is on: somebody will unlock it after each start.",
    )
