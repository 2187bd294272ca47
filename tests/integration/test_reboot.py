"""After a reboot everything is back without a run: nobody watches a box."""

from __future__ import annotations

import pytest
from kit import Box, eventually

pytestmark = pytest.mark.lab

RUNNING = "systemctl is-active --quiet docker llamacpp caddy"
CHAT = {"model": "local-llm", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}


def test_everything_answers_again_after_a_reboot(full: Box) -> None:
    before = full.sh("stat -c %Y /proc/1; cat /proc/1/stat | cut -d ' ' -f 22")
    full.container.restart()
    eventually("the box booted", lambda: full.succeeds("systemctl is-system-running | grep -E 'running|degraded'"), 120)
    assert full.sh("stat -c %Y /proc/1; cat /proc/1/stat | cut -d ' ' -f 22") != before
    # The gateway waits for the Compose network's address, which Docker brings.
    eventually("the gateway and the engine answer", full.answers, 180)
    assert full.succeeds(RUNNING)
    assert full.http("POST", "v1/chat/completions", auth=full.credentials, json=CHAT).status_code == 200
    eventually("Open WebUI answers", lambda: full.http("GET", "health").status_code == 200, 180)
    healthy = "docker ps --filter health=healthy --quiet | grep ."
    eventually("Docker calls it healthy", lambda: full.succeeds(healthy), 60)
    full.expect_settled()


def test_the_gateway_does_not_start_before_its_address_is_there(full: Box) -> None:
    full.settled = False
    full.sh("systemctl stop caddy; ip address del 172.30.77.1/24 dev br-openwebui; systemctl start --no-block caddy")
    eventually(
        "systemd starts the gateway", lambda: full.succeeds("systemctl show caddy -P ActiveState | grep -x activating")
    )
    assert not full.succeeds("ss -Hltn | grep -E ':443 '")
    full.sh("ip address add 172.30.77.1/24 dev br-openwebui")
    eventually("the gateway runs", lambda: full.succeeds("systemctl is-active --quiet caddy"))
    eventually("the box answers", full.answers)
    full.expect_settled()
