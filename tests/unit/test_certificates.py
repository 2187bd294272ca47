"""Where the gateway's certificates come from, by settings alone."""

from typing import Any

import pytest

from boxwright.errors import Refused
from boxwright.settings import parse_box
from boxwright.systemd import systemd_unit
from roles.gateway import caddy
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
ACME = {"gateway_tls": "acme", "gateway_acme_challenge": "tls-alpn"}
CLOUDFLARE = {"gateway_tls": "acme", "gateway_acme_challenge": "dns-cloudflare", "gateway_cloudflare_token": "t" * 40}


def a_box(**variables: Any) -> Box:
    defaults = {"gateway_names": ["llm.example"], "gateway_bind": ["0.0.0.0"], "inference_models": [MODEL]}
    return parse_box(Box, "box", (), {**defaults, **variables}, None, None)


@pytest.mark.parametrize(
    ("bind", "bound"),
    [
        # Caddy's ACME client takes the first for its own address, and does not understand tcp4/.
        (["0.0.0.0"], ["0.0.0.0"]),
        (["192.0.2.1"], ["192.0.2.1"]),
        (["2001:db8::1"], ["2001:db8::1"]),
        (["0.0.0.0", "2001:db8::1"], ["2001:db8::1", "tcp4/0.0.0.0"]),
        (["::", "192.0.2.1"], ["192.0.2.1", "tcp6/[::]"]),
        (["0.0.0.0", "::"], ["::"]),
    ],
)
def test_the_first_address_is_one_that_the_acme_client_understands(bind: list[str], bound: list[str]) -> None:
    assert caddy.bound(a_box(**ACME, gateway_bind=bind)) == bound


def test_elsewhere_the_network_is_named() -> None:
    assert caddy.bound(a_box()) == caddy.bound(a_box(**CLOUDFLARE)) == ["tcp4/0.0.0.0"]


def test_where_it_is_not_named_ipv6_stays_closed() -> None:
    def families(**variables: Any) -> list[str]:
        unit = systemd_unit(caddy.service(a_box(**variables)))
        return [line for line in unit.splitlines() if line.startswith("RestrictAddressFamilies=")]

    closed = ["RestrictAddressFamilies=AF_INET AF_UNIX"]
    assert families(**ACME) == closed
    for others in (
        {},
        CLOUDFLARE,
        {**ACME, "gateway_bind": ["192.0.2.1"]},
        {**ACME, "gateway_bind": ["0.0.0.0", "::"]},
    ):
        assert families(**others) == ["RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX"]


def test_ipv6_alone_with_a_challenge_at_the_door_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        a_box(**ACME, gateway_bind=["::"])
    assert [(problem.code, problem.variable) for problem in refused.value.problems] == [("BW022", "gateway_bind")]
    assert a_box(**CLOUDFLARE, gateway_bind=["::"])


def test_another_acme_server_is_another_process() -> None:
    def unit(directory: str) -> str:
        return systemd_unit(caddy.service(a_box(**ACME, gateway_acme_directory=directory)))

    assert unit("https://one.example/dir") != unit("https://two.example/dir")


def test_the_token_for_cloudflare_is_not_in_the_caddyfile() -> None:
    box = a_box(**CLOUDFLARE, gateway_acme_resolvers=["192.0.2.53:53"])
    assert "t" * 40 not in caddy.caddyfile(box)
    assert "dns cloudflare {file./etc/boxwright/caddy/cloudflare.token}\n" in caddy.caddyfile(box)
    assert "resolvers 192.0.2.53:53\n" in caddy.caddyfile(box)
    assert caddy.secret_files(box)[caddy.CLOUDFLARE_TOKEN] == "t" * 40 + "\n"
