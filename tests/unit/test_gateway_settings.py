"""The gateway's variables: what is refused, in which words; and what the Caddyfile makes of each choice.

A Caddyfile is read here as its own grammar says, as blocks in blocks; what the server does with it is seen in
tests/integration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from boxwright.errors import Problem, Refused
from boxwright.preflight import Machine
from boxwright.settings import parse_box
from roles.gateway import caddy
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
PEM = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIU\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nMIIBszCCAVmgAwIBAgIU\n-----END PRIVATE KEY-----\n"
TOKEN = "a-token-of-some-length"
OPEN = {"gateway_bind": ["0.0.0.0"]}
VLLM = {"path": "/vllm", "upstreams": ["127.0.0.1:8000"]}
MACHINE = Machine("Linux", "x86_64", "debian", "13", True, 2**34, 2**36)


def a_box(**variables: Any) -> Box:
    return parse_box(
        Box, "box", (), {"gateway_names": ["llm.example"], "inference_models": [MODEL], **variables}, None, None
    )


def refused(**variables: Any) -> Problem:
    """The one problem of a box with these variables."""
    with pytest.raises(Refused) as caught:
        a_box(**variables)
    (problem,) = caught.value.problems
    return problem


def first(**variables: Any) -> Problem:
    """The first of what is said of one wrong value."""
    with pytest.raises(Refused) as caught:
        a_box(**variables)
    return caught.value.problems[0]


# What does not fit together

CONTRADICTIONS: list[tuple[str, dict[str, Any], tuple[str, str], str, str]] = [
    # name, variables, (code, variable), a part of the message, a part of the way out
    (
        "an open door without authentication",
        {**OPEN, "gateway_auth": "none"},
        ("BW023", "gateway_auth"),
        "`gateway_auth` is none, but the door is open on 0.0.0.0",
        "set `gateway_auth: any`",
    ),
    (
        "one address of several is public",
        {"gateway_bind": ["127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"], "gateway_auth": "none"},
        ("BW023", "gateway_auth"),
        "the door is open on 192.0.2.1, 2001:db8::1",
        "127.0.0.1",
    ),
    (
        "a route without authentication",
        {**OPEN, "gateway_routes": [{**VLLM, "auth": "none"}]},
        ("BW023", "gateway_routes"),
        "/vllm with `auth: none`",
        "remove `auth` there",
    ),
    (
        "the engine's port is the door's",
        {"llamacpp_port": 443},
        ("BW024", "llamacpp_port"),
        "port 443 is used twice: by `gateway_port` and by `llamacpp_port`",
        "another port",
    ),
    (
        "the metrics' port is the door's",
        {"gateway_metrics_port": 443},
        ("BW024", "gateway_metrics_port"),
        "`gateway_port` and by `gateway_metrics_port`",
        "another port",
    ),
    (
        "the metrics' port is the engine's",
        {"gateway_metrics_port": 8081},
        ("BW024", "llamacpp_port"),
        "`gateway_metrics_port` and by `llamacpp_port`",
        "another port",
    ),
    (
        "the internal port is the metrics'",
        {"gateway_internal_port": 9180},
        ("BW024", "gateway_metrics_port"),
        "`gateway_internal_port` and by `gateway_metrics_port`",
        "another port",
    ),
    (
        "files without a certificate",
        {"gateway_tls": "files"},
        ("BW022", "gateway_tls"),
        "there is no certificate with its key",
        "set `gateway_certificate` and `gateway_certificate_key`",
    ),
    (
        "a certificate without its key",
        {"gateway_tls": "files", "gateway_certificate": PEM},
        ("BW022", "gateway_tls"),
        "there is no certificate with its key",
        "`gateway_certificate_key`",
    ),
    (
        "a key without its certificate",
        {"gateway_tls": "files", "gateway_certificate_key": KEY},
        ("BW022", "gateway_tls"),
        "there is no certificate with its key",
        "`gateway_certificate`",
    ),
    (
        "a challenge by DNS without a token",
        {"gateway_tls": "acme", "gateway_acme_challenge": "dns-cloudflare"},
        ("BW022", "gateway_acme_challenge"),
        "there is no token for Cloudflare",
        "set `gateway_cloudflare_token`, in a file made by ansible-vault",
    ),
    (
        "an authority that cannot reach the box",
        {"gateway_tls": "acme"},
        ("BW022", "gateway_acme_challenge"),
        "an authority cannot reach the box for `gateway_acme_challenge` tls-alpn",
        "use dns-cloudflare",
    ),
    (
        "nor by HTTP",
        {"gateway_tls": "acme", "gateway_acme_challenge": "http"},
        ("BW022", "gateway_acme_challenge"),
        "`gateway_acme_challenge` http: `gateway_bind` is loopback",
        "open `gateway_bind`",
    ),
    (
        "a name that is not in the tailnet",
        {"gateway_tls": "tailscale", "gateway_names": ["box.tail1234.ts.net", "192.0.2.1", "box.ts.net.example"]},
        ("BW022", "gateway_tls"),
        "`gateway_names` has 192.0.2.1, box.ts.net.example: tailscaled gives certificates for names that end",
        "tailscale status",
    ),
    (
        "a token with the user's name",
        {"gateway_tokens": {"boxwright": TOKEN}},
        ("BW022", "gateway_tokens"),
        "the user of `gateway_password`",
        "another name",
    ),
    (
        "also when the user is called otherwise",
        {"gateway_tokens": {"ann": TOKEN}, "gateway_user": "ann"},
        ("BW022", "gateway_tokens"),
        "a token has the name ann",
        "another name",
    ),
    (
        "a token with Open WebUI's name",
        {"gateway_tokens": {"open-webui": TOKEN}},
        ("BW022", "gateway_tokens"),
        "Open WebUI",
        "another name",
    ),
    (
        "two names with one token",
        {"gateway_tokens": {"a": TOKEN, "b": TOKEN}},
        ("BW022", "gateway_tokens"),
        "two names of `gateway_tokens` have the same token",
        "a token of its own",
    ),
    (
        "a route in the engine's place",
        {"gateway_routes": [{**VLLM, "path": "/v1"}]},
        ("BW022", "gateway_routes"),
        "/v1, which belongs to the engine",
        "another path",
    ),
    (
        "a route in the place of Open WebUI",
        {"gateway_routes": [{**VLLM, "path": "/api"}]},
        ("BW022", "gateway_routes"),
        "/api, which belongs to Open WebUI",
        "another path",
    ),
    (
        "two routes for one path",
        {"gateway_routes": [VLLM, VLLM]},
        ("BW022", "gateway_routes"),
        "/vllm, which belongs to another route",
        "another path",
    ),
    (
        "a path that is not the engine's",
        {"gateway_paths": ["/v1/models", "/metrics"]},
        ("BW022", "gateway_paths"),
        "`gateway_paths` has /metrics, but the engine is reached below /v1 only",
        "begins with /v1/",
    ),
    (
        "a path that only looks like the engine's",
        {"gateway_paths": ["/v1x/models"]},
        ("BW022", "gateway_paths"),
        "/v1x/models",
        "add a route to `gateway_routes`",
    ),
]


@pytest.mark.parametrize(
    ("variables", "what", "message", "help"), [case[1:] for case in CONTRADICTIONS], ids=[c[0] for c in CONTRADICTIONS]
)
def test_what_does_not_fit_together(variables: dict[str, Any], what: tuple[str, str], message: str, help: str) -> None:
    problem = refused(**variables)
    assert (problem.code, problem.variable) == what
    assert message in problem.message
    assert help in (problem.help or "")
    assert TOKEN not in f"{problem.message} {problem.help}"


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(Refused) as caught:
        a_box(**OPEN, gateway_auth="none", gateway_tls="files", llamacpp_port=443, gateway_paths=["/x"])
    assert sorted(problem.code for problem in caught.value.problems) == ["BW022", "BW022", "BW023", "BW024"]


@pytest.mark.parametrize(
    "variables",
    [
        {"gateway_auth": "none"},
        {"gateway_auth": "none", "gateway_bind": ["127.0.0.1", "::1"]},
        {"gateway_routes": [{**VLLM, "auth": "none"}]},
        {**OPEN, "gateway_routes": [{**VLLM, "auth": "bearer"}]},
        {"gateway_routes": [{**VLLM, "path": "/api"}], "openwebui_enabled": False},
        {"gateway_internal_port": 9180, "openwebui_enabled": False},
        {"llamacpp_port": 443, "inference_engine": "none"},
        {"gateway_tls": "acme", "gateway_acme_challenge": "dns-cloudflare", "gateway_cloudflare_token": "cf-token"},
        {**OPEN, "gateway_tls": "acme"},
        {"gateway_tls": "files", "gateway_certificate": PEM, "gateway_certificate_key": KEY},
        {"gateway_tls": "tailscale", "gateway_names": ["box.tail1234.ts.net"]},
        {"gateway_tokens": {"a": TOKEN, "b": f"{TOKEN}2"}},
        # It is exact by itself.
        {"gateway_exact_limits": True, "gateway_server": "nginx"},
        # What was set for another choice does no harm.
        {"gateway_certificate": PEM, "gateway_acme_challenge": "dns-cloudflare"},
    ],
)
def test_what_contradicts_nothing(variables: dict[str, Any]) -> None:
    assert a_box(**variables).gateway


# Limits of each variable

WRONG: list[tuple[str, Any, str]] = [
    # variable, values, a part of what is expected instead
    ("gateway_server", ["apache", ""], "caddy"),
    ("gateway_bind", [[], ["localhost"], ["10.0.0.0/8"], ["0.0.0.0:443"]], ""),
    ("gateway_port", [0, 65536, -1, "https", True], "1 to 65535"),
    ("gateway_names", [[]], ""),
    (
        "gateway_names",
        [
            ["https://llm.example"],
            ["llm.example:8443"],
            ["a b"],
            ["a {"],
            [""],
            ["*.example"],
            ["a,b"],
            ["-a"],
            ["a/b"],
        ],
        "a name or an address",
    ),
    ("gateway_trusted_proxies", [["proxy.example"], ["192.0.2.0/33"]], ""),
    ("gateway_tls", ["letsencrypt", "none"], "internal"),
    ("gateway_certificate", ["/etc/ssl/mine.pem", KEY, f"{PEM}{{"], ""),
    ("gateway_acme_challenge", ["dns", "http-01"], "dns-cloudflare"),
    ("gateway_acme_email", ["me", "me@example.org you@example.org", "a@b {", 'a@b"'], ""),
    ("gateway_acme_directory", ["http://ca.example/dir", "ca.example", "https://ca.example/ {", 'https://a"'], ""),
    ("gateway_acme_root", ["/root.pem", f"{PEM}`"], ""),
    ("gateway_hsts", [-1, "a year"], ""),
    ("gateway_auth", ["token", "", "basic,bearer"], "bearer"),
    ("gateway_user", ["", "a b", "a:b", "a{b", 'a"', "a\nb"], ""),
    (
        "gateway_cors_origins",
        [
            ["*"],
            ["https://*.example"],
            ["https://app.example/"],
            ["https://app.example/page"],
            ["app.example"],
            ["null"],
            ["https://APP.example"],
            ["https://app.example:port"],
            ["https://u:p@app.example"],
            ["ftp://app.example"],
            ['https://a"'],
            ["https://a b"],
            ["https://a\n"],
        ],
        "an origin as browsers say it, such as https://app.example",
    ),
    ("gateway_requests", [-1, "many"], ""),
    ("gateway_requests_of_all", [-1], ""),
    ("gateway_exact_limits", ["sometimes"], ""),
    ("gateway_window", [0, 86401], ""),
    ("gateway_in_flight", [0, 10001], ""),
    ("gateway_wait", [-1, 60001, "250ms"], ""),
    ("gateway_max_body", ["a lot", -1, True], ""),
    ("gateway_header_timeout", [0, 601], ""),
    ("gateway_idle_timeout", [0, 86401], ""),
    ("gateway_paths", [[], ["v1/models"], ["/v1/{x}"], ["/v1/a b"], ["/v1/*/x"], ['/v1/"'], ["/v1/\n"]], ""),
    (
        "gateway_engines",
        [["127.0.0.1"], ["http://127.0.0.1:8000"], ["127.0.0.1:8000/v1"], ["a b:1"], ["a:1 {"], ["2001:db8::1:80"]],
        "a host and its port, such as 127.0.0.1:8000",
    ),
    ("gateway_log_keep", [0, 1001], ""),
    ("gateway_metrics_port", [0, 65536], "1 to 65535"),
]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [(variable, value, expected) for variable, values, expected in WRONG for value in values],
)
def test_values_that_no_variable_takes(variable: str, value: Any, expected: str) -> None:
    problem = first(**{variable: value})
    assert (problem.code, problem.variable) == ("BW011", variable)
    assert f"`{variable}" in problem.message
    assert expected in f"{problem.message} {problem.help}"


@pytest.mark.parametrize(
    "names",
    [["llm.example"], ["LLM"], ["my_box.lan"], ["192.0.2.1"], ["2001:db8::1"], ["a-b.c"], ["localhost"], ["1.example"]],
)
def test_names_of_a_box(names: list[str]) -> None:
    assert list(a_box(gateway_names=names).gateway.names) == names


@pytest.mark.parametrize(
    "token",
    [
        "short",
        "a" * 19,
        "*" * 20,
        "a" * 20 + "*",
        "a" * 20 + '"',
        "a" * 20 + "'",
        "a" * 20 + "\n",
        "a" * 10 + " " * 10,
        "ü" * 20,
        "a" * 20 + "{x}",
        "a" * 20 + "`",
        "a" * 20 + "\\",
        "a" * 513,
        "=" + "a" * 20,
        "a" * 20 + "\x00",
    ],
)
def test_tokens_that_are_none(token: str) -> None:
    problem = refused(gateway_tokens={"ci": token})
    assert (problem.code, problem.variable) == ("BW011", "gateway_tokens")
    assert "`gateway_tokens.ci`" in problem.message
    assert "at least 20 letters, digits or ._~+/-" in f"{problem.message} {problem.help}"
    assert problem.sensitive
    assert token not in f"{problem.message} {problem.help}"


@pytest.mark.parametrize("token", ["a" * 20, "a" * 512, "Az09._~+/-" * 2, "a" * 20 + "==", "~" + "a" * 20])
def test_tokens_that_are_some(token: str) -> None:
    assert a_box(gateway_tokens={"ci": token}).gateway.tokens["ci"].get_secret_value() == token


@pytest.mark.parametrize("name", ["", "a b", "-a", "a{", 'a"', "a\n", "a" * 64, "ü", "a:b"])
def test_names_of_tokens_that_are_none(name: str) -> None:
    problem = refused(gateway_tokens={name: TOKEN})
    assert (problem.code, problem.variable) == ("BW011", "gateway_tokens")
    assert problem.message.startswith("`gateway_tokens` has the name ")
    assert problem.message.endswith("expected a name of at most 63 letters, digits, dots, dashes and underscores")
    assert TOKEN not in f"{problem.message} {problem.help}"


def test_a_list_with_a_wrong_item_is_not_called_too_short() -> None:
    assert refused(gateway_bind=["elsewhere"]).message == '`gateway_bind[0]` is "elsewhere"; expected an IP address'


def test_a_private_key_in_the_wrong_place_is_not_shown() -> None:
    problem = refused(gateway_certificate="-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG")
    assert problem.sensitive
    assert "MIGH" not in problem.message


@pytest.mark.parametrize(
    ("part", "value"),
    [("path", path) for path in ("vllm", "/", "/a/b", "/VLLM", "/a b", "/*", "/-a", "/a{", "")]
    + [("upstreams", []), ("upstreams", ["http://a:1"]), ("allow", []), ("allow", ["v1"]), ("auth", "token")]
    + [("in_flight", 0), ("health", {"path": "health"}), ("health", {"body": "a b"}), ("health", {"body": "`"})],
)
def test_parts_of_a_route_that_are_wrong(part: str, value: Any) -> None:
    problem = first(gateway_routes=[{**VLLM, part: value}])
    assert (problem.code, problem.variable) == ("BW011", "gateway_routes")
    assert part in problem.message


def test_a_part_that_a_route_does_not_have() -> None:
    problem = refused(gateway_routes=[{**VLLM, "upstream": ["127.0.0.1:1"]}])
    assert (problem.code, problem.help) == ("BW014", "did you mean `upstreams`?")
    assert refused(gateway_routes=[{"path": "/vllm"}]).code == "BW015"


# What the Caddyfile holds


@dataclass
class Block:
    """A line of a Caddyfile, and what stands in its braces."""

    line: str
    inner: list[Block] = field(default_factory=list)

    def named(self, beginning: str) -> list[Block]:
        """The blocks and lines right inside that begin so."""
        return [each for each in self.inner if f"{each.line} ".startswith(f"{beginning} ")]

    def one(self, beginning: str) -> Block:
        (found,) = self.named(beginning)
        return found

    def all(self) -> list[str]:
        """Every line inside, at any depth, in order."""
        return [line for each in self.inner for line in (each.line, *each.all())]

    def place(self, beginning: str) -> int:
        """The place of the first line inside that begins so."""
        return next(place for place, line in enumerate(self.all()) if f"{line} ".startswith(f"{beginning} "))

    def has(self, beginning: str) -> bool:
        return any(f"{line} ".startswith(f"{beginning} ") for line in self.all())


def parsed(text: str) -> Block:
    """A Caddyfile as blocks in blocks."""
    top = Block("")
    stack = [top]
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line == "}":
            stack.pop()
        elif line.endswith(" {") or line == "{":
            stack[-1].inner.append(Block(line.removesuffix("{").strip()))
            stack.append(stack[-1].inner[-1])
        else:
            stack[-1].inner.append(Block(line))
    assert stack == [top]
    return top


def config(**variables: Any) -> Block:
    return parsed(caddy.caddyfile(a_box(**variables)))


def door(**variables: Any) -> Block:
    """The site of the declared names."""
    return config(**variables).one("https://llm.example:443")


def way(name: str = "v1", **variables: Any) -> Block:
    """What happens to requests of a route, in order."""
    return door(**variables).one(f"handle @{name}")


@pytest.mark.parametrize(
    ("auth", "asks", "does_not"),
    [
        ("any", "basic_auth @nobody bcrypt", "route @nobody"),
        ("basic", "basic_auth bcrypt", "route @nobody"),
        ("bearer", "route @nobody", "basic_auth"),
    ],
)
def test_credentials_come_before_everything_that_knows_the_engine(auth: str, asks: str, does_not: str) -> None:
    found = way(gateway_auth=auth)
    # A route takes its parts in the order in which they are written; elsewhere Caddy has an order of its own.
    inner = next(each for each in found.named("route") if each.has("reverse_proxy"))
    assert inner.line == "route"
    assert inner.place(asks) < inner.place("error @v1_unknown") < inner.place("reverse_proxy")
    assert not inner.has(does_not)
    if auth == "bearer":
        refusal = inner.one("route @nobody")
        assert [each.line for each in refusal.inner] == [
            'header WWW-Authenticate `Bearer realm="private model"`',
            "error 401",
        ]


def test_without_authentication_nobody_is_asked() -> None:
    found = way(gateway_auth="none")
    assert not found.has("basic_auth")
    assert not found.has("error 401")
    assert found.has("reverse_proxy")


def test_every_proxy_to_an_engine_is_behind_credentials() -> None:
    """Whatever is declared: no way to an engine without an authentication before it, but for errors of several."""
    routes = [VLLM, {**VLLM, "path": "/b", "auth": "bearer"}, {**VLLM, "path": "/other", "auth": "basic"}]
    several = ["192.0.2.11:8081", "192.0.2.12:8081"]
    for site in config(gateway_routes=routes, gateway_engines=several, gateway_requests=5).named(
        "https://llm.example:443"
    ):
        handles = [each for each in site.inner if re.match(r"handle @", each.line)]
        assert len(handles) == 4
        for handle in handles:
            lines = handle.all()
            proxies = [place for place, line in enumerate(lines) if line.startswith("reverse_proxy")]
            asks = [place for place, line in enumerate(lines) if re.match(r"basic_auth|error 401", line)]
            assert proxies
            assert all(min(asks) < place for place in proxies)


def test_one_password_and_every_token_count() -> None:
    box = a_box(gateway_tokens={"b": "b" * 20, "a": "~" + "a" * 20, "007": "c" * 20})
    site = parsed(caddy.caddyfile(box)).one("https://llm.example:443")
    holders = site.one("map {presented} {holder}")
    # A sign before both: what begins with ~ would be a regular expression, and 007 a number.
    assert [each.line for each in holders.inner] == [
        f"={'c' * 20} =007",
        f"=~{'a' * 20} =a",
        f"={'b' * 20} =b",
        'default ""',
    ]
    assert '"=${1}"' in site.one("map {http.request.header.Authorization} {presented}").inner[0].line
    hashed = box.gateway.password_hash.get_secret_value()
    assert site.one("handle @v1").has(f"boxwright {hashed}")
    assert box.gateway.password.get_secret_value() not in caddy.caddyfile(box)


def test_what_is_not_offered_is_refused_after_credentials_and_before_the_engine() -> None:
    found = way(gateway_paths=["/v1/models", "/v1/chat/*"])
    assert found.has("@v1_unknown not path /v1/models /v1/chat/*")
    assert found.place("basic_auth") < found.place("error @v1_unknown 404") < found.place("reverse_proxy")


def test_credentials_and_cookies_go_no_further() -> None:
    for name, variables in (("v1", {}), ("route_vllm", {"gateway_routes": [VLLM]})):
        proxy = next(each for each in way(name, **variables).named("route") if each.has("reverse_proxy"))
        found = [each for each in proxy.inner if each.line.startswith("reverse_proxy")]
        assert len(found) == 2  # for requests that can be sent again, and for others
        for each in found:
            assert {"header_up -Authorization", "header_up -Cookie", "header_down -Access-Control-*"} <= set(each.all())


def test_a_lost_request_is_repeated_where_that_can_be_done() -> None:
    """By a single engine, when it may wait; several are asked anew each time, so that none is taken for dead."""
    kept = [each for each in way().all() if each.startswith(("keepalive", "request_buffers", "lb_retry_match"))]
    assert kept == ["lb_retry_match", "request_buffers 100KB", "keepalive 2s", "keepalive off"]
    for variables in ({"gateway_engines": ["192.0.2.11:8081"]}, {"gateway_wait": 0}):
        found = way(**variables)
        assert found.has("keepalive off")
        assert not found.has("lb_retry_match")


def test_a_route() -> None:
    route = {**VLLM, "path": "/my-vllm", "in_flight": 3, "auth": "bearer", "allow": ["/v1/models"]}
    found = way("route_my_vllm", gateway_routes=[route])
    assert door(gateway_routes=[route]).has("@route_my_vllm path /my-vllm /my-vllm/*")
    assert found.place("route @nobody") < found.place("uri strip_prefix /my-vllm") < found.place("reverse_proxy")
    # What may be called is judged as the upstream sees it.
    assert found.place("uri strip_prefix /my-vllm") < found.place("error @route_my_vllm_unknown 404")
    assert found.has("@route_my_vllm_unknown not path /v1/models")
    assert found.has("reverse_proxy 127.0.0.1:8000")
    assert found.has("unhealthy_request_count 3")
    whole = way("route_my_vllm", gateway_routes=[{**route, "strip": False}])
    assert not whole.has("uri strip_prefix")


def test_several_engines_share_the_load_and_are_asked_whether_they_work() -> None:
    one, two = way(), way(gateway_engines=["192.0.2.11:8081"], gateway_health={"path": "/ready", "body": "ok"})
    assert two.has("reverse_proxy 127.0.0.1:8081 192.0.2.11:8081")
    for line in ("lb_policy least_conn", "health_uri /ready", "health_body `ok`", "max_fails 1"):
        assert two.has(line)
        assert not one.has(line.split()[0])


# What of the variables needs the custom program, and by which of them that is said.
CUSTOM: list[tuple[dict[str, Any], str]] = [
    ({"gateway_exact_limits": True}, "gateway_exact_limits"),
    ({"gateway_requests": 5, "gateway_exact_limits": True}, "gateway_requests"),
    ({"gateway_requests_of_all": 5}, "gateway_requests_of_all"),
    (
        {"gateway_tls": "acme", "gateway_acme_challenge": "dns-cloudflare", "gateway_cloudflare_token": "cf-token"},
        "gateway_acme_challenge",
    ),
]


@pytest.mark.parametrize(("variables", "variable"), CUSTOM)
def test_what_needs_the_custom_program(
    variables: dict[str, Any], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = a_box(**variables)
    monkeypatch.setattr(caddy.caddy_build, "available", lambda architecture: False)
    (problem,) = caddy.fits(box, MACHINE)
    assert (problem.code, problem.variable) == ("BW115", variable)
    assert f"`{variable}" in problem.message
    assert "boxwright caddy build --arch x86_64" in (problem.help or "")
    monkeypatch.setattr(caddy.caddy_build, "available", lambda architecture: architecture == "x86_64")
    assert list(caddy.fits(box, MACHINE)) == []
    assert caddy.program(box).endswith(f"/{caddy.caddy_build.key()}/caddy")


def test_who_needs_no_module_gets_the_stock_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caddy.caddy_build, "available", lambda architecture: False)
    assert list(caddy.fits(a_box(), MACHINE)) == []
    assert caddy.program(a_box()).endswith("/bin/caddy")


@pytest.mark.parametrize("variables", [variables for variables, _ in CUSTOM])
def test_the_custom_program_counts_in_one_step(variables: dict[str, Any]) -> None:
    """Each way takes a place of its engine before it goes there, at the door and from Open WebUI."""
    routes = [{**VLLM, "in_flight": 3}, {"path": "/pair", "upstreams": ["192.0.2.1:1", "192.0.2.2:1"]}]
    text = caddy.caddyfile(a_box(**variables, gateway_routes=routes, gateway_wait=70))
    for word in ("unhealthy_request_count", "least_conn", "_full"):
        assert word not in text
    whole = parsed(text)
    site = whole.one("https://llm.example:443")
    inside = next(block for block in whole.inner if block.line.startswith("http://172."))
    for handle, count in (
        (site.one("handle @v1"), 10),
        (site.one("handle @route_vllm"), 3),
        (site.one("handle @route_pair"), 10),
        (inside.one("handle @v1"), 10),
    ):
        proxies = [line for line in handle.all() if line.startswith("reverse_proxy")]
        assert proxies
        assert handle.place(f"slots {count} 70ms") < min(handle.place(line) for line in proxies)
        assert [line for line in handle.all() if line.startswith("lb_policy")] == ["lb_policy slots"] * len(proxies)
        # Who has asked too often, or may not ask at all, takes no place.
        for line in ("rate_limit", "basic_auth"):
            before = [place for place, each in enumerate(handle.all()) if each.startswith(line)]
            assert all(place < handle.place("slots") for place in before)


def test_the_stock_program_counts_in_its_own_way() -> None:
    text = caddy.caddyfile(a_box(gateway_engines=["192.0.2.11:8081"]))
    assert "slots" not in text
    assert "unhealthy_request_count 10" in text
    assert "@v1_full" in text


def test_without_an_engine_there_is_no_way_to_one() -> None:
    site = door(inference_engine="none")
    assert not site.named("handle @v1")
    assert "http://172.30.77.1:8088" not in [each.line for each in config(inference_engine="none").inner]


def test_pages_of_other_origins() -> None:
    none = door()
    assert not none.has("@preflight")
    assert "access-control" not in " ".join(line for line in none.all() if line.startswith("header ")).lower()
    site = door(gateway_cors_origins=["https://app.example", "http://localhost:5173"])
    origins = {"header Origin https://app.example", "header Origin http://localhost:5173"}
    assert {each.line for each in site.one("@declared").inner} == origins
    assert {each.line for each in site.one("@preflight").inner} > {"method OPTIONS", *origins}
    found = site.one("handle @v1")
    # Before authentication, and set before anything can fail, so that errors have them too.
    assert found.place("route @preflight") < found.place("basic_auth")
    assert found.place("header @declared") < found.place("basic_auth")
    assert found.one("route @preflight").has("respond 204")


@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        ({}, ["tls internal"]),
        # Else Caddy would ask tailscaled for a certificate of that name, and nobody else.
        ({"gateway_names": ["llm.example", "box.tail1.ts.net"]}, ["tls", "issuer internal", "key_type p256"]),
        ({"gateway_names": ["box.ts.net.example"]}, ["tls internal"]),
        (
            {"gateway_tls": "files", "gateway_certificate": PEM, "gateway_certificate_key": KEY},
            [f"tls {caddy.CERTIFICATE} {caddy.CERTIFICATE_KEY}"],
        ),
        (
            {"gateway_tls": "tailscale", "gateway_names": ["box.tail1.ts.net"]},
            ["tls", "get_certificate tailscale"],
        ),
        ({**OPEN, "gateway_tls": "acme"}, ["tls", "issuer acme", "disable_http_challenge"]),
        (
            {**OPEN, "gateway_tls": "acme", "gateway_acme_challenge": "http", "gateway_acme_email": "me@example.org"},
            ["tls", "issuer acme", "email me@example.org", "disable_tlsalpn_challenge"],
        ),
        (
            {
                "gateway_tls": "acme",
                "gateway_acme_challenge": "dns-cloudflare",
                "gateway_cloudflare_token": "cf-token",
                "gateway_acme_directory": "https://ca.example/dir",
                "gateway_acme_root": PEM,
            },
            [
                "tls",
                "issuer acme",
                "dir https://ca.example/dir",
                f"trusted_roots {caddy.ACME_ROOT}",
                f"dns cloudflare {{file.{caddy.CLOUDFLARE_TOKEN}}}",
            ],
        ),
    ],
)
def test_where_certificates_come_from(variables: dict[str, Any], lines: list[str]) -> None:
    names = variables.get("gateway_names", ["llm.example"])
    site = config(**variables).one(", ".join(f"https://{name}:443" for name in names))
    (tls,) = [each for each in site.inner if each.line.split()[0] == "tls"]
    assert [tls.line, *tls.all()] == lines
    # No secret is in the Caddyfile that a file of its own can hold.
    assert not any(secret in caddy.caddyfile(a_box(**variables)) for secret in ("cf-token", "MIIB"))


def test_secrets_have_files_of_their_own() -> None:
    given = a_box(gateway_tls="files", gateway_certificate=f"{PEM}\n\n", gateway_certificate_key=KEY)
    assert caddy.secret_files(given)[caddy.CERTIFICATE] == PEM
    assert caddy.secret_files(given)[caddy.CERTIFICATE_KEY] == KEY
    # Declared, but not in use.
    unused = a_box(gateway_certificate=PEM, gateway_certificate_key=KEY, gateway_cloudflare_token="cf-token")
    assert set(caddy.secret_files(unused)) == {caddy.ENGINE_KEY}
    assert caddy.secret_files(a_box(openwebui_enabled=False)) == {}


def test_http_is_open_where_an_authority_asks_and_only_there() -> None:
    def plain(**variables: Any) -> list[str]:
        return [each.line for each in config(**variables).inner if each.line.startswith("http://llm.example")]

    assert plain(**OPEN, gateway_tls="acme", gateway_acme_challenge="http") == ["http://llm.example:80"]
    assert plain(**OPEN, gateway_tls="acme") == plain() == []


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"gateway_hsts": 60}, 60),
        ({"gateway_hsts": 0, **OPEN, "gateway_tls": "acme"}, None),
        ({**OPEN, "gateway_tls": "acme"}, 31536000),
        ({"gateway_tls": "files", "gateway_certificate": PEM, "gateway_certificate_key": KEY}, 31536000),
    ],
)
def test_browsers_are_bound_to_https_where_the_certificate_is_everybodys(
    variables: dict[str, Any], seconds: int | None
) -> None:
    lines = [line for line in door(**variables).all() if "Strict-Transport-Security" in line]
    assert lines == ([f'header Strict-Transport-Security "max-age={seconds}"'] if seconds else [])


def test_nobody_chooses_the_address_that_is_counted() -> None:
    servers = config().inner[0].one("servers")
    assert not servers.has("trusted_proxies")
    believed = config(gateway_trusted_proxies=["192.0.2.0/24", "2001:db8::/32"]).inner[0].one("servers")
    assert believed.has("trusted_proxies static 192.0.2.0/24 2001:db8::/32")
    assert believed.has("trusted_proxies_strict")


def test_what_a_client_asks_is_counted_before_credentials_are_checked() -> None:
    """So that guesses are counted too; a token counts for its client, wherever that one comes from."""
    found = way(gateway_requests=7, gateway_window=30)
    assert found.place("rate_limit") < found.place("basic_auth")
    limits = next(each for each in found.named("route") if each.has("rate_limit")).one("rate_limit")
    assert [each.line for each in limits.one("zone clients").inner] == ["key {counted}", "window 30s", "events 7"]
    assert not way().has("rate_limit")


def test_what_all_ask_is_counted_when_they_may_ask() -> None:
    """So that somebody without credentials cannot use up what all others may ask."""
    found = way(gateway_requests_of_all=100, gateway_window=30)
    assert found.place("rate_limit") > found.place("basic_auth")
    limits = next(each for each in found.named("route") if each.has("rate_limit")).one("rate_limit")
    assert [each.line for each in limits.one("zone all").inner] == ["key all", "window 30s", "events 100"]


def test_limits_of_time_and_size() -> None:
    whole = config(
        gateway_max_body="1MiB", gateway_max_upload="2MiB", gateway_header_timeout=7, gateway_idle_timeout=77
    )
    assert {"read_header 7s", "idle 77s"} <= set(whole.inner[0].one("servers").all())
    site = whole.one("https://llm.example:443")
    assert site.one("handle @v1").has(f"max_size {1024**2}")
    (others,) = [each for each in site.inner if each.line == "handle"]
    assert others.has(f"max_size {2 * 1024**2}")


def test_the_log_hides_what_may_be_secret() -> None:
    lines = config(gateway_log_size="3MiB", gateway_log_keep=4).one("(access_log)").all()
    assert {"mode 0640", "roll_size 3MiB", "roll_keep 4", "request>headers>X-Api-Key delete"} <= set(lines)
    # A size below what the server can count is not none at all.
    assert "roll_size 1MiB" in config(gateway_log_size="1KiB").one("(access_log)").all()


@pytest.mark.parametrize(
    ("uri", "logged"),
    [
        ("/v1/models?api_key=abc", "/v1/models?api_key=REDACTED"),
        ("/a?b=1&Token=abc&c=2", "/a?b=1&Token=REDACTED&c=2"),
        ("/a?b=1;PASSWORD=abc;def&c=2", "/a?b=1;PASSWORD=REDACTED&c=2"),
        ("/a?token=abc&token=def", "/a?token=REDACTED&token=REDACTED"),
        ("/a?b=1?key=abc", "/a?b=1?key=REDACTED"),
        ("/a?b=1&ap%69_key=abc&c=2", "/a?b=1&ap%REDACTED&c=2"),
        ("/a?%2541PI_KEY=abc", "/a?%REDACTED"),
        ("/a?keys=1&monkey=2&key", "/a?keys=1&monkey=2&key"),
        ("/a/key=1", "/a/key=1"),
        ("/a%20b?c=d%20e", "/a%20b?c=d%20e"),
    ],
)
def test_the_log_hides_parameters_however_they_are_spelled(uri: str, logged: str) -> None:
    whole = config()
    for block in (whole.inner[0], whole.one("(access_log)")):
        (line,) = [line for line in block.all() if line.startswith("request>uri ")]
        _, pattern, _ = line.split("`")
        assert re.sub(pattern, r"\1REDACTED", uri) == logged
        assert line.endswith(" ${1}REDACTED")


def test_metrics_and_administration_are_not_at_the_door() -> None:
    whole = config(gateway_metrics_port=9999)
    assert whole.one("http://127.0.0.1:9999").has("bind 127.0.0.1")
    assert not whole.one("https://llm.example:443").has("metrics")
    assert whole.inner[0].has("admin unix//run/caddy/admin.sock")


def test_the_password_is_kept_as_asked() -> None:
    assert a_box().gateway.password_hash.get_secret_value().startswith("$2b$")
    box = a_box(gateway_hash="argon2id")
    assert f"boxwright {box.gateway.password_hash.get_secret_value()}" in caddy.caddyfile(box)
    assert "basic_auth @nobody argon2id" in caddy.caddyfile(box)
    assert box.gateway.password_hash.get_secret_value().startswith("$argon2id$")
    problem = refused(gateway_hash="argon2id", gateway_server="nginx")
    assert (problem.code, problem.variable) == ("BW025", "gateway_hash")
