"""What the roles write, from settings alone: the Caddyfile, the Compose project and its environment, the units."""

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from boxwright.errors import Refused
from boxwright.preflight import Machine
from boxwright.settings import parse_box
from boxwright.systemd import systemd_unit
from boxwright.templates import render
from roles.docker import tasks as docker
from roles.gateway import caddy as gateway
from roles.llamacpp import tasks as llamacpp
from roles.openwebui.environment import environment as openwebui_environment
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}


DEBIAN = Machine("Linux", "x86_64", "debian", "13", systemd=True, memory=2**33, disk_free=2**34)


def a_box(**variables: Any) -> Box:
    return parse_box(
        Box, "box", (), {"gateway_names": ["llm.example"], "inference_models": [MODEL], **variables}, None, None
    )


def blocks(caddyfile: str) -> dict[str, str]:
    """The sites of a Caddyfile by their addresses."""
    return dict(re.findall(r"^(http[^\n]*) \{\n(.*?)^\}", caddyfile, re.MULTILINE | re.DOTALL))


def test_the_door_asks_for_credentials_before_the_engine() -> None:
    box = a_box()
    site = blocks(gateway.caddyfile(box))["https://llm.example:443"]
    engine = site.partition("handle @v1 {")[2].partition("handle {")[0]
    assert engine.index("basic_auth") < engine.index("reverse_proxy 127.0.0.1:8081")
    assert f"boxwright {box.gateway.password_hash.get_secret_value()}" in engine
    assert box.gateway.password.get_secret_value() not in gateway.caddyfile(box)
    # Credentials of the door go no further.
    assert "header_up -Authorization" in engine


def test_the_door_is_open_where_declared_and_nowhere_else() -> None:
    assert "bind tcp4/127.0.0.1\n" in gateway.caddyfile(a_box())
    site = blocks(gateway.caddyfile(a_box(gateway_bind=["192.0.2.1", "2001:db8::1"], gateway_port=8443)))
    assert set(site) == {
        "https://llm.example:8443",
        "https://:8443",
        "http://127.0.0.1:9180",
        "http://172.30.77.1:8088",
    }
    assert "bind tcp4/192.0.2.1 tcp6/[2001:db8::1]\n" in site["https://llm.example:8443"]
    assert "respond 421" in site["https://:8443"]


def test_the_internal_listener_wants_the_key_and_the_subnet() -> None:
    inner = blocks(gateway.caddyfile(a_box(openwebui_subnet="10.9.8.0/28", gateway_internal_port=9000)))[
        "http://10.9.8.1:9000"
    ]
    assert "bind 10.9.8.1" in inner
    assert "remote_ip 10.9.8.0/28" in inner
    assert 'header Authorization "Bearer {file./etc/boxwright/caddy/openwebui.key}"' in inner
    # Whoever is not admitted is refused; nothing follows but how errors are told.
    assert inner.partition("handle_errors")[0].rstrip().endswith("handle {\n\t\terror 401\n\t}")


def test_without_open_webui_there_is_no_internal_listener() -> None:
    text = gateway.caddyfile(a_box(openwebui_enabled=False))
    assert "8088" not in text
    assert "openwebui.key" not in text
    assert not gateway.service(a_box(openwebui_enabled=False)).wait_for_address
    assert gateway.service(a_box()).wait_for_address == "172.30.77.1"


def test_every_name_is_an_origin_of_the_page() -> None:
    box = a_box(gateway_names=["a.example", "2001:db8::1"], gateway_bind=["0.0.0.0"])
    assert openwebui_environment(box)["CORS_ALLOW_ORIGIN"] == "https://a.example;https://[2001:db8::1]"
    # A door that only the box itself can reach is visited through a tunnel.
    assert openwebui_environment(a_box())["CORS_ALLOW_ORIGIN"] == "https://llm.example;https://llm.example:8443"


def test_open_webui_is_closed_and_offline() -> None:
    environment = openwebui_environment(a_box(openwebui_environment={"WEBUI_NAME": "ours", "OFFLINE_MODE": "false"}))
    assert environment["ENABLE_SIGNUP"] == "false"
    assert environment["ENABLE_PERSISTENT_CONFIG"] == "false"
    assert environment["OPENAI_API_BASE_URL"] == "http://172.30.77.1:8088/v1"
    # The user's own variables come last.
    assert (environment["WEBUI_NAME"], environment["OFFLINE_MODE"]) == ("ours", "false")


def test_the_compose_project_is_published_nowhere() -> None:
    values = {"image": "registry.example/a:v1", "address": "172.30.77.2", "network": "n", "environment_file": "/e"}
    values["socket"] = ""
    service = yaml.safe_load(render("openwebui/compose.yml.j2", environment_digest="d", **values))["services"][
        "openwebui"
    ]
    assert "ports" not in service
    assert service["networks"] == {"openwebui": {"ipv4_address": "172.30.77.2"}}
    assert service["pull_policy"] == "never"
    assert service["cap_drop"] == ["ALL"]


def test_environment_values_are_taken_to_the_letter() -> None:
    assert render("openwebui/environment.j2", environment={"A": "$x {{y}} #z"}) == "A='$x {{y}} #z'\n"
    with pytest.raises(Refused) as refused:
        a_box(openwebui_environment={"A": "it's"})
    assert refused.value.problems[0].variable == "openwebui_environment"


def test_the_engine_is_on_loopback_and_knows_no_network() -> None:
    unit = systemd_unit(llamacpp.service(box := a_box(llamacpp_port=9000), *box.llamacpp.servers(box)))
    assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in unit
    assert "CapabilityBoundingSet=\n" in unit
    assert 'params.hostnames = ["127.0.0.1"]' in render("llamacpp/server.py")


def test_docker_is_told_of_a_registry_without_tls_only_where_there_is_one() -> None:
    assert "insecure-registries" not in docker.configuration(a_box(), DEBIAN)
    assert "insecure-registries" not in docker.configuration(a_box(mirror_registry="https://10.0.0.2:5000"), DEBIAN)
    told = docker.configuration(a_box(mirror_registry="http://10.0.0.2:5000"), DEBIAN)
    assert told["insecure-registries"] == ["10.0.0.2:5000"]


def test_docker_hands_out_cards_where_there_is_one_and_it_is_wanted() -> None:
    with_card = replace(DEBIAN, nvidia_cards=("0000:01:00.0",))
    assert docker.configuration(a_box(nvidia_enabled=True), with_card)["features"] == {"cdi": True}
    assert "features" not in docker.configuration(a_box(), with_card)
    assert "features" not in docker.configuration(a_box(nvidia_enabled=True), DEBIAN)
    assert "features" not in docker.configuration(a_box(nvidia_enabled=True, nvidia_containers=False), with_card)


def test_a_low_port_is_the_only_reason_for_a_capability() -> None:
    assert gateway.service(a_box(gateway_port=8443)).capabilities == {}
    assert list(gateway.service(a_box()).capabilities) == ["CAP_NET_BIND_SERVICE"]


@pytest.mark.parametrize(
    ("variables", "code", "variable"),
    [
        ({"gateway_auth": "none", "gateway_bind": ["0.0.0.0"]}, "BW023", "gateway_auth"),
        ({"llamacpp_port": 443}, "BW024", "llamacpp_port"),
        ({"gateway_internal_port": 443}, "BW024", "gateway_internal_port"),
        ({"host_memory": "500B"}, "BW021", "inference_models"),
        ({"host_disk": "500B"}, "BW021", "inference_models"),
        ({"docker_enabled": False}, "BW022", "docker_enabled"),
        ({"openwebui_subnet": "10.0.0.0/30"}, "BW022", "openwebui_subnet"),
    ],
)
def test_contradictions_between_roles_are_refused(variables: dict[str, Any], code: str, variable: str) -> None:
    with pytest.raises(Refused) as refused:
        a_box(**variables)
    assert [(problem.code, problem.variable) for problem in refused.value.problems] == [(code, variable)]


def test_what_contradicts_nothing_is_accepted() -> None:
    assert a_box(gateway_auth="none").gateway.auth == "none"
    assert a_box(docker_enabled=False, openwebui_enabled=False).docker.enabled is False
    assert a_box(llamacpp_port=3000, openwebui_enabled=False, gateway_internal_port=443).gateway.internal_port == 443
