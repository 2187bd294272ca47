"""The cloudflared role from settings alone: what is refused, what is written, and what the gateway believes."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from boxwright.errors import Refused
from boxwright.facts.cloudflared import Ingress, services_of
from boxwright.settings import parse_box
from boxwright.systemd import systemd_unit
from roles.cloudflared import tasks as cloudflared
from roles.gateway import caddy, nginx
from roles.openwebui.environment import environment as openwebui_environment
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
TUNNEL = "6ff42ae2-765d-4adf-8112-31c55c1551ef"
CREDENTIALS = json.dumps({"AccountTag": "account", "TunnelSecret": "c2VjcmV0LW9mLXRoZS10dW5uZWw=", "TunnelID": TUNNEL})
TOKEN = base64.b64encode(json.dumps({"a": "account", "t": TUNNEL, "s": "c2VjcmV0"}).encode()).decode()
NOTHING = {"service": "http_status:404"}
DOUBLE = Path(__file__).parents[1] / "doubles" / "cloudflared"


def a_box(**variables: Any) -> Box:
    defaults = {
        "gateway_names": ["llm.example.com", "192.0.2.10"],
        "inference_models": [MODEL],
        "cloudflared_enabled": True,
        "cloudflared_credentials": CREDENTIALS,
    }
    given = {key: value for key, value in {**defaults, **variables}.items() if value is not None}
    return parse_box(Box, "box", (), given, None, None)


def with_token(**variables: Any) -> Box:
    return a_box(cloudflared_credentials=None, cloudflared_token=TOKEN, **variables)


def refused(**variables: Any) -> list[tuple[str, str | None, str]]:
    with pytest.raises(Refused) as error:
        a_box(**variables)
    return [(one.code, one.variable, f"{one.message}; {one.help}") for one in error.value.problems]


def written(box: Box) -> Any:
    return yaml.safe_load(cloudflared.configuration(box))


def test_rules_are_made_of_the_names_that_are_no_addresses() -> None:
    found = written(a_box())
    assert found["tunnel"] == TUNNEL
    assert found["credentials-file"] == "/run/credentials/boxwright-cloudflared.service/credentials.json"
    assert found["metrics"] == "127.0.0.1:20241"
    assert found["no-autoupdate"] is True
    [rule, last] = found["ingress"]
    assert (rule["hostname"], rule["service"]) == ("llm.example.com", "https://127.0.0.1:443")
    assert rule["originRequest"]["originServerName"] == "llm.example.com"
    assert rule["originRequest"]["caPool"] == "/run/credentials/boxwright-cloudflared.service/gateway.pem"
    assert "noTLSVerify" not in rule["originRequest"]
    assert last == NOTHING


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        (["0.0.0.0"], "https://127.0.0.1:8443"),
        (["::"], "https://[::1]:8443"),
        (["192.0.2.10"], "https://192.0.2.10:8443"),
        (["2001:db8::7", "127.0.0.1"], "https://[2001:db8::7]:8443"),
    ],
)
def test_the_gateway_is_asked_where_it_listens(bind: list[str], url: str) -> None:
    box = a_box(gateway_bind=bind, gateway_port=8443)
    assert [rule["service"] for rule in written(box)["ingress"]] == [url, "http_status:404"]
    # Written in full, it is the gateway too.
    rules = [{"hostname": "llm.example.com", "path": "^/v1/", "service": url}, NOTHING]
    assert [
        rule.get("path")
        for rule in written(a_box(gateway_bind=bind, gateway_port=8443, cloudflared_ingress=rules))["ingress"]
    ] == ["^/v1/", None]


@pytest.mark.parametrize(
    "service",
    [
        "http://127.0.0.1:8081",
        "https://127.0.0.1:8081",
        "ssh://localhost:22",
        "unix:/run/docker.sock",
        "bastion",
        "hello_world",
        "http_status:200",
        "https://127.0.0.1:443/v1",
        "https://192.0.2.77:443",
        "socks-proxy",
    ],
)
def test_a_rule_past_the_gateway_is_refused(service: str) -> None:
    [(code, variable, text)] = refused(
        cloudflared_ingress=[{"hostname": "llm.example.com", "service": service}, NOTHING]
    )
    assert (code, variable) == ("BW160", "cloudflared_ingress")
    assert f"rule 1 of `cloudflared_ingress` leads to {service}" in text
    assert "`service: gateway`" in text


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([{"hostname": "llm.example.com", "service": "gateway"}], "the last rule"),
        ([{"hostname": "other.example.com", "service": "gateway"}, NOTHING], "other.example.com"),
        ([{"hostname": "*.example.com", "service": "gateway"}, NOTHING], "*.example.com"),
        ([{"service": "gateway"}, NOTHING], "(none)"),
        ([NOTHING, {"hostname": "llm.example.com", "service": "gateway"}], "the last rule"),
        ([{"hostname": "llm.example.com", "service": "gateway"}, {"service": "http_status:503"}], "the last rule"),
        ([{"hostname": "llm.example.com", "service": "gateway", "path": "("}, NOTHING], "regular expression"),
    ],
)
def test_rules_that_cannot_work_are_refused(rules: list[dict[str, str]], words: str) -> None:
    found = refused(cloudflared_ingress=rules)
    assert {code for code, _, _ in found} == {"BW160"}
    assert words in " ".join(text for _, _, text in found)


def test_a_name_is_needed() -> None:
    [(code, variable, text)] = refused(gateway_names=["192.0.2.10"])
    assert (code, variable) == ("BW160", "gateway_names")
    assert "only addresses" in text
    assert with_token(gateway_names=["192.0.2.10"]).cloudflared.enabled


@pytest.mark.parametrize(
    "variables",
    [{"gateway_auth": "none"}, {"gateway_routes": [{"path": "/x", "upstreams": ["127.0.0.1:8000"], "auth": "none"}]}],
)
def test_who_comes_from_the_internet_must_say_who_they_are(variables: dict[str, Any]) -> None:
    """Also with a door on loopback alone, where it is accepted otherwise."""
    [(code, variable, text)] = refused(**variables)
    assert (code, variable) == ("BW023", next(iter(variables)))
    assert "cloudflared_enabled" in text
    assert a_box(**variables, cloudflared_enabled=False).gateway


@pytest.mark.parametrize(
    ("variables", "variable"),
    [
        ({"cloudflared_credentials": None}, "cloudflared_enabled"),
        ({"cloudflared_token": TOKEN}, "cloudflared_token"),
        (
            {"cloudflared_credentials": None, "cloudflared_token": TOKEN, "cloudflared_ingress": [NOTHING]},
            "cloudflared_ingress",
        ),
    ],
)
def test_which_tunnel_it_is(variables: dict[str, Any], variable: str) -> None:
    [(code, found, _)] = refused(**variables)
    assert (code, found) == ("BW161", variable)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("cloudflared_token", "not-a-token"),
        ("cloudflared_token", base64.b64encode(b'{"a": "x"}').decode()),
        ("cloudflared_token", base64.b64encode(b"[]").decode()),
        ("cloudflared_credentials", "/etc/cloudflared/credentials.json"),
        ("cloudflared_credentials", '{"TunnelID": "x"}'),
        ("cloudflared_credentials", CREDENTIALS.replace(TUNNEL, "../../etc")),
    ],
)
def test_a_secret_that_is_none_is_refused_and_not_shown(variable: str, value: str) -> None:
    [(code, found, text)] = refused(**{"cloudflared_credentials": None, variable: value})
    assert (code, found) == ("BW011", variable)
    assert value not in text


def test_ports_are_told_apart() -> None:
    [(code, variable, _)] = refused(cloudflared_metrics_port=9180)
    assert (code, variable) == ("BW024", "cloudflared_metrics_port")
    assert a_box(cloudflared_metrics_port=9180, cloudflared_enabled=False).gateway.metrics_port == 9180


def test_a_token_is_in_no_argument_and_its_rules_are_elsewhere() -> None:
    box = with_token()
    unit = systemd_unit(cloudflared.service(box))
    assert TOKEN not in unit + cloudflared.configuration(box)
    assert "tunnel run --token-file /run/credentials/boxwright-cloudflared.service/token" in unit
    assert "LoadCredential=token:/etc/boxwright/cloudflared/token" in unit
    assert written(box)["ingress"] == [NOTHING]
    assert "tunnel" not in written(box)
    assert cloudflared.secrets(box) == {"/etc/boxwright/cloudflared/token": TOKEN + "\n"}


def test_the_unit_restarts_with_what_it_reads_and_sees_nothing_else() -> None:
    service = cloudflared.service(a_box())
    assert set(service.started_with) == {
        "/etc/systemd/system/boxwright-cloudflared.service",
        "/etc/boxwright/cloudflared/config.yml",
        "/etc/boxwright/cloudflared/credentials.json",
        "/var/lib/caddy/pki/authorities/local/root.crt",
    }
    unit = systemd_unit(service)
    assert "--token" not in unit
    for line in ("Type=notify", "DynamicUser=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "ProtectHome=yes"):
        assert f"\n{line}\n" in unit
    nginx_unit = systemd_unit(cloudflared.service(a_box(gateway_server="nginx")))
    assert "gateway.pem:/var/lib/boxwright/authority/root.crt" in nginx_unit


def test_a_certificate_of_a_public_authority_is_checked_by_the_systems() -> None:
    box = a_box(gateway_tls="acme", gateway_bind=["0.0.0.0"])
    assert "caPool" not in written(box)["ingress"][0]["originRequest"]
    assert "gateway.pem" not in systemd_unit(cloudflared.service(box))


def test_only_the_boxs_own_end_is_believed() -> None:
    """Neither the internet nor the LAN: what they write into the header counts for nothing."""
    for bind, believed in (
        (["0.0.0.0"], "127.0.0.1/32"),
        (["127.0.0.1"], "127.0.0.1/32"),
        (["::1"], "::1/128"),
        (["192.0.2.10"], "192.0.2.10/32"),
    ):
        box = a_box(gateway_bind=bind)
        assert box.gateway.believed_proxies(box) == (believed,)
        text = caddy.caddyfile(box)
        assert f"trusted_proxies static {believed}\n" in text
        # From the right: the last address that is no proxy's, which Cloudflare has put there.
        assert "trusted_proxies_strict" in text
    text = nginx.configuration(a_box(gateway_server="nginx"))
    assert "set_real_ip_from 127.0.0.1/32;" in text
    assert "real_ip_recursive on;" in text
    off = a_box(cloudflared_enabled=False)
    assert off.gateway.believed_proxies(off) == ()
    assert "trusted_proxies" not in caddy.caddyfile(off)
    both = a_box(gateway_trusted_proxies=["192.0.2.0/24"])
    assert both.gateway.believed_proxies(both) == ("192.0.2.0/24", "127.0.0.1/32")


def test_pages_that_come_through_the_tunnel_may_speak_to_open_webui() -> None:
    origins = openwebui_environment(a_box(gateway_port=8443))["CORS_ALLOW_ORIGIN"].split(";")
    assert "https://llm.example.com" in origins
    assert "https://llm.example.com:8443" in origins
    off = a_box(gateway_port=8443, cloudflared_enabled=False)
    assert "https://llm.example.com" not in openwebui_environment(off)["CORS_ALLOW_ORIGIN"].split(";")


def test_the_repository_is_cloudflares_with_its_key() -> None:
    repository = cloudflared.REPOSITORY
    assert repository.key_fingerprint == "CC94B39C77AE7342A68B89628A682D308D4E5E73"
    assert (repository.url, repository.suite) == ("https://pkg.cloudflare.com/cloudflared", "any")


# What the real program answered at /config without a connection to Cloudflare, shortened to one rule's own words.
CONFIG = (
    '{"version":-1,"config":{"ingress":[{"hostname":"llm.example","path":null,"service":"https://127.0.0.1:443",'
    '"Handlers":null,"originRequest":{"connectTimeout":10,"caPool":"","noTLSVerify":false,"ipRules":null}},'
    '{"hostname":"","path":null,"service":"http_status:404","Handlers":null,"originRequest":{"connectTimeout":10}}],'
    '"warp-routing":{},"originRequest":{"connectTimeout":10}}}'
)


def test_what_the_running_program_says_of_its_rules() -> None:
    assert services_of(CONFIG) == ("https://127.0.0.1:443", "http_status:404")
    assert Ingress().process([CONFIG]) == services_of(CONFIG)
    assert Ingress().process(["none"]) == ()
    for text in ("", "<html>", "{}", '{"config": {"ingress": null}}', "[]"):
        with pytest.raises(Exception, match=r"not the configuration of cloudflared|Expecting value"):
            Ingress().process([text])


REAL = re.findall(r"^\$ (.*)\n((?:.*\n)*?)---\n((?:.*\n)*?)= (\d+)\n", (DOUBLE / "real-outputs.txt").read_text(), re.M)


@pytest.mark.parametrize(("what", "text", "said", "status"), REAL, ids=[name for name, *_ in REAL])
def test_the_double_says_what_the_real_program_says(
    tmp_path: Path, what: str, text: str, said: str, status: str
) -> None:
    """And the command that validates takes only what the real one takes without a warning."""
    path = tmp_path / "config.yml"
    path.write_text(text)
    command = [sys.executable, str(DOUBLE / "program.py"), "tunnel", "--config", str(path), "ingress", "validate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.replace(str(path), "CONFIG") == said
    assert done.returncode == int(status)
    program = tmp_path / "cloudflared"
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{said}EOF\nexit {status}\n")
    program.chmod(0o755)
    check = cloudflared.VALIDATE.replace(cloudflared.PROGRAM, str(program)).replace("{path}", "config.yml")
    accepted = subprocess.run(["sh", "-c", check], capture_output=True, text=True, check=False)
    assert (accepted.returncode == 0) is (what == "good")
    assert (accepted.stdout == "") is (what == "good")
