"""Variables of the gateway role."""

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, IPvAnyAddress, IPvAnyNetwork

from boxwright.addresses import is_address
from boxwright.connection import TUNNEL_PORT
from boxwright.describe import Words
from boxwright.engines import OPENAI_PATHS
from boxwright.errors import Problem
from boxwright.settings import Added, ByteSize, Generated, Hashed, OtherOnMac, Port, RoleSettings, Secret
from roles.gateway.places import PLACES

RouteAuth = Literal["any", "basic", "bearer", "none"]
Auth = Literal["any", "basic", "bearer", "keys", "none"]
TokenName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"),
    Words("a name of at most 63 letters, digits, dots, dashes and underscores"),
]


def _token(value: Secret) -> Secret:
    # The characters that RFC 6750 allows in a bearer token; none of them means anything to Caddy or nginx.
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]{20,512}=*", value.get_secret_value()):
        raise ValueError("a secret text of at least 20 letters, digits or ._~+/-")
    return value


Token = Annotated[Secret, AfterValidator(_token), Words("a secret text of at least 20 letters, digits or ._~+/-")]
Host = Annotated[
    str,
    Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)$"),
    Words("a name or an address, such as llm.example or 192.0.2.10"),
]
Origin = Annotated[
    str,
    Field(pattern=r"^https?://[a-z0-9.-]+(:[0-9]{1,5})?$"),
    Words("an origin as browsers say it, such as https://app.example"),
]
Upstream = Annotated[
    str,
    Field(pattern=r"^(\[[0-9a-f:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"),
    Words("a host and its port, such as 127.0.0.1:8000"),
]
EnginePath = Annotated[
    str, Field(pattern=r"^/[A-Za-z0-9._/-]*\*?$"), Words("a path, with * at its end for all below it")
]

# Root certificate of the authority that is made for nginx, which has none of its own.
NGINX_AUTHORITY = "/var/lib/boxwright/authority/root.crt"

# Name in the access log of what Open WebUI asks of the engine.
OPEN_WEBUI = "open-webui"


class Health(BaseModel):
    """How it is seen whether an engine works."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field("/health", pattern=r"^/[A-Za-z0-9._/-]*$", description="Path that is asked.")
    body: str = Field(
        "",
        pattern=r'^[^\s`"{}]*$',
        description="Regular expression that the answer must match; some engines answer 200 when they do not work.",
    )


class Route(BaseModel):
    """A further engine or service below a path of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(
        pattern=r"^/[a-z0-9][a-z0-9-]*$", description="First part of the path by which clients reach it, such as /vllm."
    )
    upstreams: tuple[Upstream, ...] = Field(
        min_length=1, description="Where it listens; several of the same kind share the load."
    )
    strip: bool = Field(True, description="Take `path` away before the request is handed on.")
    allow: tuple[EnginePath, ...] = Field(
        OPENAI_PATHS, min_length=1, description="What may be called there, as the upstream sees it."
    )
    auth: RouteAuth | None = Field(
        None, description="As `gateway_auth`, for this path. Unset it is the same, and `any` with `gateway_auth: keys`."
    )
    in_flight: int | None = Field(None, ge=1, le=10000, description="As `gateway_in_flight`, for each upstream.")
    health: Health = Field(Health(), description="How it is seen which of several upstreams work.")


class GatewaySettings(RoleSettings, prefix="gateway"):
    """The gateway: the only door of the box. HTTPS, authentication for `/v1`, everything else to Open WebUI."""

    server: Literal["caddy", "nginx"] = Field("caddy", description="The program that does it.")

    # Where it listens.
    bind: tuple[IPvAnyAddress, ...] = Field(
        (ip_address("127.0.0.1"),),
        min_length=1,
        description="Addresses of the box on which the door is open. The default opens it to the box "
        "alone; 0.0.0.0 opens it to every network the box is in.",
        examples=[["0.0.0.0"]],  # noqa: S104 -- an example in the documentation
    )
    port: Port = OtherOnMac(
        443,
        mac=8443,
        description="TCP port of the door. macOS lets the gateway open 443 on all addresses alone.",
    )
    names: tuple[Host, ...] = Field(
        min_length=1,
        description="Names and addresses by which clients call the box; the first is the one printed.",
        examples=[["llm.example.internal", "192.0.2.10"]],
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Proxies in front of the box whose `X-Forwarded-For` is believed. Nobody else's is, so that nobody "
        "chooses the address that is counted or logged.",
        examples=[["192.0.2.0/24"]],
    )
    internal_port: Port = Field(
        8088,
        description="TCP port where Open WebUI asks for the engine: on the Compose network's own address, or on "
        "loopback where it runs without a container, and on a Mac.",
    )
    metrics_port: Port = Field(9180, description="TCP port on loopback where the gateway tells its metrics.")

    # Certificates.
    tls: Literal["internal", "files", "acme", "tailscale"] = Field(
        "internal",
        description="Where certificates come from. `internal`: a certificate authority on the box itself, whose root "
        "is kept on the control machine. `files`: `gateway_certificate`. `acme`: an authority that speaks ACME, Let's "
        "Encrypt unless `gateway_acme_directory` says otherwise. `tailscale`: the box's own tailscaled, for a name "
        "below ts.net.",
    )
    certificate: str = Field(
        "",
        pattern=r"^(-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s-]+)?$",
        description="With `gateway_tls: files`: the certificate and those between it and its root, as PEM text.",
        examples=["-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIU\n-----END CERTIFICATE-----\n"],
    )
    certificate_key: Secret | None = Field(None, description="Private key of `gateway_certificate`, as PEM text.")
    acme_challenge: Literal["tls-alpn", "http", "dns-cloudflare"] = Field(
        "tls-alpn",
        description="How the box proves that a name is its own. `tls-alpn`: on the door itself, which must be port 443 "
        "of a public address. `http`: on port 80 beside it. `dns-cloudflare`: by a record in a zone at Cloudflare, "
        "also for a name that leads to a private address; needs the custom Caddy.",
    )
    acme_email: str = Field(
        "", pattern=r'^([^@\s{}"`]+@[^@\s{}"`]+)?$', description="Where the authority writes when something is wrong."
    )
    acme_directory: str = Field(
        "", pattern=r'^(https://[^\s{}"]+)?$', description="Directory of another authority than Let's Encrypt."
    )
    acme_root: str = Field(
        "",
        pattern=r"^(-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s-]+)?$",
        description="Root certificate of that authority's own server, as PEM text, when the box does not know it.",
    )
    cloudflare_token: Secret | None = Field(
        None, description="API token of Cloudflare with the rights Zone:Read and DNS:Edit for the zone of the name."
    )
    acme_resolvers: tuple[Upstream, ...] = Field(
        (),
        description="With dns-cloudflare: name servers that are asked for the zone and for the record, instead of the "
        "box's own. Needed where the box's own give other answers than those of the internet.",
        examples=[["192.0.2.53:53"]],
    )
    hsts: int | None = Field(
        None,
        ge=0,
        description="For how many seconds browsers shall refuse to speak plain HTTP with the name; 0 says nothing. "
        "Unset it is a year, and nothing with the box's own certificate authority.",
    )

    # Who may call.
    auth: Auth = Field(
        "any",
        description="How callers of `/v1` prove who they are: `basic` by user and password, `bearer` by a token, `any` "
        "by either; `keys` by a key of the API service, which then is behind `/v1` (`api_enabled`). `none` is "
        "accepted on loopback only.",
    )
    user: str = Field("boxwright", pattern=r"^[A-Za-z0-9._-]+$", description="User name for `/v1`.")
    password: Secret = Generated(bytes=24, description="Password for `/v1`. Made once, kept on the control machine.")
    hash: Literal["bcrypt", "argon2id"] = Field(
        "bcrypt",
        description="How the gateway keeps the password. `argon2id` costs an attacker who steals it memory too.",
    )
    password_hash: Secret = Hashed(of="password", by="hash", description="What the gateway keeps of the password.")
    tokens: dict[TokenName, Token] = Added(
        by="boxwright token add",
        description="Bearer tokens for `/v1`, by the name that the access log shows. `boxwright token add` makes "
        "further ones, which are kept on the control machine.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description="Origins whose pages may call the engines from a browser, with credentials. No other page may.",
        examples=[["https://app.example"]],
    )

    # Limits.
    requests: int = Field(
        0,
        ge=0,
        description="Requests to the engines that one client may make in a window; a client is a token, else an "
        "address. 0 sets no limit. Needs the custom Caddy.",
    )
    requests_of_all: int = Field(
        0, ge=0, description="Requests to the engines that all clients together may make in a window; 0: no limit."
    )
    window: int = Field(60, ge=1, le=86400, description="Length of the window in seconds; it slides.")
    in_flight: int = Field(10, ge=1, le=10000, description="Requests that each engine works on at the same time.")
    wait: int | None = Field(
        None,
        ge=0,
        le=60000,
        description="Milliseconds that a further request waits for its turn before it is refused with status 429. "
        "Unset it is 250, and 0 with nginx, which refuses at once.",
    )
    exact_limits: bool = Field(
        False,
        description="Count requests in flight exactly, and let them wait in the order in which they came, also in a "
        "burst. Needs the custom Caddy; with one that is needed anyway, and with nginx, it is always so.",
    )
    max_body: ByteSize = Field(
        ByteSize(32 * 1024**2), description="Largest request to an engine; what is larger is refused with status 413."
    )
    max_upload: ByteSize = Field(ByteSize(1024**3), description="Largest request to Open WebUI.")
    header_timeout: int = Field(10, ge=1, le=600, description="Seconds a client has to send the head of a request.")
    idle_timeout: int = Field(
        300, ge=1, le=86400, description="Seconds after which a connection without a request is closed."
    )

    # Where requests go.
    paths: tuple[EnginePath, ...] = Field(
        OPENAI_PATHS, min_length=1, description="What may be called of the engine; all of it begins with /v1."
    )
    engines: tuple[Upstream, ...] = Field(
        (),
        description="Engines on other machines that serve the same models. Requests go to the one with the fewest in "
        "flight, and never to one that does not answer.",
        examples=[["192.0.2.11:8081"]],
    )
    health: Health | None = Field(
        None, description="How it is seen which of several engines work. Unset it is as `inference_engine` tells it."
    )
    routes: tuple[Route, ...] = Field(
        (),
        description="Further engines and services, each below a path of its own.",
        examples=[[{"path": "/vllm", "upstreams": ["127.0.0.1:8000"]}]],
    )

    # What is kept of it.
    log_size: ByteSize = Field(ByteSize(50 * 1024**2), description="The access log is rotated at this size.")
    log_keep: int = Field(10, ge=1, le=1000, description="Rotated access logs that are kept.")

    def problems(self, box: Any) -> Iterable[Problem]:
        """Refuses a door that is open to a network without authentication, and what does not fit together."""
        yield from self._open_doors()
        yield from self._ports(box)
        yield from self._certificates()
        yield from self._clients()
        yield from self._paths(box)
        yield from self._keys(box)
        yield from self._nginx(box)
        if box.system == "darwin":
            yield from self._mac()

    def _open_doors(self) -> Iterable[Problem]:
        if not self.public_addresses:
            return
        where = f"the door is open on {', '.join(self.public_addresses)}"
        if self.auth == "none":
            yield Problem(
                code="BW023",
                variable="gateway_auth",
                message=f"`gateway_auth` is none, but {where}",
                help="set `gateway_auth: any`, or keep `gateway_bind` on 127.0.0.1",
            )
        for route in self.routes:
            if route.auth == "none":
                yield Problem(
                    code="BW023",
                    variable="gateway_routes",
                    message=f"`gateway_routes` has {route.path} with `auth: none`, but {where}",
                    help="remove `auth` there, or keep `gateway_bind` on 127.0.0.1",
                )

    def _ports(self, box: Any) -> Iterable[Problem]:
        ports: dict[int, str] = {}
        engines = [
            (f"{engine}_{field}", port, True)
            for engine in box.inference.running
            for field, port in box.engine(engine).ports(box).items()
        ]
        for variable, port, used in (
            ("gateway_port", self.port, True),
            ("gateway_internal_port", self.internal_port, box.openwebui.enabled),
            ("gateway_metrics_port", self.metrics_port, True),
            ("openwebui_port", box.openwebui.port, box.openwebui.enabled and not box.openwebui.on_a_network(box)),
            ("cloudflared_metrics_port", box.cloudflared.metrics_port, box.cloudflared.enabled),
            *engines,
            ("postgresql_port", box.postgresql.port, box.postgresql.runs(box)),
            ("redis_port", box.redis.port, box.redis.runs(box)),
            ("qdrant_port", box.qdrant.port, box.qdrant.runs(box)),
            ("api_port", box.api.port, box.api.enabled),
            ("api_development_port", box.api.development_port, box.api.enabled and box.api.development),
        ):
            if not used:
                continue
            if port in ports:
                yield Problem(
                    code="BW024",
                    variable=variable,
                    message=f"port {port} is used twice: by `{ports[port]}` and by `{variable}`",
                    help="give one of them another port",
                )
            ports.setdefault(port, variable)

    def _certificates(self) -> Iterable[Problem]:
        def together(variable: str, message: str, help: str) -> Problem:
            return Problem(code="BW022", variable=variable, message=message, help=help)

        if self.tls == "files" and not (self.certificate and self.certificate_key):
            yield together(
                "gateway_tls",
                "`gateway_tls` is files, but there is no certificate with its key",
                "set `gateway_certificate` and `gateway_certificate_key`",
            )
        if self.tls == "acme" and self.acme_challenge == "dns-cloudflare" and self.cloudflare_token is None:
            yield together(
                "gateway_acme_challenge",
                "`gateway_acme_challenge` is dns-cloudflare, but there is no token for Cloudflare",
                "set `gateway_cloudflare_token`, in a file made by ansible-vault",
            )
        if self.tls == "acme" and self.acme_challenge != "dns-cloudflare" and not self.public_addresses:
            yield together(
                "gateway_acme_challenge",
                f"an authority cannot reach the box for `gateway_acme_challenge` {self.acme_challenge}: "
                "`gateway_bind` is loopback",
                "open `gateway_bind`, or use dns-cloudflare",
            )
        if self.validated_at_the_door and {str(address) for address in self.bind} == {"::"}:
            yield together(
                "gateway_bind",
                f"`gateway_bind` is :: alone, with which `gateway_acme_challenge` {self.acme_challenge} does not work",
                "name the box's address, or open 0.0.0.0 too",
            )
        if self.tls == "tailscale" and (others := [name for name in self.names if not name.endswith(".ts.net")]):
            yield together(
                "gateway_tls",
                f"`gateway_tls` is tailscale, but `gateway_names` has {', '.join(others)}: tailscaled gives "
                "certificates for names that end with .ts.net",
                "write the name that `tailscale status` shows for the box, and no other",
            )

    def _clients(self) -> Iterable[Problem]:
        for name in (self.user, OPEN_WEBUI):
            if name in self.tokens:
                yield Problem(
                    code="BW022",
                    variable="gateway_tokens",
                    message=f"a token has the name {name}, which the access log uses for "
                    + ("the user of `gateway_password`" if name == self.user else "Open WebUI"),
                    help="give the token another name",
                )
        values = [token.get_secret_value() for token in self.tokens.values()]
        if len(set(values)) < len(values):
            yield Problem(
                code="BW022",
                variable="gateway_tokens",
                message="two names of `gateway_tokens` have the same token",
                help="give each client a token of its own",
                sensitive=True,
            )

    def _paths(self, box: Any) -> Iterable[Problem]:
        engines = {"/v1", *(f"/{engine}" for engine in box.inference.running[1:])}
        seen: set[str] = set()
        for route in self.routes:
            reserved = route.path in engines or (box.openwebui.enabled and route.path in _OPEN_WEBUI_PATHS)
            if reserved or route.path in seen:
                owner = "the engine" if route.path in engines else "Open WebUI" if reserved else "another route"
                yield Problem(
                    code="BW022",
                    variable="gateway_routes",
                    message=f"`gateway_routes` has {route.path}, which belongs to {owner}",
                    help="choose another path",
                )
            seen.add(route.path)
        for path in self.paths:
            if not path.startswith("/v1/"):
                yield Problem(
                    code="BW022",
                    variable="gateway_paths",
                    message=f"`gateway_paths` has {path}, but the engine is reached below /v1 only",
                    help="write a path that begins with /v1/, or add a route to `gateway_routes`",
                )

    def _keys(self, box: Any) -> Iterable[Problem]:
        """Who asks for keys, and for what."""
        if not self.asks_for_keys:
            return
        if not box.api.enabled:
            yield Problem(
                code="BW029",
                variable="gateway_auth",
                message="`gateway_auth` is keys, and the API service that knows keys is not switched on",
                help="set `api_enabled: true`, or `gateway_auth: bearer` for the gateway's own tokens",
            )
        if self.engines:
            yield Problem(
                code="BW022",
                variable="gateway_engines",
                message="`gateway_engines` has engines on other machines, but with `gateway_auth: keys` requests go to "
                "the API service",
                help="name them in `api_models`, each with the models that it serves",
            )

    def _nginx(self, box: Any) -> Iterable[Problem]:
        """What the open-source nginx of the distributions cannot do."""
        if self.server != "nginx":
            return

        def cannot(variable: str, message: str, help: str) -> Problem:
            return Problem(code="BW025", variable=variable, message=message, help=help)

        if self.wait:
            yield cannot(
                "gateway_wait",
                "nginx cannot let a request wait for its turn",
                "remove `gateway_wait`: nginx refuses at once; or set `gateway_server: caddy`",
            )
        if self.tls in ("acme", "tailscale"):
            yield cannot(
                "gateway_tls",
                f"nginx gets no certificates by itself: `gateway_tls` is {self.tls}",
                "set `gateway_tls: files` and `gateway_certificate`, or `gateway_server: caddy`",
            )
        if self.hash != "bcrypt":
            yield cannot(
                "gateway_hash",
                f"nginx knows passwords kept by the system's own kinds, and {self.hash} is none of them",
                "set `gateway_hash: bcrypt`, or `gateway_server: caddy`",
            )
        for field, count in (("requests", self.requests), ("requests_of_all", self.requests_of_all)):
            if count:
                yield cannot(
                    f"gateway_{field}",
                    "nginx spreads requests over time and cannot count them in a window",
                    f"remove `gateway_{field}`, or set `gateway_server: caddy`",
                )
        behind = [("gateway_health", "gateway_engines", self.health_of(box), self.engines)]
        behind += [("gateway_routes", "gateway_routes", route.health, route.upstreams) for route in self.routes]
        for variable, where, health, upstreams in behind:
            if health.body:
                yield cannot(
                    variable,
                    "nginx does not look at what an engine says of its health, only at whether it answers",
                    f"remove `body` from `{variable}`, or set `gateway_server: caddy`",
                )
            for upstream in upstreams:
                host = upstream.rpartition(":")[0].strip("[]")
                if not is_address(host):
                    yield cannot(
                        where,
                        f"nginx looks a name up at its start alone, and does not start without it: {upstream}",
                        "write the address instead of the name, or set `gateway_server: caddy`",
                    )

    def _mac(self) -> Iterable[Problem]:
        """What macOS does not have, or does otherwise."""
        if self.server == "nginx":
            yield Problem(
                code="BW027",
                variable="gateway_server",
                message="`gateway_server` is nginx, which is run from the packages of a Linux distribution",
                help="remove `gateway_server`, or set it to caddy",
            )
        # bind(2): since macOS 10.14 everybody may open such a port on all addresses, and root alone on one of them
        # (in_pcbbind in XNU's bsd/netinet/in_pcb.c). The gateway is not root.
        low = [("gateway_port", self.port)] if self.port < 1024 else []
        low += [("gateway_acme_challenge", self.http_port)] if self.http_port else []
        some = [str(address) for address in self.bind if not address.is_unspecified]
        for variable, port in low if some else ():
            yield Problem(
                code="BW027",
                variable=variable,
                message=f"the gateway cannot open port {port} on {', '.join(some)}: macOS lets an account that is not "
                "root open a port below 1024 on all addresses alone",
                help="set `gateway_port: 8443`, for example, which Tailscale and a tunnel lead to as well"
                + ("; or open it to every network the Mac is in: `gateway_bind: [0.0.0.0]`")
                if variable == "gateway_port"
                else "set `gateway_bind: [0.0.0.0, '::']`, or `gateway_acme_challenge: dns-cloudflare`",
            )
        if self.validated_at_the_door and {str(address) for address in self.bind} == {"0.0.0.0"}:  # noqa: S104
            yield Problem(
                code="BW027",
                variable="gateway_bind",
                message=f"with `gateway_acme_challenge` {self.acme_challenge} the gateway would listen on IPv6 too, "
                "which only Linux keeps it from",
                help="write `gateway_bind: [0.0.0.0, '::']`, or use dns-cloudflare",
            )

    def health_of(self, box: Any) -> Health:
        """How it is seen which of the engines behind `/v1` work."""
        if self.health is not None or not box.inference.running:
            return self.health or Health()
        engine = box.engine(box.inference.running[0])
        return Health(path=engine.health_path, body=engine.health_body if self.engines else "")

    @property
    def url(self) -> str:
        """Address of the box for people and programs, with a trailing slash."""
        return f"{self.origins[0]}/"

    @property
    def origins(self) -> tuple[str, ...]:
        """Where pages of the box come from, as browsers say it: every name, and the tunnel to a closed door."""
        hosts = [f"[{name}]" if ":" in name else name for name in self.names]
        origins = [f"https://{host}" if self.port == 443 else f"https://{host}:{self.port}" for host in hosts]
        if not self.public_addresses:
            origins += [f"https://{host}:{TUNNEL_PORT}" for host in hosts]
        return tuple(origins)

    @property
    def public_addresses(self) -> tuple[str, ...]:
        """The addresses of `bind` that others than the box itself can reach."""
        return tuple(str(address) for address in self.bind if not address.is_loopback)

    @property
    def address_on_box(self) -> str:
        """The address by which programs on the box reach the door."""
        first = str(self.bind[0])
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first)  # noqa: S104 -- compared, not opened

    def own_authority(self, box: Any) -> str:
        """Path on the box of the root certificate that signs the door's; empty where that is not the box's own."""
        if self.tls != "internal":
            return ""
        return NGINX_AUTHORITY if self.server == "nginx" else PLACES[box.system].authority

    def believed_proxies(self, box: Any) -> tuple[str, ...]:
        """Networks whose `X-Forwarded-For` is believed: `trusted_proxies`, and the box's own end of a tunnel.

        cloudflared comes from the box itself: from loopback, or from the very address that it asks. Cloudflare adds the
        client's address at the end of the header, whatever the client wrote there, and the last address that is not a
        proxy's is the one that counts.
        """
        found = [str(network) for network in self.trusted_proxies]
        if box.cloudflared.enabled:
            own = ip_address(self.address_on_box)
            loopback = "127.0.0.1/32" if own.version == 4 else "::1/128"
            found.append(loopback if own.is_loopback else f"{own}/{own.max_prefixlen}")
        return tuple(dict.fromkeys(found))

    @property
    def asks_for_keys(self) -> bool:
        """Whether `/v1` is the API service's, which asks for keys itself."""
        return self.auth == "keys"

    @property
    def asks_for_password(self) -> bool:
        """Whether user and password open `/v1`."""
        return self.auth in ("any", "basic")

    @property
    def strict_transport(self) -> int:
        """Seconds for the header Strict-Transport-Security; 0 for none."""
        if self.hsts is not None:
            return self.hsts
        return 0 if self.tls == "internal" else 31536000

    def account(self, box: Any) -> str:
        """The account that the gateway runs as."""
        return "gateway" if self.server == "nginx" else PLACES[box.system].user

    def access_log(self, box: Any) -> str:
        """Path of the access log on the box."""
        # The folder /var/log/nginx is the package's own, which rotates what is in it.
        return "/var/log/gateway/access.log" if self.server == "nginx" else PLACES[box.system].access_log

    @property
    def patience(self) -> int:
        """Milliseconds that a request waits for its turn."""
        return self.wait if self.wait is not None else 0 if self.server == "nginx" else 250

    @property
    def validated_at_the_door(self) -> bool:
        """Whether a certificate authority comes to the box, to see that a name is its own."""
        return self.tls == "acme" and self.acme_challenge != "dns-cloudflare"

    @property
    def http_port(self) -> int | None:
        """The second port that is open for ACME's HTTP challenge."""
        return 80 if self.tls == "acme" and self.acme_challenge == "http" else None


# First parts of paths that Open WebUI 0.12 serves: its backend's routers and its pages.
_OPEN_WEBUI_PATHS = frozenset(
    {"/api", "/auth", "/admin", "/assets", "/static", "/ws", "/ollama", "/openai", "/oauth", "/cache", "/health"}
    | {"/ready", "/workspace", "/playground", "/notes", "/channels", "/error", "/watch", "/docs", "/c", "/s"}
)
