"""What must hold of Tailscale."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from boxwright import tailnet
from boxwright.facts.tailscale import PROGRAMS
from boxwright.operations.tailscale import KEYS
from boxwright.testing.probes import on_a_mac, process, starts_at_boot


def asked(host: Any, words: str) -> str:
    """What Tailscale's command says. A Mac has no `timeout`."""
    program = f"{PROGRAMS}/tailscale" if on_a_mac(host) else "timeout 10 tailscale"
    return str(host.check_output(f"{program} {words}"))


def status(host: Any) -> dict[str, Any]:
    """What Tailscale says of the box."""
    found: dict[str, Any] = json.loads(asked(host, "status --json --peers=false"))
    return found


def test_running_and_enabled(host: Any) -> None:
    """tailscaled runs and starts at boot."""
    assert process(host, "tailscaled")
    assert starts_at_boot(host, "tailscaled")


def test_in_the_tailnet(host: Any, box: Any) -> None:
    """The box is in its tailnet, with an address, its name and its tags."""
    found = status(host)
    assert found["BackendState"] == "Running", found.get("Health")
    assert found["Self"]["TailscaleIPs"]
    if box.tailscale.tags:
        assert sorted(found["Self"].get("Tags") or ()) == sorted(box.tailscale.tags)
    if box.tailscale.hostname:
        assert found["Self"]["DNSName"].partition(".")[0] == box.tailscale.hostname


def test_the_key_does_not_end_soon(host: Any) -> None:
    """The box's key for the tailnet holds for two weeks more; a box whose key ends cannot be reached there."""
    left = tailnet.days_left(tailnet.node(status(host), None, None), datetime.now(UTC))
    assert left is None or left > 14, (
        f"the key ends in {left:.1f} days: renew it, or switch key expiry off for this machine"
    )


def test_no_key_is_left(host: Any) -> None:
    """The key with which the box joined is not on it."""
    assert not host.file(KEYS["darwin" if on_a_mac(host) else "linux"]).exists


def test_served_as_declared(host: Any, box: Any) -> None:
    """Tailscale serves what is declared; nothing else is public."""
    config = json.loads(asked(host, "serve status --json") or "null") or {}
    web = config.get("Web") or {}
    public = {name for name, on in (config.get("AllowFunnel") or {}).items() if on}
    for inner in (config.get("Foreground") or {}).values():
        public |= {name for name, on in (inner.get("AllowFunnel") or {}).items() if on}
    wanted_public = {str(entry.port) for entry in box.tailscale.serve if entry.public}
    assert {name.rpartition(":")[2] for name in public} == wanted_public
    for entry in box.tailscale.endpoints(box):
        kinds = (config.get("TCP") or {}).get(str(entry.port)) or {}
        if entry.protocol == "tcp":
            assert kinds.get("TCPForward") == entry.target
            continue
        assert kinds.get(entry.protocol.upper()) is True
        handlers = [server["Handlers"] for name, server in web.items() if name.endswith(f":{entry.port}")]
        assert [one[entry.path]["Proxy"] for one in handlers if entry.path in one] == [entry.target]
    foreign = [
        str(endpoint)
        for endpoint in tailnet.endpoints(config, status(host)["Self"]["DNSName"].rstrip("."))
        if endpoint.key not in {entry.key for entry in box.tailscale.endpoints(box)}
    ]
    if foreign and box.tailscale.serve_foreign == "keep":
        pytest.skip(f"Tailscale also serves what is not declared: {'; '.join(foreign)}")
    assert foreign == []
