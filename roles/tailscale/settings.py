"""Variables of the tailscale role."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork

from boxwright.describe import Words
from boxwright.errors import Problem
from boxwright.settings import Port, RoleSettings, Secret
from boxwright.tailnet import FUNNEL_PORTS, Endpoint, Membership, Protocol, preference_arguments

Tag = Annotated[
    str,
    Field(pattern=r"^tag:[A-Za-z][A-Za-z0-9-]*$"),
    Words("a tag such as tag:llm"),
]
ServePath = Annotated[
    str, Field(pattern=r"^/([A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*)?$"), Words("a path such as /files, or /")
]
Target = Annotated[
    str,
    Field(pattern=r"^(gateway|(https?|https\+insecure|tcp)://[A-Za-z0-9.-]+:[0-9]{1,5}(/[A-Za-z0-9._~/-]*)?)$"),
    Words("gateway, or an address with its port such as http://127.0.0.1:8080"),
]
# How an OAuth client secret begins: https://tailscale.com/kb/1215/oauth-clients
OAUTH = "tskey-client-"


class Serve(BaseModel):
    """Something that the box serves in its tailnet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: Port = Field(443, description="TCP port in the tailnet. With `public` it is 443, 8443 or 10000.")
    protocol: Protocol = Field(
        "https",
        description="`https` needs certificates from the tailnet; `http` is encrypted by the tailnet alone; `tcp` "
        "hands connections on as they are.",
    )
    path: ServePath = Field("/", description="Path below which it is; with `tcp` there is none.")
    target: Target = Field(
        "gateway",
        description="Where requests go: `gateway` for the box's own, or an address such as http://127.0.0.1:8080.",
    )
    public: bool = Field(False, description="Open it to everybody on the internet (Funnel). Only for the gateway.")


class TailscaleSettings(RoleSettings, prefix="tailscale"):
    """Tailscale: the box is in a private network of its own, and serves there what is declared."""

    enabled: bool = Field(
        False,
        description="Install Tailscale and bring the box into a tailnet. When it is set to false later, what the box "
        "serves there ends, and it stays in the tailnet until `boxwright remove`.",
    )
    repository: bool = Field(
        True,
        description="Install from Tailscale's own package repository. With false from one that the box already has.",
    )
    upload_logs: bool = Field(
        False,
        description="Let tailscaled send its log to Tailscale, as it does by itself: when it connects and to which "
        "machines. Tailscale gives no support without.",
    )

    # The join.
    auth_key: Secret | None = Field(
        None,
        description="Auth key or OAuth client secret with which a box joins that is in no tailnet yet. It belongs into "
        "a file made by ansible-vault. Unset, sign in on the box itself with `sudo tailscale up`.",
    )
    login_server: str = Field(
        "",
        pattern=r"^(https?://[^/\s?#]+(/[^\s?#]*)?)?$",
        description="Address of the control server, such as that of a Headscale. Empty means Tailscale's own.",
        examples=["https://headscale.example"],
    )
    tags: tuple[Tag, ...] = Field(
        (),
        description="Tags that the box has in the tailnet, given at the join; its key does not expire then. An OAuth "
        "client secret needs at least one.",
        examples=[["tag:llm"]],
    )
    ephemeral: bool = Field(
        False,
        description="With an OAuth client secret: the tailnet forgets the box when it is away for a while.",
    )
    preauthorized: bool = Field(
        True, description="With an OAuth client secret: the box needs no approval of an administrator."
    )
    join_timeout: int = Field(60, ge=5, le=600, description="Seconds that a join may take.")

    # How the box is in the tailnet. Unset is left as it is on the box.
    hostname: str = Field(
        "",
        pattern=r"^([a-z0-9]+(-+[a-z0-9]+)*)?$",
        max_length=63,
        description="Name of the box in the tailnet. Empty means the name that the machine has.",
        examples=["llm"],
    )
    ssh: bool | None = Field(
        None,
        description="Let Tailscale SSH in, as the policy of the tailnet says. Unset, here and below, leaves as it is.",
    )
    operator: str | None = Field(
        None, pattern=r"^[a-z_][a-z0-9_-]*$", description="Account that may use the `tailscale` command without sudo."
    )
    accept_dns: bool | None = Field(None, description="Take over the tailnet's settings for names.")
    accept_routes: bool | None = Field(None, description="Use networks that other machines of the tailnet offer.")
    advertise_routes: tuple[IPvAnyNetwork, ...] | None = Field(
        None,
        description="Networks that the box offers to the tailnet; the box must forward packets for that.",
        examples=[["192.0.2.0/24"]],
    )
    advertise_exit_node: bool | None = Field(
        None, description="Offer the box as the way to the internet; the box must forward packets for that."
    )

    # What the box serves there.
    serve: tuple[Serve, ...] = Field(
        (),
        description="What the box serves in the tailnet, by port and path.",
        examples=[[{"port": 443, "target": "gateway"}]],
    )
    serve_foreign: Literal["keep", "remove"] = Field(
        "keep",
        description="What becomes of that which somebody else lets Tailscale serve on this box: it is reported, or "
        "taken away.",
    )

    def problems(self, box: Any) -> Iterable[Problem]:
        """Refuses what would show to others what asks nobody who they are, and what does not fit together."""
        if not self.enabled:
            return
        yield from self._join()
        for number, entry in enumerate(self.serve):
            yield from self._entry(box, number, entry)
        yield from self._together()

    def _join(self) -> Iterable[Problem]:
        if self.oauth and not self.tags:
            yield Problem(
                code="BW150",
                variable="tailscale_tags",
                message="`tailscale_auth_key` is an OAuth client secret, with which a box joins only with tags",
                help="set `tailscale_tags` to tags that the OAuth client may give, for example [tag:llm]",
            )

    def _entry(self, box: Any, number: int, entry: Serve) -> Iterable[Problem]:
        what = f"`tailscale_serve[{number}]`"

        def problem(code: str, message: str, help: str) -> Problem:
            return Problem(code=code, variable="tailscale_serve", message=f"{what} {message}", help=help)

        url = self._url(box, entry)
        host, port = _host_port(url)
        to_gateway = port == box.gateway.port and (_is_local(host) or host in map(str, box.gateway.bind))
        if not 1 <= port <= 65535:
            yield problem("BW151", f"has a target with port {port}", "a port is a number from 1 to 65535")
        if entry.public:
            yield from self._public(box, entry, to_gateway, problem)
        if entry.protocol == "tcp" and entry.path != "/":
            yield problem("BW151", f"has the path {entry.path}, and tcp knows no paths", "remove `path`")
        if (entry.protocol == "tcp") != url.startswith("tcp://"):
            yield problem(
                "BW151",
                f"has the protocol {entry.protocol} and the target {entry.target}",
                "write tcp://HOST:PORT with `protocol: tcp`, and a web address with the others",
            )
        taken = box.gateway.port == entry.port and any(address.is_unspecified for address in box.gateway.bind)
        if taken:
            yield problem(
                "BW024",
                f"wants port {entry.port}, where the gateway listens on all addresses of the box",
                "choose another port, or set `gateway_bind` to 127.0.0.1 or the address of one network",
            )
        if variable := self._unguarded(box).get(port) if _is_local(host) else None:
            yield problem(
                "BW152",
                f"shows port {port} (`{variable}`) to the tailnet, which asks nobody who they are",
                "write `target: gateway`: it asks, and hands on to the same engine",
            )
        if entry.target == "gateway" and self.hostname and entry.protocol != "tcp" and not self._known(box):
            yield problem(
                "BW151",
                f"leads to the gateway, which does not know the name that the box has in the tailnet, {self.hostname}."
                "<name of the tailnet>, and would answer 421",
                "add that name to `gateway_names`",
            )
        if to_gateway and box.gateway.auth == "none":
            yield problem(
                "BW152",
                "shows the gateway to the tailnet, and `gateway_auth` is none",
                "set `gateway_auth: any`",
            )

    def _public(self, box: Any, entry: Serve, to_gateway: bool, problem: Any) -> Iterable[Problem]:
        if not to_gateway or entry.protocol != "https":
            yield problem(
                "BW153",
                f"would show {entry.target} to everybody on the internet ({entry.protocol})",
                "only the gateway may be public: write `target: gateway` and `protocol: https`, and declare what "
                "shall be reached through it in `gateway_routes`",
            )
        if entry.port not in FUNNEL_PORTS:
            yield problem(
                "BW153",
                f"would be public on port {entry.port}",
                f"Funnel knows the ports {', '.join(map(str, FUNNEL_PORTS))}",
            )
        if to_gateway:
            for route in box.gateway.routes:
                if route.auth == "none":
                    yield problem(
                        "BW153",
                        f"would show {route.path} of `gateway_routes` to everybody on the internet, with `auth: none`",
                        "remove `auth` there, or `public` here",
                    )

    def _together(self) -> Iterable[Problem]:
        seen: dict[tuple[int, str], int] = {}
        first: dict[int, Serve] = {}
        for number, entry in enumerate(self.serve):
            if (entry.port, entry.path) in seen:
                yield Problem(
                    code="BW024",
                    variable="tailscale_serve",
                    message=f"`tailscale_serve` has port {entry.port} and path {entry.path} twice",
                    help="give one of them another port or path",
                )
            seen[entry.port, entry.path] = number
            other = first.setdefault(entry.port, entry)
            if (entry.protocol, entry.public) != (other.protocol, other.public):
                yield Problem(
                    code="BW151",
                    variable="tailscale_serve",
                    message=f"`tailscale_serve` has port {entry.port} with two protocols, or public and not: a port "
                    "has one protocol, and Funnel opens it with all its paths",
                    help="give one of them another port",
                )

    def _known(self, box: Any) -> bool:
        """Whether one of the gateway's names may be that of the box in its tailnet."""
        return any(name.partition(".")[0] == self.hostname for name in box.gateway.names)

    @staticmethod
    def _unguarded(box: Any) -> Mapping[int, str]:
        """Ports on loopback behind which nobody is asked who they are, with the variable of each."""
        ports = {box.gateway.metrics_port: "gateway_metrics_port"}
        if box.openwebui.enabled:
            ports[box.gateway.internal_port] = "gateway_internal_port"
        for engine in box.inference.running:
            for field, port in box.engine(engine).ports(box).items():
                ports[port] = f"{engine}_{field}"
        ports.pop(box.gateway.port, None)
        return ports

    @staticmethod
    def _url(box: Any, entry: Serve) -> str:
        if entry.target != "gateway":
            return entry.target
        bind = [address for address in box.gateway.bind if address.version == 4]
        inside = not bind or any(address.is_loopback or address.is_unspecified for address in bind)
        host = "127.0.0.1" if inside else str(bind[0])
        scheme = "tcp" if entry.protocol == "tcp" else "https+insecure"
        return f"{scheme}://{host}:{box.gateway.port}"

    @property
    def oauth(self) -> bool:
        """Whether the key is the secret of an OAuth client."""
        return self.auth_key is not None and self.auth_key.get_secret_value().startswith(OAUTH)

    @property
    def key(self) -> str:
        """What Tailscale is given to join; an OAuth client secret says with it what the node shall be."""
        if self.auth_key is None:
            return ""
        key = self.auth_key.get_secret_value()
        if not self.oauth or "?" in key:
            return key
        words = {True: "true", False: "false"}
        return f"{key}?ephemeral={words[self.ephemeral]}&preauthorized={words[self.preauthorized]}"

    @property
    def container_arguments(self) -> tuple[str, ...]:
        """What `tailscale up` is told in a container; hostname and key its image has variables for."""
        wanted = {
            key: value for key, value in self.membership.preferences.items() if key not in ("hostname", "operator")
        }
        server = (f"--login-server={self.membership.server}",) if self.login_server else ()
        tags = (f"--advertise-tags={','.join(self.tags)}",) if self.tags else ()
        return (*server, *tags, *preference_arguments(wanted))

    @property
    def membership(self) -> Membership:
        """How the box shall be in its tailnet."""
        routes = None if self.advertise_routes is None else tuple(map(str, self.advertise_routes))
        return Membership(
            server=self.login_server.rstrip("/"),
            tags=self.tags,
            hostname=self.hostname,
            preferences={
                "hostname": self.hostname or None,
                "ssh": self.ssh,
                "operator": self.operator,
                "accept_dns": self.accept_dns,
                "accept_routes": self.accept_routes,
                "advertise_routes": routes,
                "advertise_exit_node": self.advertise_exit_node,
            },
        )

    def endpoints(self, box: Any) -> tuple[Endpoint, ...]:
        """What the box shall serve, as Tailscale keeps it."""
        return tuple(
            Endpoint(
                port=entry.port,
                path="" if entry.protocol == "tcp" else entry.path,
                protocol=entry.protocol,
                target=self._url(box, entry).removeprefix("tcp://"),
                public=entry.public,
            )
            for entry in self.serve
        )


def _is_local(host: str) -> bool:
    """Whether `host` is a way to write the box itself; 0.0.0.0 leads there too."""
    return host == "localhost" or host == "0.0.0.0" or host.startswith("127.")  # noqa: S104 - it is compared


def _host_port(url: str) -> tuple[str, int]:
    found = re.match(r"[a-z+]+://([^:/]+):([0-9]+)", url)
    assert found is not None  # noqa: S101 -- the pattern of a target has both
    return found[1].lower().rstrip("."), int(found[2])
