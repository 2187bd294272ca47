"""What must hold of the tunnel."""

import json
from typing import Any

import pytest

from boxwright.testing.probes import exposure, listeners, on_a_mac, process, starts_at_boot

NAME = "boxwright-cloudflared"


def test_running_and_enabled(host: Any, box: Any) -> None:
    """The tunnel runs and starts at boot; none runs where it is switched off."""
    if box.cloudflared.enabled:
        assert process(host, NAME)
    elif not on_a_mac(host):
        assert not host.service(NAME).is_running
    assert starts_at_boot(host, NAME) is box.cloudflared.enabled


def test_connected(host: Any, box: Any) -> None:
    """At least one connection to Cloudflare stands."""
    if box.cloudflared.enabled:
        answer = host.check_output(f"curl --silent --fail http://127.0.0.1:{box.cloudflared.metrics_port}/ready")
        assert json.loads(answer)["readyConnections"] > 0


def test_leads_to_the_gateway_alone(host: Any, box: Any) -> None:
    """Each rule that is in force, wherever it is kept, leads to the gateway; everything else is answered 404."""
    if not box.cloudflared.enabled:
        return
    answer = host.check_output(f"curl --silent --fail http://127.0.0.1:{box.cloudflared.metrics_port}/config")
    rules = json.loads(answer)["config"]["ingress"]
    assert rules[-1]["service"] == "http_status:404"
    doors = set(box.cloudflared.gateway_urls(box))
    assert {rule["service"] for rule in rules[:-1]} <= doors


def test_the_secret_is_nobodys(host: Any, box: Any) -> None:
    """Only root may read the tunnel's secret, and no argument of a process has it."""
    if not box.cloudflared.enabled:
        return
    for path, secret in (("token", box.cloudflared.token), ("credentials.json", box.cloudflared.credentials)):
        file = host.file(f"/etc/boxwright/cloudflared/{path}")
        assert file.exists is (secret is not None)
        if secret is not None:
            assert (file.user, file.mode) == ("root", 0o600)
            assert secret.get_secret_value().strip() not in host.check_output("ps -axww -o args=")


def test_metrics_on_loopback_alone(host: Any, box: Any) -> None:
    """Metrics are told on loopback only."""
    if box.cloudflared.enabled:
        assert listeners(host, box.cloudflared.metrics_port) == {"127.0.0.1"}


@pytest.mark.system("linux")
def test_sandbox(host: Any, box: Any) -> None:
    """systemd rates the exposure of the service 1.5 or better."""
    if box.cloudflared.enabled:
        assert exposure(host, NAME) <= 1.5
