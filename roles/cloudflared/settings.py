"""Variables of the cloudflared role."""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from boxwright.addresses import is_address
from boxwright.describe import Words
from boxwright.errors import Problem
from boxwright.settings import Port, RoleSettings, Secret

# What answers whoever asks for a name that is not served; the last rule, since cloudflared wants one that fits all.
NOTHING = "http_status:404"
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def _object(text: str) -> dict[str, Any]:
    """The JSON object that `text` is. Raises ValueError when it is none."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _token(value: Secret) -> Secret:
    # cloudflared 2026.8.2 (cmd/cloudflared/tunnel/subcommands.go, connection/connection.go): base64 of a JSON object
    # with account `a`, tunnel `t` and secret `s`.
    text = value.get_secret_value().strip()
    try:
        found = _object(base64.b64decode(text, validate=True).decode())
    except (binascii.Error, ValueError):
        found = {}
    if not {"a", "t", "s"} <= set(found) or not re.fullmatch(_UUID, str(found["t"])):
        raise ValueError("the token that Cloudflare shows for the tunnel, a line that begins with eyJ")
    return value


def _credentials(value: Secret) -> Secret:
    try:
        found = _object(value.get_secret_value())
    except ValueError:
        found = {}
    if not {"AccountTag", "TunnelSecret", "TunnelID"} <= set(found) or not re.fullmatch(_UUID, str(found["TunnelID"])):
        raise ValueError("the text of the file that `cloudflared tunnel create` wrote, with TunnelID and TunnelSecret")
    return value


_TOKEN = Words("the token that Cloudflare shows for the tunnel, a line that begins with eyJ")
_CREDENTIALS = Words("the text of the file that `cloudflared tunnel create` wrote")


class Rule(BaseModel):
    """One rule of a tunnel, in the words of cloudflared's own `ingress`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hostname: str = Field("", description="Name that the rule is for; empty only in the last one.")
    path: str = Field("", description="Regular expression (Go's) that the path must match; empty matches every path.")
    service: str = Field(description="`gateway`, or its address on the box; `http_status:404` in the last one.")


class CloudflaredSettings(RoleSettings, prefix="cloudflared"):
    """Cloudflare Tunnel: the gateway on the internet, without an open port."""

    enabled: bool = Field(
        False,
        description="Connect the box to Cloudflare, so that the gateway is reached from the internet. When it is set "
        "to false later, the tunnel and its secrets go; the package stays until `boxwright remove`.",
    )
    token: Annotated[Secret, AfterValidator(_token), _TOKEN] | None = Field(
        None,
        description="Token of a tunnel whose rules are kept at Cloudflare (made in its dashboard). Either this or "
        "`cloudflared_credentials`.",
    )
    credentials: Annotated[Secret, AfterValidator(_credentials), _CREDENTIALS] | None = Field(
        None,
        description="Text of the credentials file, as JSON, of a tunnel whose rules are kept here (made by "
        "`cloudflared tunnel create`).",
    )
    ingress: tuple[Rule, ...] = Field(
        (),
        description="With `cloudflared_credentials`: the rules, of which each leads to the gateway, and the last is "
        "`service: http_status:404`. Empty: every name of `gateway_names` that is not an address.",
        examples=[[{"hostname": "llm.example.com", "service": "gateway"}, {"service": "http_status:404"}]],
    )
    protocol: Literal["auto", "quic", "http2"] = Field(
        "auto", description="How it speaks to Cloudflare: over UDP by QUIC, over TCP by HTTP/2, or whichever works."
    )
    metrics_port: Port = Field(20241, description="TCP port on loopback where it tells its metrics and readiness.")

    def problems(self, box: Any) -> Iterable[Problem]:
        """Refuses a tunnel that goes around the gateway, or to one that asks nobody who they are."""
        if not self.enabled:
            return
        yield from self._who_may_call(box)
        yield from self._which_tunnel()
        if self.credentials is not None:
            yield from self._rules(box)

    def _who_may_call(self, box: Any) -> Iterator[Problem]:
        open_ways = [("gateway_auth", "`gateway_auth` is none", box.gateway.auth)]
        open_ways += [
            ("gateway_routes", f"`gateway_routes` has {route.path} with `auth: none`", route.auth)
            for route in box.gateway.routes
        ]
        for variable, what, auth in open_ways:
            if auth == "none":
                yield Problem(
                    code="BW023",
                    variable=variable,
                    message=f"{what}, but `cloudflared_enabled` opens the gateway to the internet",
                    help="ask for credentials there (`any`, `basic` or `bearer`), or set `cloudflared_enabled: false`",
                )

    def _which_tunnel(self) -> Iterator[Problem]:
        if (self.token is None) == (self.credentials is None):
            both = self.token is not None
            yield Problem(
                code="BW161",
                variable="cloudflared_token" if both else "cloudflared_enabled",
                message="`cloudflared_token` and `cloudflared_credentials` are both set"
                if both
                else "`cloudflared_enabled` is set, but nothing says which tunnel the box is an end of",
                help="keep one of them"
                if both
                else "set `cloudflared_token` or `cloudflared_credentials`, in a file made by ansible-vault",
                sensitive=both,
            )
        if self.token is not None and self.ingress:
            yield Problem(
                code="BW161",
                variable="cloudflared_ingress",
                message="`cloudflared_ingress` has no effect with `cloudflared_token`: such a tunnel's rules are kept "
                "at Cloudflare",
                help="write the rules there and remove `cloudflared_ingress`, or use `cloudflared_credentials`",
            )

    def _rules(self, box: Any) -> Iterator[Problem]:
        def wrong(message: str, help: str) -> Problem:
            return Problem(code="BW160", variable="cloudflared_ingress", message=message, help=help)

        if not self.ingress:
            if not self.public_names(box):
                yield Problem(
                    code="BW160",
                    variable="gateway_names",
                    message="`gateway_names` has only addresses: a tunnel is reached by a name",
                    help="add the name that leads to the tunnel, such as llm.example.com",
                )
            return
        *rules, last = self.ingress
        if last.service != NOTHING or last.hostname or last.path:
            yield wrong(
                f"the last rule of `cloudflared_ingress` is not `service: {NOTHING}` alone: cloudflared wants one that "
                "fits every request, and whoever asks for another name shall get nothing",
                f"add `- service: {NOTHING}` at its end",
            )
            rules = list(self.ingress)
        for number, rule in enumerate(rules, 1):
            if rule.service not in ("gateway", *self.gateway_urls(box)):
                yield wrong(
                    f"rule {number} of `cloudflared_ingress` leads to {rule.service}, past the gateway",
                    f"write `service: gateway` (that is {self.gateway_urls(box)[0]}); what is behind the gateway is "
                    "reached by its paths, see `gateway_routes`",
                )
            if rule.hostname not in box.gateway.names:
                yield wrong(
                    f"rule {number} of `cloudflared_ingress` has the hostname {rule.hostname or '(none)'}, which the "
                    "gateway does not serve: it would answer 421",
                    "add the name to `gateway_names`, or write one of those: "
                    + (", ".join(self.public_names(box)) or "there is none that is not an address"),
                )
            try:
                re.compile(rule.path)
            except re.error as error:
                yield wrong(
                    f"the path of rule {number} of `cloudflared_ingress` is not a regular expression: {error}",
                    r"write one such as ^/v1/, or leave `path` out",
                )

    def public_names(self, box: Any) -> tuple[str, ...]:
        """The names of the gateway by which a tunnel can be reached: those that are not addresses."""
        return tuple(name for name in box.gateway.names if not is_address(name))

    def gateway_urls(self, box: Any) -> tuple[str, ...]:
        """How the gateway's address on the box may be written in a rule; the first is the one that is used here."""
        own = box.gateway.address_on_box
        hosts = [f"[{own}]" if ":" in own else own]
        if ip_address(own).is_loopback:
            hosts.append("localhost")
        port = box.gateway.port
        urls = [f"https://{host}:{port}" for host in hosts]
        return (*urls, *(f"https://{host}" for host in hosts if port == 443))

    def rules(self, box: Any) -> tuple[Rule, ...]:
        """The rules of `config.yml`: the last one alone with a token, since then the others are kept at Cloudflare."""
        nothing = Rule(service=NOTHING)
        if self.credentials is None:
            return (nothing,)
        url = self.gateway_urls(box)[0]
        declared = self.ingress[:-1] or tuple(Rule(hostname=name, service=url) for name in self.public_names(box))
        return (*(rule.model_copy(update={"service": url}) for rule in declared), nothing)

    @property
    def tunnel_id(self) -> str:
        """The tunnel that `credentials` are for; empty with a token."""
        return str(_object(self.credentials.get_secret_value())["TunnelID"]) if self.credentials else ""

    def origins(self, box: Any) -> tuple[str, ...]:
        """Where pages that come through the tunnel are from, as browsers say it."""
        return tuple(f"https://{name}" for name in self.public_names(box)) if self.enabled else ()
