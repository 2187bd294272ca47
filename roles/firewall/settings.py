"""Variables of the firewall role."""

from collections.abc import Iterable, Iterator
from ipaddress import collapse_addresses, ip_network
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork

from boxwright.addresses import TAILNET
from boxwright.describe import Words
from boxwright.errors import Problem
from boxwright.settings import RoleSettings

TAILNET_INTERFACE = "tailscale0"

# IFNAMSIZ of Linux is 16 with the final zero; a star at the end stands for any rest, as in nftables.
Interface = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\*?$"),
    Words("the name of a network interface such as eth0, with * at its end for all that begin so"),
]


class Allow(BaseModel):
    """A port that is open: to networks, on an interface, or to networks on an interface."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: str = Field(
        pattern=r"^[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?$",
        description="The port, or two with a dash between them for all from the one to the other. In quotes.",
    )
    protocol: Literal["tcp", "udp"] = Field("tcp", description="Its protocol.")
    sources: tuple[IPvAnyNetwork, ...] = Field(
        (), description="Networks and addresses that may reach it; 0.0.0.0/0 and ::/0 are everybody."
    )
    interface: Interface | None = Field(
        None, description="Interface of the box by which it may be reached; tailscale0 is the tailnet."
    )

    @property
    def bounds(self) -> tuple[int, int]:
        """The first and the last port."""
        first, _, last = self.port.partition("-")
        return int(first), int(last or first)


class FirewallSettings(RoleSettings, prefix="firewall", systems={"linux"}):
    """The firewall: nothing comes in but SSH, the gateway, and what is declared."""

    enabled: bool = Field(
        False,
        description="Filter what comes in. When it is set to false later, the filter goes and the box is open again.",
    )
    allow: tuple[Allow, ...] = Field(
        (),
        description="What else is open, of the box itself and of what Docker publishes. There it is the port of the "
        "box that counts, not the one inside of the container.",
        examples=[
            [
                {"port": "8000-8010", "sources": ["192.0.2.0/24", "2001:db8::/64"]},
                {"port": "9090", "interface": "tailscale0"},
            ]
        ],
    )
    ssh_sources: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks and addresses from which SSH is open; unset it is everywhere. When it leaves out the "
        "machine that boxwright runs on, the change undoes itself.",
        examples=[["192.0.2.0/24"]],
    )
    gateway_sources: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks and addresses from which the gateway is open; unset it is everywhere that `gateway_bind` "
        "lets it.",
        examples=[["100.64.0.0/10", "192.0.2.0/24"]],
    )
    inside: tuple[Interface, ...] = Field(
        ("docker*", "br-*", "podman*"),
        description="Interfaces behind which the box's own containers are. What comes from there may go out, and "
        "nothing may go there from elsewhere but to a published port that is open. No uplink may be among them.",
    )

    def problems(self, box: Any) -> Iterable[Problem]:
        """Refuses rules that open nothing, or everything without saying so."""
        for allow in self.allow:
            first, last = allow.bounds
            if not allow.sources and allow.interface is None:
                yield self._wrong(
                    f"`firewall_allow` has port {allow.port} without saying for whom",
                    "add `sources`, such as [192.0.2.0/24], or `interface`; [0.0.0.0/0, '::/0'] is everybody",
                )
            if last > 65535 or first > last:
                yield self._wrong(
                    f"`firewall_allow` has the port {allow.port}",
                    "expected a port from 1 to 65535, or two with a dash, the smaller one first",
                )

    @staticmethod
    def _wrong(message: str, help: str) -> Problem:
        return Problem(code="BW142", variable="firewall_allow", message=message, help=help)

    def in_tailnet(self, box: Any) -> bool:
        """Whether something is declared for the tailnet, whose addresses then count on its interface alone."""
        networks = [
            *self.ssh_sources,
            *self.gateway_sources,
            *(network for allow in self.allow for network in allow.sources),
            *(ip_network(address) for address in box.gateway.public_addresses),
        ]
        inside = any(
            network.version == tailnet.version and network.subnet_of(tailnet)  # type: ignore[arg-type]
            for network in networks
            for tailnet in TAILNET
        )
        return inside or any(allow.interface == TAILNET_INTERFACE for allow in self.allow)

    def rules(self, *, published: bool) -> Iterator[str]:
        """The declared rules: for the box itself, or for what Docker publishes."""
        for allow in self.allow:
            yield from rules(allow.protocol, allow.port, allow.sources, allow.interface, published=published)


def rules(
    protocol: str, port: str, sources: Iterable[Any], interface: str | None = None, *, published: bool = False
) -> Iterator[str]:
    """Rules of nftables, one for each version of IP that is meant, that accept `port` from `sources` (none: everybody).

    With `published` it is the port that was asked for before Docker put a container's own in its place.
    """
    first, _, last = port.partition("-")
    port = first if last in ("", first) else port
    wanted = f"meta l4proto {protocol} ct original proto-dst {port}" if published else f"{protocol} dport {port}"
    by = f'iifname "{interface}" ' if interface else ""
    sources = tuple(sources)
    if not sources:
        yield f"{by}{wanted} accept"
    for keyword, version in (("ip", 4), ("ip6", 6)):
        # nftables refuses a set whose parts overlap.
        networks = list(collapse_addresses(network for network in sources if network.version == version))
        if any(network.prefixlen == 0 for network in networks):
            yield f"{by}meta nfproto ipv{version} {wanted} accept"
        elif networks:
            listed = ", ".join(str(n.network_address if n.num_addresses == 1 else n) for n in networks)
            yield f"{by}{keyword} saddr {{ {listed} }} {wanted} accept"
