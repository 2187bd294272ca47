"""Tasks of the firewall role."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address

from pyinfra import host

from boxwright.addresses import TAILNET
from boxwright.errors import Problem
from boxwright.facts.firewall import FirewallSurroundings, Surroundings
from boxwright.guard import DEADLINE
from boxwright.operations import apt, files, firewall, guard
from boxwright.preflight import PreflightRefused
from boxwright.templates import render
from roles.firewall.settings import TAILNET_INTERFACE, rules
from roles.registry import Box

FAMILY, TABLE = "inet", "boxwright"
SERVICE = "boxwright-firewall"
FOLDER = "/etc/boxwright/firewall"
RULES = f"{FOLDER}/rules.nft"
PACKAGES = ("nftables",)


def ruleset(box: Box, ssh_ports: Sequence[int]) -> str:
    """The file for nft: everything that the packet filter of the box does."""
    settings = box.firewall
    return render(
        "firewall/rules.nft.j2",
        tailnet=TAILNET if settings.in_tailnet(box) else (),
        tailnet_interface=TAILNET_INTERFACE,
        ssh=[rule for port in ssh_ports for rule in rules("tcp", str(port), settings.ssh_sources)],
        gateway=_gateway(box),
        containers=_containers(box),
        declared_input=list(settings.rules(published=False)),
        declared_published=list(settings.rules(published=True)),
        inside=settings.inside,
    )


def _gateway(box: Box) -> list[str]:
    """The gateway's ports, on the addresses on which it listens."""
    made = []
    for address in map(ip_address, box.gateway.public_addresses):
        family = "ip" if address.version == 4 else "ip6"
        where = f"meta nfproto ipv{address.version}" if address.is_unspecified else f"{family} daddr {address}"
        sources = [network for network in box.firewall.gateway_sources if network.version == address.version]
        if sources or not box.firewall.gateway_sources:
            made += [f"{where} {rule}" for rule in rules("tcp", str(box.gateway.port), sources)]
        if box.gateway.http_port:
            # The authority asks from addresses that it tells nobody.
            made += [f"{where} {rule}" for rule in rules("tcp", str(box.gateway.http_port), ())]
    return made


def _containers(box: Box) -> list[str]:
    if not box.openwebui.in_container(box):
        return []
    subnet, address, port = box.openwebui.subnet, box.openwebui.box_address(box), box.gateway.internal_port
    return [f'iifname "{name}" ip saddr {subnet} ip daddr {address} tcp dport {port} accept' for name in ("br-*",)]


def unfit(box: Box, found: FirewallSurroundings, over_ssh: bool) -> list[Problem]:
    """Why a packet filter cannot be put in force on a box with these surroundings; empty when it can."""
    problems = []
    for manager in found.managers:
        off = "ufw disable" if manager == "ufw" else f"systemctl disable --now {manager}"
        problems.append(
            Problem(
                code="BW143",
                variable="firewall_enabled",
                message=f"{manager} manages the packet filter of the box already, and would refuse what is opened here",
                help=f"move its rules to `firewall_allow` and turn it off: {off}; or set `firewall_enabled: false`",
            )
        )
    if over_ssh and not found.ssh_ports:
        problems.append(
            Problem(
                code="BW144",
                variable="firewall_enabled",
                message="it could not be seen on which port the box is reached by SSH: the firewall would close it",
                help="is sshd what you sign in by? Name its port in `firewall_allow`, and run this on the box itself",
            )
        )
    for uplink in found.uplinks:
        for name in box.firewall.inside:
            if fnmatchcase(uplink, name):
                problems.append(
                    Problem(
                        code="BW145",
                        variable="firewall_inside",
                        message=f"`firewall_inside` has {name}, and {uplink} is the interface to the outside: whatever "
                        "comes in there would count as the box's own containers",
                        help="write the names of Docker's networks instead, such as [docker0, br-openwebui]",
                    )
                )
    return problems


def apply(box: Box, deadline: int = DEADLINE) -> None:
    """All stages, in order; where it is not wanted, nothing is filtered by it any more. `deadline` is in seconds."""
    if not box.has("firewall"):
        return
    if not box.firewall.enabled:
        firewall.table_absent(FAMILY, TABLE, RULES, SERVICE, name="firewall: no rules")
        return
    found: FirewallSurroundings = host.get_fact(Surroundings)
    over_ssh = "local" not in type(host.connector).__name__.lower()
    if problems := unfit(box, found, over_ssh):
        raise PreflightRefused(
            Problem(p.code, p.message, variable=p.variable, help=p.help, host=box.name) for p in problems
        )
    install()
    configure()
    activate(box, found.ssh_ports, deadline)


def install() -> None:
    """The program that talks to the kernel's packet filter."""
    apt.packages(PACKAGES, name="firewall: install the program")


def configure() -> None:
    """What undoes a change, the unit and the folder of the rules; nothing is filtered yet."""
    guard.ready(name="firewall: ready to undo a change")
    files.directory(name="firewall: folder of settings", path="/etc/boxwright")
    files.directory(name="firewall: folder of the rules", path=FOLDER, mode="0700")
    firewall.unit(FAMILY, TABLE, RULES, SERVICE, name="firewall: write the unit")


def activate(box: Box, ssh_ports: Sequence[int], deadline: int) -> None:
    """The rules in force, now and at each boot."""
    text = ruleset(box, ssh_ports)
    firewall.table(FAMILY, TABLE, RULES, text, SERVICE, deadline, name="firewall: rules in force")


def remove(box: Box, purge: bool) -> None:
    """Opens the box again and takes everything back but the package, which others may still need for their removal."""
    if not box.has("firewall"):
        return
    firewall.table_absent(FAMILY, TABLE, RULES, SERVICE, name="firewall: no rules")
    files.absent(name="firewall: remove the folder of the rules", path=FOLDER, recursive=True)


def uninstall(box: Box, purge: bool) -> None:
    """The package, when boxwright installed it."""
    if not box.has("firewall"):
        return
    apt.packages_absent(PACKAGES, purge=purge, name="firewall: remove the program")
