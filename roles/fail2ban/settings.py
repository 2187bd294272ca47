"""Variables of the fail2ban role."""

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

from pydantic import Field, IPvAnyNetwork

from boxwright.addresses import TAILNET
from boxwright.errors import Problem
from boxwright.settings import RoleSettings

# The addresses that Tailscale gives to machines: https://tailscale.com/kb/1015/100.x-addresses and .../1033
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


class Fail2banSettings(RoleSettings, prefix="fail2ban", systems={"linux"}):
    """Fail2Ban: an address that asks the gateway with wrong credentials again and again is shut out for a while."""

    enabled: bool = Field(
        False,
        description="Ban such addresses. When it is set to false later, no more is banned and bans end; the package "
        "stays until `boxwright remove`.",
    )
    # `boxwright verify` asks with wrong credentials six times, and somebody who mends a box runs it more than once.
    attempts: int = Field(30, ge=1, le=10000, description="Refused requests from one address that lead to a ban.")
    window: int = Field(600, ge=1, le=86400, description="Seconds within which they are counted together.")
    ban: int = Field(
        3600,
        ge=1,
        le=31536000,
        description="Seconds that a ban lasts. One of more than a day ends earlier when Fail2Ban is restarted.",
    )
    never: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks and addresses that are never banned, beside the box itself and the tailnet: the machine "
        "from which `boxwright verify` is run, which asks with wrong credentials on purpose, and proxies.",
        examples=[["192.0.2.0/24", "2001:db8::7"]],
    )

    def problems(self, box: Any) -> Iterable[Problem]:
        """Refuses what looks like a protection and would be none."""
        if not self.enabled:
            return
        if not box.gateway.public_addresses:
            yield Problem(
                code="BW022",
                variable="fail2ban_enabled",
                message="`fail2ban_enabled` has nobody to ban: `gateway_bind` is loopback, so whoever asks is the box",
                help="set `fail2ban_enabled: false`, or open `gateway_bind`",
            )
        if box.gateway.trusted_proxies:
            yield Problem(
                code="BW022",
                variable="fail2ban_enabled",
                message="`fail2ban_enabled` cannot ban whoever comes through `gateway_trusted_proxies`: the packets "
                "that the box sees are the proxy's, for all its clients",
                help="let the proxy ban, and set `fail2ban_enabled: false`; or, to ban those who come past the proxy, "
                "move its addresses from `gateway_trusted_proxies` to `fail2ban_never`",
            )

    def spared(self, box: Any) -> tuple[str, ...]:
        """Every network that is never banned."""
        webui = (box.openwebui.subnet,) if box.openwebui.in_container(box) else ()
        return tuple(dict.fromkeys(str(network) for network in (*LOOPBACK, *TAILNET, *webui, *self.never)))
