"""What a box is in its tailnet, and what it serves there: read, compared, and told in sentences. Pure functions.

What is read is the output of Tailscale's own commands: `tailscale status --json`, `tailscale debug prefs` and
`tailscale serve status --json` (ipn/ipnstate, ipn.Prefs and ipn.ServeConfig of Tailscale 1.98).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import Any, Literal

Protocol = Literal["https", "http", "tcp"]

# Ports that Tailscale's relays forward from the internet: https://tailscale.com/kb/1223/funnel
FUNNEL_PORTS = (443, 8443, 10000)
# Tailscale's own control server, where no other is named (ipn.DefaultControlURL).
CONTROL = "https://controlplane.tailscale.com"
# As Tailscale writes that a machine forwards everything (tsaddr.AllIPv4 and AllIPv6).
EXIT_ROUTES = frozenset({"0.0.0.0/0", "::/0"})


@dataclass(frozen=True, order=True)
class Endpoint:
    """One thing that a box serves in its tailnet.

    `target` is written as Tailscale keeps it: `http://127.0.0.1:8080`, or `host:port` for the protocol tcp. `path` is
    empty for tcp. `public` means Funnel: everybody on the internet. `where` is empty for what the box serves under its
    own name; else it says where it was found, and no command of Tailscale takes it away alone.
    """

    port: int
    path: str
    protocol: str
    target: str
    public: bool = False
    where: str = ""

    @property
    def key(self) -> tuple[int, str]:
        """What there can be one of."""
        return self.port, self.path

    def __str__(self) -> str:
        door = f"{self.protocol} {self.port}{self.path if self.path != '/' else ''}"
        public = ", public on the internet" if self.public else ""
        where = f" ({self.where})" if self.where else ""
        return f"{door} to {self.target}{public}{where}"


def endpoints(config: Mapping[str, Any] | None, name: str) -> tuple[Endpoint, ...]:
    """What a ServeConfig serves, for a machine whose name in the tailnet is `name` (without a final dot).

    Tailscale calls an empty configuration `{}` or `null`.
    """
    config = config or {}
    found = list(_endpoints(config, name, ""))
    for service, inner in sorted((config.get("Services") or {}).items()):
        found += _endpoints(inner or {}, "", f"of the service {service}")
    for inner in (config.get("Foreground") or {}).values():
        found += _endpoints(inner or {}, "", "as long as a command in a terminal runs")
    return tuple(sorted(found))


def _endpoints(config: Mapping[str, Any], name: str, where: str) -> Iterable[Endpoint]:
    funnel = config.get("AllowFunnel") or {}
    handlers = config.get("TCP") or {}
    for port, handler in handlers.items():
        if forward := handler.get("TCPForward"):
            public = any(on and host.rpartition(":")[2] == str(port) for host, on in funnel.items())
            terminated = handler.get("TerminateTLS")
            kind = "tls-terminated-tcp" if terminated else "tcp"
            proxied = " with the PROXY protocol" if handler.get("ProxyProtocol") else ""
            yield Endpoint(int(port), "", kind, f"{forward}{proxied}", public, where)
    for host_port, server in (config.get("Web") or {}).items():
        host, _, port = host_port.rpartition(":")
        handler = handlers.get(port) or {}
        protocol = "http" if handler.get("HTTP") else "https"
        other = where or ("" if host == name else f"under the name {host}")
        for path, what in ((server or {}).get("Handlers") or {}).items():
            public = bool(funnel.get(host_port))
            yield Endpoint(int(port), path, protocol, _target(what or {}), public, other)


def _target(handler: Mapping[str, Any]) -> str:
    for kind, prefix in (("Proxy", ""), ("Path", ""), ("Text", "text:"), ("Redirect", "redirect:")):
        if kind in handler:
            capabilities = handler.get("AcceptAppCaps")
            return f"{prefix}{handler[kind]}" + (f" with capabilities {capabilities}" if capabilities else "")
    return "something that boxwright does not know"


@dataclass(frozen=True)
class Difference:
    """What leads from what is served to what is wanted: `reset` first, then `off`, then `on`, each in its order.

    `foreign` is what somebody else made and what stays.
    """

    reset: bool = False
    off: tuple[Endpoint, ...] = ()
    on: tuple[Endpoint, ...] = ()
    foreign: tuple[Endpoint, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.reset or self.off or self.on)


def compare(
    wanted: Iterable[Endpoint],
    found: Iterable[Endpoint],
    ours: Iterable[tuple[int, str]] = (),
    *,
    remove_foreign: bool = False,
) -> Difference:
    """How to get from `found` to `wanted`. `ours` are the keys of what boxwright once made, as far as it was noted.

    What is neither wanted nor ours is foreign and stays, unless `remove_foreign`. A port speaks one protocol, and is
    public or not as a whole: what stands in the way of a wanted one is foreign no longer.
    """
    wanted, found = tuple(sorted(wanted)), tuple(found)
    mine = {endpoint.key for endpoint in wanted} | set(ours)
    speaks = {endpoint.port: endpoint.protocol for endpoint in wanted}
    kept = {endpoint.key: endpoint for endpoint in wanted}
    off: list[Endpoint] = []
    foreign: list[Endpoint] = []
    stale: list[Endpoint] = []
    good: set[tuple[int, str]] = set()
    for endpoint in found:
        if endpoint.where:
            # Left by a name that the box had before; only a reset takes it away.
            own = endpoint.where.startswith("under the name ") and (endpoint.key in mine or remove_foreign)
            (stale if own else foreign).append(endpoint)
        elif endpoint == kept.get(endpoint.key):
            good.add(endpoint.key)
        elif endpoint.port in speaks and endpoint.protocol != speaks[endpoint.port]:
            off.append(endpoint)
        elif endpoint.key in kept:
            pass  # is written over
        elif endpoint.key in mine or remove_foreign:
            off.append(endpoint)
        else:
            foreign.append(endpoint)
    if stale and not foreign:
        return Difference(reset=True, on=wanted)
    on = tuple(endpoint for endpoint in wanted if endpoint.key not in good)
    return Difference(off=tuple(sorted(off)), on=on, foreign=tuple(sorted((*foreign, *stale))))


def on_arguments(endpoint: Endpoint) -> tuple[str, ...]:
    """Arguments of `tailscale` that serve it. `--yes` asks nothing back, `--bg` ends at once and outlives a boot."""
    verb = "funnel" if endpoint.public else "serve"
    path = (f"--set-path={endpoint.path}",) if endpoint.path not in ("", "/") else ()
    target = f"tcp://{endpoint.target}" if endpoint.protocol == "tcp" else endpoint.target
    return (verb, "--bg", "--yes", f"--{endpoint.protocol}={endpoint.port}", *path, target)


def off_arguments(endpoint: Endpoint) -> tuple[str, ...]:
    """Arguments of `tailscale` that end it, and nothing else on its port."""
    # Without a path everything on the port would go.
    path = (f"--set-path={endpoint.path}",) if endpoint.path else ()
    return ("serve", "--yes", f"--{endpoint.protocol}={endpoint.port}", *path, "off")


@dataclass(frozen=True)
class Node:
    """What is known of a box in its tailnet. `state` is Tailscale's BackendState, empty while tailscaled does not run.

    `name` is its full name without the final dot. `expires` is when its key ends, None for never. `certificates` are
    the names that it gets certificates for. `recorded` are the keys of endpoints that boxwright made, `joined_by_us`
    tells whether boxwright brought it into the tailnet, `leftover` whether a run was killed while it did. `session` is
    the box's address and port that this run's own SSH connection came in at, None for a run that came by another way.
    """

    installed: bool = False
    state: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    expires: datetime | None = None
    expired: bool = False
    certificates: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    preferences: Mapping[str, Any] = field(default_factory=dict)
    serve: Mapping[str, Any] = field(default_factory=dict)
    recorded: tuple[tuple[int, str], ...] = ()
    joined_by_us: bool = False
    leftover: bool = False
    session: tuple[str, int] | None = None

    @property
    def entered_by_tailnet(self) -> bool:
        """Whether whoever asked came over the tailnet, and would be cut off without it."""
        return self.session is not None and self.session[0] in self.addresses

    @property
    def label(self) -> str:
        """The first part of its name."""
        return self.name.partition(".")[0]


def node(status: Mapping[str, Any], preferences: Mapping[str, Any] | None, serve: Mapping[str, Any] | None) -> Node:
    """A `Node` from what `tailscale status --json`, `debug prefs` and `serve status --json` print."""
    own = status.get("Self") or {}
    return Node(
        installed=True,
        state=status.get("BackendState") or "",
        name=(own.get("DNSName") or "").rstrip("."),
        tags=tuple(own.get("Tags") or ()),
        addresses=tuple(own.get("TailscaleIPs") or ()),
        expires=_time(own.get("KeyExpiry")),
        expired=bool(own.get("Expired")),
        certificates=tuple(status.get("CertDomains") or ()),
        capabilities=tuple(own.get("CapMap") or own.get("Capabilities") or ()),
        health=tuple(status.get("Health") or ()),
        preferences=preferences or {},
        serve=serve or {},
    )


def _time(text: str | None) -> datetime | None:
    """A moment that Go wrote; its zero (year 1) and a missing one are None."""
    if not text or text.startswith("0001"):
        return None
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Membership:
    """How a box shall be in its tailnet. `server` empty means Tailscale's own; None in `preferences` leaves as it is.

    `preferences` has the names of `PREFERENCES`.
    """

    server: str = ""
    tags: tuple[str, ...] = ()
    hostname: str = ""
    preferences: Mapping[str, Any] = field(default_factory=dict)

    @property
    def control(self) -> str:
        """Address of the control server."""
        return (self.server or CONTROL).rstrip("/")

    @property
    def join_arguments(self) -> tuple[str, ...]:
        """What `tailscale up` is told beside key and tags; with `--reset` it forgets what an earlier try set."""
        server = (f"--login-server={self.server}",) if self.server else ()
        # Routes of others could take the way on which the operator comes: they are set afterwards, under the guard.
        wanted = {key: value for key, value in self.preferences.items() if (key, value) != ("accept_routes", True)}
        return ("--reset", *server, *preference_arguments(wanted))


# Our names, and how ipn.Prefs calls them; the flags of `tailscale up` and `tailscale set` are our names with dashes.
PREFERENCES = {
    "hostname": "Hostname",
    "ssh": "RunSSH",
    "operator": "OperatorUser",
    "accept_dns": "CorpDNS",
    "accept_routes": "RouteAll",
    "advertise_routes": "AdvertiseRoutes",
    "advertise_exit_node": "AdvertiseRoutes",
}


def preference_arguments(wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """The flags that say `wanted`; what is None is left out."""
    flags = []
    for key, value in wanted.items():
        if value is None:
            continue
        if isinstance(value, bool):
            text = "true" if value else "false"
        else:
            text = value if isinstance(value, str) else ",".join(sorted(value))
        flags.append(f"--{key.replace('_', '-')}={text}")
    return tuple(flags)


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Of `wanted` what the preferences `found` (ipn.Prefs) say otherwise; None is never different."""
    former = preferences_of(found)
    return {
        key: value
        for key, value in wanted.items()
        if value is not None and (_networks(value) if key == "advertise_routes" else value) != former[key]
    }


def preferences_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `found` (ipn.Prefs) says, under our names: flags are true or false, routes a set of networks."""
    routes = frozenset(found.get("AdvertiseRoutes") or ())
    said = {key: found.get(name) for key, name in PREFERENCES.items()}
    for key in ("ssh", "accept_dns", "accept_routes"):
        said[key] = bool(said[key])
    for key in ("hostname", "operator"):
        said[key] = said[key] or ""
    said["advertise_routes"] = _networks(routes - EXIT_ROUTES)
    said["advertise_exit_node"] = routes >= EXIT_ROUTES
    return said


def _networks(routes: Iterable[str]) -> frozenset[str]:
    return frozenset(str(ip_network(route)) for route in routes)


Action = Literal["", "join", "up"]


@dataclass(frozen=True)
class Step:
    """What to do so that a box is in its tailnet; or `problem`: why nothing can be done, and what a person can do."""

    action: Action = ""
    problem: str = ""


def membership_step(found: Node, wanted: Membership, has_key: bool) -> Step:
    """What leads from `found` to membership. A box that is in the tailnet is left in it."""
    if not found.installed or not found.state:
        # While a run is only planned the package is not there yet.
        return Step("join") if has_key else Step(problem=_needs_key(found, wanted))
    server = str(found.preferences.get("ControlURL") or "").rstrip("/")
    if found.state in ("Running", "Stopped") and server and server != wanted.control:
        return Step(
            problem=f"the box is in the tailnet of {server}, not in that of {wanted.control}: set "
            "`tailscale_login_server` to the former, or take the box out with `sudo tailscale logout` and apply again"
        )
    if found.state == "Running":
        return Step(problem=tags_problem(found, wanted))
    if found.state == "Stopped":
        return Step("up")
    if found.state == "NeedsLogin":
        return Step("join") if has_key else Step(problem=_needs_key(found, wanted))
    return Step(problem=waiting_problem(found, wanted))


def _needs_key(found: Node, wanted: Membership) -> str:
    server = f" --login-server={wanted.server}" if wanted.server else ""
    lost = "the box's key for the tailnet has expired" if found.expired else "the box is in no tailnet"
    return (
        f"{lost}, and there is no key to join one with: set `tailscale_auth_key` in a file made by "
        f"ansible-vault, or sign in on the box with `sudo tailscale up{server}` and apply again"
    )


def tags_problem(found: Node, wanted: Membership) -> str:
    """Why the tags of the box are not the declared ones; empty when they are, or none are declared."""
    if not wanted.tags or set(found.tags) == set(wanted.tags):
        return ""
    has = ", ".join(found.tags) or "none"
    return (
        f"the box's tags in the tailnet are {has}, and `tailscale_tags` has {', '.join(wanted.tags)}: tags are given "
        "at the join. Change them where the tailnet is administered, or put a new key into `tailscale_auth_key`, run "
        "`sudo tailscale logout` on the box and apply again"
    )


def waiting_problem(found: Node, wanted: Membership) -> str:
    """Why a box with one of Tailscale's other states is not in its tailnet."""
    if found.state == "NeedsMachineAuth":
        return (
            "the box waits for approval: somebody who administers the tailnet must approve it (admin console, "
            "Machines), or its key must be made anew; then apply again. A key that is pre-approved spares this"
        )
    told = f": {'; '.join(found.health)}" if found.health else ""
    return (
        f"tailscaled is still {found.state or 'silent'}{told}. It must reach {wanted.control}: see `journalctl -u "
        "tailscaled` on the box, and whether its clock is right (`timedatectl`)"
    )


def named(found: Node, hostname: str) -> bool:
    """Whether the tailnet calls the box `hostname`; also when that is empty, or its name is not known yet."""
    return not hostname or not found.name or found.label == hostname


def taken_name(hostname: str, label: str = "otherwise") -> str:
    """Why a box is called `label` and not `hostname`."""
    return (
        f"the tailnet calls the box {label}, not {hostname}: another machine has that name. Remove or rename "
        f"that one where the tailnet is administered (it may be this box before it was installed anew), then run "
        f"`sudo tailscale set --hostname={hostname}-again` on the box and apply again; or choose another "
        "`tailscale_hostname`"
    )


def serve_problems(found: Node, wanted: Iterable[Endpoint]) -> list[str]:
    """What the tailnet lacks for `wanted`, each with the sentence that mends it."""
    problems = []
    wanted = tuple(wanted)
    if any(endpoint.protocol == "https" for endpoint in wanted) and not found.certificates:
        problems.append(
            "the tailnet gives no HTTPS certificates: switch them on in the admin console (DNS, HTTPS Certificates; "
            "MagicDNS must be on), or set `protocol: http` in `tailscale_serve`. Headscale has none"
        )
    public = [endpoint for endpoint in wanted if endpoint.public]
    if (
        public
        and "funnel" not in found.capabilities
        and not any(capability.endswith("/cap/funnel") for capability in found.capabilities)
    ):
        target = found.tags[0] if found.tags else "autogroup:member"
        problems.append(
            "the tailnet does not let this box use Funnel: add to its policy file "
            f'"nodeAttrs": [{{"target": ["{target}"], "attr": ["funnel"]}}]'
        )
    allowed = funnel_ports(found.capabilities)
    for endpoint in public:
        if allowed and endpoint.port not in allowed:
            ports = ", ".join(map(str, sorted(allowed)))
            problems.append(f"the tailnet does not let Funnel use port {endpoint.port}: choose one of {ports}")
    return problems


def exposed(wanted: Iterable[Endpoint], foreign: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """What of `foreign` would be public with `wanted`: Funnel opens a port with all its paths."""
    public = {endpoint.port for endpoint in wanted if endpoint.public}
    return tuple(endpoint for endpoint in foreign if endpoint.port in public and not endpoint.where)


def carries_session(
    session: tuple[str, int] | None, there: Iterable[Endpoint], difference: Difference
) -> tuple[Endpoint, ...]:
    """Of the endpoints `there` those that `difference` ends or alters and by which this run's own connection may have
    come: they forward a port of the tailnet to SSH on the box. `session` is that of a `Node`.
    """
    if session is None or not ip_address(session[0]).is_loopback:
        return ()
    altered = {endpoint.key for endpoint in (*difference.off, *difference.on)}
    port = str(session[1])
    return tuple(
        endpoint
        for endpoint in there
        if (difference.reset or endpoint.key in altered)
        and endpoint.protocol == "tcp"
        and endpoint.target.rpartition(":")[2] == port
    )


def funnel_ports(capabilities: Iterable[str]) -> frozenset[int]:
    """Ports that the tailnet lets Funnel use, as the box's capabilities say; empty when they say nothing of it.

    The capability is `https://tailscale.com/cap/funnel-ports?ports=443,8443,10000`; a range is written 80-81.
    """
    found: set[int] = set()
    for capability in capabilities:
        head, separator, ports = capability.partition("/cap/funnel-ports?ports=")
        if not separator or not head.startswith("https://"):
            continue
        for part in ports.split(","):
            first, _, last = part.partition("-")
            if first.isdigit():
                found.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return frozenset(found)


def days_left(found: Node, now: datetime) -> float | None:
    """Days until the box's key ends and it falls out of the tailnet; None when it never does."""
    return None if found.expires is None else (found.expires - now).total_seconds() / 86400


def serve_config(wanted: Sequence[Endpoint], name: str = "${TS_CERT_DOMAIN}") -> dict[str, Any]:
    """The ServeConfig that serves `wanted`, as Tailscale's container reads it from the file TS_SERVE_CONFIG.

    The container puts its own name in the place of `${TS_CERT_DOMAIN}`.
    """
    tcp: dict[str, Any] = {}
    web: dict[str, Any] = {}
    funnel: dict[str, bool] = {}
    for endpoint in sorted(wanted):
        port, host = str(endpoint.port), f"{name}:{endpoint.port}"
        if endpoint.protocol == "tcp":
            tcp[port] = {"TCPForward": endpoint.target}
        else:
            tcp[port] = {endpoint.protocol.upper(): True}
            handlers = web.setdefault(host, {"Handlers": {}})["Handlers"]
            handlers[endpoint.path] = {"Proxy": endpoint.target}
        if endpoint.public:
            funnel[host] = True
    config = {"TCP": tcp, "Web": web, "AllowFunnel": funnel}
    return {key: value for key, value in config.items() if value}
