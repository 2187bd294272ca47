"""What of a box can be reached from another machine: exactly what was declared."""

from __future__ import annotations

import ipaddress

import pytest
from kit import Box
from ports import open_ports

pytestmark = pytest.mark.lab

DECLARED = {22, 443}  # sshd, which was there before, and the gateway


def test_all_ports_but_the_declared_ones_are_closed(full: Box) -> None:
    """A scan from this machine, which to the box is another one: the box has a network namespace of its own."""
    assert open_ports(full.address) == DECLARED


def listeners(box: Box) -> dict[str, set[tuple[str, int]]]:
    """Who listens on which address and TCP port, as ss(8) says."""
    found: dict[str, set[tuple[str, int]]] = {}
    for line in box.sh("ss -Hltnp").splitlines():
        fields = line.split()
        address, _, port = fields[3].rpartition(":")
        program = fields[5].split('"')[1] if len(fields) > 5 else ""
        found.setdefault(program, set()).add((address.strip("[]").split("%")[0], int(port)))
    return found


def test_everything_behind_the_gateway_listens_on_the_box_itself(full: Box) -> None:
    who = listeners(full)
    assert who["caddy"] == {("0.0.0.0", 443), ("172.30.77.1", 8088), ("127.0.0.1", 9180)}
    assert {program for program, places in who.items() if ("127.0.0.1", 8081) in places} == {"python"}
    # Open WebUI is published nowhere, not even on loopback.
    assert "docker-proxy" not in who
    for program, places in who.items():
        if program not in ("caddy", "sshd"):
            assert {address for address, _ in places if not ipaddress.ip_address(address).is_loopback} == set(), program


def from_neighbour(box: Box, script: str) -> str:
    """What a shell script prints on another machine of the same network, whose traffic for it goes through the box."""
    neighbour = box.lab.neighbour(box, cap_add=["NET_ADMIN"])
    try:
        route = f"ip route add {box.variables.get('openwebui_subnet', '172.30.77.0/24')} via {box.address} || exit\n"
        output = neighbour.exec_run(["sh", "-c", route + script]).output
    finally:
        neighbour.remove(force=True)
    return bytes(output).decode()


def test_a_neighbour_cannot_go_around_the_gateway(full: Box) -> None:
    """Sent to the box, packets for its inner network lead nowhere but to the key that guards the internal listener."""
    inner = full.sh(
        "docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' $(docker ps -q)"
    ).strip()
    assert full.sh(f"curl --silent --fail http://{inner}:8080/health").strip() == '{"status":true}'
    ask = "curl --silent --max-time 3 --output /dev/null --write-out '%{http_code} '"
    key = full.secrets["openwebui_engine_key"]
    answers = from_neighbour(
        full,
        f"{ask} http://{inner}:8080/health\n"
        f"{ask} http://172.30.77.1:8088/v1/models\n"
        f"{ask} --header 'Authorization: Bearer {key}' http://172.30.77.1:8088/v1/models\n"
        # What must work, so that the rest is known to be closed and not merely unreachable.
        f"{ask} --insecure https://{full.address}/v1/models\n",
    )
    assert answers.split() == ["000", "401", "401", "401"]


def test_the_engine_is_reached_from_the_compose_network_with_its_key_only(full: Box) -> None:
    container = full.sh("docker ps --quiet --filter label=com.docker.compose.project=openwebui").strip()
    # The key is taken from the container's own environment: as an argument it would be in the log of a debugged Docker.
    script = """
        ask() { curl --silent --output /dev/null --write-out '%{http_code} ' "$@"; }
        ask http://172.30.77.1:8088/v1/models
        ask --header 'Authorization: Bearer wrong' http://172.30.77.1:8088/v1/models
        ask --header "Authorization: Bearer $OPENAI_API_KEY" http://172.30.77.1:8088/v1/models
        # Only what Open WebUI needs: the engine's other pages stay closed to it.
        ask --header "Authorization: Bearer $OPENAI_API_KEY" http://172.30.77.1:8088/metrics
        # And nothing else is within its reach.
        ask --max-time 2 http://172.30.77.1:8081/v1/models
        ask --max-time 2 --insecure https://$1/
    """
    codes = full.exec("docker", "exec", container, "sh", "-c", script, "ask", "10.213.77.2:8000", check=False).split()
    assert codes == ["401", "401", "200", "401", "000", "000"]
