"""The firewall and the hardening of SSH on a real box: what is open, what is not, and that nobody is locked out.

Other machines are network namespaces on the box, each at an interface of its own: `lan0`, and one that is called as
Tailscale calls its own. The operator is this machine, at the interface that Docker gave the box.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from kit import LIGHT, Box, Done, Lab, eventually, kill
from snapshots import made_of

pytestmark = pytest.mark.lab

# By port: what listens. The first is a program of the box, the others are published by Docker.
PROGRAM, PUBLISHED, OPEN, TAILNET = 9001, 9002, 9003, 9004
PORTS = (22, 443, PROGRAM, PUBLISHED, OPEN, TAILNET)
FIREWALL = {
    "firewall_enabled": True,
    "firewall_allow": [
        {"port": str(OPEN), "sources": ["192.168.77.0/24", "fd00:77::/64"]},
        {"port": str(TAILNET), "interface": "tailscale0"},
    ],
}
VARIABLES = {**LIGHT, "docker_enabled": True}

# Two further machines, and programs that answer. The image is nothing but links into the box's own /usr.
MACHINES = f"""
[ ! -e /run/netns/lan ] || exit 0
set -e
machine() {{ # NAME INTERFACE IPV4 IPV6
    ip netns add $1
    ip link add $2 type veth peer name eth0 netns $1
    for way in all default; do echo 0 >/proc/sys/net/ipv6/conf/$way/disable_ipv6; done
    echo 0 >/proc/sys/net/ipv6/conf/$2/disable_ipv6
    ip address add $3.1/24 dev $2
    ip address add $4::1/64 dev $2 nodad
    ip link set $2 up
    ip -n $1 link set lo up
    ip -n $1 link set eth0 up
    ip -n $1 address add $3.2/24 dev eth0
    ip -n $1 address add $4::2/64 dev eth0 nodad
    ip -n $1 route add default via $3.1
}}
machine lan lan0 192.168.77 fd00:77
machine tail tailscale0 100.64.7 fd7a:115c:a1e0:7
ip -n lan address add 100.64.9.9/32 dev eth0
systemd-run --quiet --unit=program -p WorkingDirectory=/srv python3 -m http.server --bind :: {PROGRAM}
"""
CONTAINERS = f"""
! docker image inspect links >/dev/null 2>&1 || exit 0
set -e
mkdir -p /srv/root && cd /srv/root && ln -sfn usr/bin bin && ln -sfn usr/lib lib && ln -sfn usr/lib64 lib64
tar -c . | docker import --change 'CMD ["python3", "-m", "http.server", "80"]' - links >/dev/null
for port in {PUBLISHED} {OPEN} {TAILNET}; do
    docker run --detach --name on$port --publish $port:80 --volume /usr:/usr:ro links >/dev/null
done
"""
SCAN = """
import socket, sys
for address in sys.argv[2:]:
    for port in sys.argv[1].split(","):
        try:
            socket.create_connection((address, int(port)), timeout=0.7).close()
            print(address, port)
        except OSError:
            pass
"""


def scan(box: Box, machine: str, *addresses: str, ports: tuple[int, ...] = PORTS) -> dict[str, set[int]]:
    """Which TCP ports of each of the addresses another machine gets a connection to."""
    listed = ",".join(map(str, ports))
    said = box.exec("ip", "netns", "exec", machine, "python3", "-c", SCAN, listed, *addresses)
    found: dict[str, set[int]] = {address: set() for address in addresses}
    for line in said.splitlines():
        address, port = line.split()
        found[address].add(int(port))
    return found


def command(inventory: Path, *roles: str) -> tuple[str, ...]:
    """A run of some roles alone, by boxwright's own runner, with less time for the operator to come back."""
    deploy = Path(__file__).parent / "firewall_deploy.py"
    program = (
        "import json, sys; from pathlib import Path; from boxwright.runner import run; "
        "result = run(Path(sys.argv[1]), inventory=Path(sys.argv[2]), data={'roles': sys.argv[3:]}); "
        "print(json.dumps(result.to_json())); sys.exit(result.exit_code)"
    )
    return (sys.executable, "-c", program, str(deploy), str(inventory), *roles)


def with_firewall(box: Box, **variables: Any) -> Path:
    """An inventory with the firewall, and some variables set otherwise."""
    return box.with_variables("walled", **{**FIREWALL, **variables})


def applied(box: Box, **variables: Any) -> Done:
    """A run of the two roles."""
    box.settled = False
    return box.run(*command(with_firewall(box, **variables), "sshd", "firewall"))


def changed(box: Box, **variables: Any) -> list[str]:
    """Names of what such a run changed."""
    found: list[str] = applied(box, **variables).expect().json["hosts"][box.host]["changed"]
    box.settled = not variables
    return found


def machines(box: Box) -> None:
    box.sh(MACHINES)


@pytest.fixture(scope="module")
def bare(lab: Lab) -> tuple[Box, set[str]]:
    """The box with Docker and nothing else of ours, and what it was made of before."""
    box = lab.up("walled", VARIABLES)
    before = made_of(box)
    box.run(*command(box.inventory, "host", "docker")).expect()
    machines(box)
    box.sh(CONTAINERS)
    return box, before


@pytest.fixture(scope="module")
def open_before(bare: tuple[Box, set[str]]) -> dict[str, set[int]]:
    """What the lan gets a connection to without a firewall."""
    box = bare[0]
    there = {*PORTS} - {443}
    eventually("everything answers", lambda: scan(box, "lan", "192.168.77.1")["192.168.77.1"] == there)
    return scan(box, "lan", "192.168.77.1", "fd00:77::1")


@pytest.fixture(scope="module")
def walled(bare: tuple[Box, set[str]], open_before: dict[str, set[int]]) -> Box:
    """The box with everything, the firewall put up by an ordinary run."""
    bare[0].apply(inventory=with_firewall(bare[0])).expect()
    return bare[0]


@pytest.fixture
def box(walled: Box) -> Box:
    """The box with its firewall, also when the test before has failed or tried something else."""
    if not walled.settled:
        applied(walled).expect()
        walled.settled = True
    return walled


def container(box: Box, name: str) -> str:
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return box.exec("docker", "inspect", "--format", form, name).strip()


def table(box: Box) -> str:
    """Our table as the kernel has it; empty when there is none."""
    return box.sh("nft list table inet boxwright 2>/dev/null", check=False)


def test_scans_before_and_after(box: Box, open_before: dict[str, set[int]]) -> None:
    # Without a firewall everything was open, what Docker publishes too. The gateway came later, without IPv6.
    assert open_before["192.168.77.1"] == {*PORTS} - {443}
    assert open_before["fd00:77::1"] >= {22, PROGRAM, PUBLISHED}
    after = scan(box, "lan", "192.168.77.1", "fd00:77::1", "100.64.7.1")
    assert after["192.168.77.1"] == {22, 443, OPEN}
    assert after["fd00:77::1"] == {22, OPEN}
    # An address of the tailnet is none of the LAN's, in either direction.
    assert after["100.64.7.1"] == set()
    assert scan(box, "tail", "100.64.7.1", "fd7a:115c:a1e0:7::1") == {
        "100.64.7.1": {22, 443, TAILNET},
        "fd7a:115c:a1e0:7::1": {22, TAILNET},
    }
    spoofed = (
        "ip netns exec lan curl --silent --insecure --max-time 2 --interface {} https://192.168.77.1/ -o /dev/null"
    )
    assert box.succeeds(spoofed.format("192.168.77.2"))
    assert not box.succeeds(spoofed.format("100.64.9.9"))
    # From the interface that Docker gave the box, by the operator's machine.
    operator = box.lab.run("python3", "-c", SCAN, ",".join(map(str, PORTS)), box.address).out.split()[1::2]
    assert operator == ["22", "443"]
    assert changed(box) == []


def test_a_container_cannot_be_reached_past_its_published_port(box: Box) -> None:
    inner = container(box, f"on{PUBLISHED}")
    assert scan(box, "lan", inner, ports=(80,)) == {inner: set()}
    box.sh("nft add table inet boxwright; nft delete table inet boxwright")
    box.sh("iptables -I DOCKER-USER -j ACCEPT")
    try:
        assert scan(box, "lan", inner, ports=(80,)) == {inner: {80}}, "the test itself finds a way when there is one"
        assert changed(box) == ["firewall: rules in force"]
        assert scan(box, "lan", inner, ports=(80,)) == {inner: set()}
    finally:
        box.sh("iptables -D DOCKER-USER -j ACCEPT")


def test_what_the_box_and_its_containers_ask_for_is_not_filtered(box: Box) -> None:
    """Outwards, between containers, and by the box's own address; large packets and neighbours are found."""
    box.sh(
        "ip netns exec lan python3 -m http.server --bind 192.168.77.2 8000 >/dev/null 2>&1 & echo $! >/srv/server.pid"
    )
    try:
        ask = "docker exec on{} python3 -c 'import socket; socket.create_connection((\"{}\", {}), 5)'"
        eventually("the lan answers", lambda: box.succeeds("curl --silent --fail http://192.168.77.2:8000/"))
        assert box.succeeds(ask.format(OPEN, "192.168.77.2", 8000))
        assert box.succeeds(ask.format(OPEN, container(box, f"on{PUBLISHED}"), 80))
        assert not box.succeeds(ask.format(OPEN, "172.17.0.1", PROGRAM))
        assert box.succeeds("curl --silent --fail http://127.0.0.1:9001/")
        # Without neighbour discovery there would be no answer by IPv6 at all.
        box.sh("ip -6 neigh flush dev lan0; ip -n lan -6 neigh flush dev eth0")
        assert scan(box, "lan", "fd00:77::1", ports=(22,)) == {"fd00:77::1": {22}}
    finally:
        box.sh("kill $(cat /srv/server.pid)")


def test_others_tables_and_dockers_rules_stay(box: Box) -> None:
    box.sh("nft 'add table inet mine; add chain inet mine mine; add rule inet mine mine counter accept'")
    try:
        before = box.sh("nft list ruleset | grep -c DOCKER; nft list table inet mine")
        box.sh("nft add rule inet boxwright input tcp dport 9001 accept")
        assert scan(box, "lan", "192.168.77.1", ports=(PROGRAM,)) == {"192.168.77.1": {PROGRAM}}
        assert changed(box) == ["firewall: rules in force"]
        assert scan(box, "lan", "192.168.77.1", ports=(PROGRAM,)) == {"192.168.77.1": set()}
        assert box.sh("nft list ruleset | grep -c DOCKER; nft list table inet mine") == before
    finally:
        box.sh("nft delete table inet mine")


def test_a_rule_that_would_cut_ssh_undoes_itself(box: Box) -> None:
    before = table(box)
    done = applied(box, firewall_ssh_sources=["192.0.2.0/24"]).expect(1)
    (problem,) = done.json["problems"]
    assert problem["code"] == "BW140"
    assert "was not confirmed by a new connection" in problem["message"]
    assert "has put its former state back" in problem["message"]
    assert table(box) == before
    assert changed(box) == []


def killed_in_the_window(box: Box) -> None:
    """A run that shuts SSH is killed when its rules are in force, and its guard waits for the confirmation."""
    varied = box.with_variables("cut", **{**FIREWALL, "firewall_ssh_sources": ["192.0.2.0/24"]})
    box.settled = False
    process = box.lab.start(*command(varied, "firewall"))
    try:
        eventually("the rules are in force", lambda: "192.0.2.0/24" in table(box), 60)
    finally:
        kill(process)


def test_a_run_killed_before_the_confirmation(box: Box) -> None:
    """Nobody is there any more who could confirm, and the box still comes back."""
    before = table(box)
    killed_in_the_window(box)
    assert box.succeeds("test -e /var/lib/boxwright/guard/firewall/armed")
    # No second run is needed for that; one in the meantime would not get a connection.
    eventually("the former state is back", lambda: table(box) == before, 60)
    assert changed(box) == []
    assert table(box) == before


def test_a_reboot_in_the_window_boots_the_former_state(box: Box) -> None:
    before = table(box)
    killed_in_the_window(box)
    box.container.kill()
    box.container.start()
    eventually("the box booted", lambda: box.succeeds("systemctl is-system-running | grep -E 'running|degraded'"), 120)
    assert table(box) == before
    machines(box)
    eventually("the gateway answers", lambda: 443 in scan(box, "lan", "192.168.77.1")["192.168.77.1"])
    box.sh("docker start $(docker ps --all --quiet)")
    assert changed(box) == []
    assert scan(box, "lan", "192.168.77.1")["192.168.77.1"] == {22, 443, OPEN}


def test_nftables_own_service_takes_it_away_for_no_longer_than_its_own_start(box: Box) -> None:
    before = table(box)
    box.sh("systemctl restart nftables.service")
    eventually("the table is back", lambda: table(box) == before, 10)
    # Who stops it empties the packet filter, ours too; the next run puts it back.
    box.sh("systemctl stop nftables.service")
    box.settled = False
    assert table(box) == ""
    assert changed(box) == ["firewall: rules in force"]


def test_checks_pass_and_see_what_is_wrong(box: Box) -> None:
    inventory = with_firewall(box)
    assert box.run("boxwright", "verify", "-k", "firewall", inventory=inventory).expect().code == 0
    box.sh("nft add rule inet boxwright input accept")
    box.settled = False
    assert "FAILED" in box.run("boxwright", "verify", "-k", "firewall", inventory=inventory).expect(1).text.upper()


def test_another_manager_of_the_filter_is_refused(box: Box) -> None:
    box.put("/usr/sbin/ufw", "#!/bin/sh\n", 0o755)
    box.sh("mkdir -p /etc/ufw; echo ENABLED=yes >/etc/ufw/ufw.conf")
    try:
        done = applied(box).expect(2)
        assert [problem["code"] for problem in done.json["problems"]] == ["BW143"]
        assert "ufw disable" in done.text
        box.sh("echo ENABLED=no >/etc/ufw/ufw.conf")
        assert changed(box) == []
    finally:
        box.sh("rm -r /usr/sbin/ufw /etc/ufw")


SSHD = {"sshd_enabled": True}


def sshd(box: Box, name: str) -> str:
    return box.sh(f"sshd -T | sed -n 's/^{name} //p'").strip()


def test_sshd_is_hardened_and_comes_back(box: Box) -> None:
    box.put("/etc/ssh/sshd_config.d/50-cloud-init.conf", "PasswordAuthentication yes\n")
    box.sh("systemctl reload ssh")
    assert sshd(box, "passwordauthentication") == "yes"
    assert changed(box, **SSHD) == ["sshd: settings in force"]
    assert (sshd(box, "passwordauthentication"), sshd(box, "kbdinteractiveauthentication")) == ("no", "no")
    methods = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "PreferredAuthentications=none"]
    refused = box.lab.run(*methods, "-o", "UserKnownHostsFile=/dev/null", f"nobody@{box.address}", "true").err
    assert "Permission denied (publickey)" in refused
    assert changed(box, **SSHD) == []
    box.sh("sed -i 's/^PasswordAuthentication no/PasswordAuthentication yes/' /etc/ssh/sshd_config.d/00-boxwright.conf")
    assert changed(box, **SSHD) == ["sshd: settings in force"]
    # What another file decides first is not called done.
    box.put("/etc/ssh/sshd_config.d/00-a.conf", "PermitRootLogin yes\n")
    done = applied(box, **SSHD).expect(1)
    assert "another file is read first" in done.text
    box.sh("rm /etc/ssh/sshd_config.d/00-a.conf")
    assert changed(box, **SSHD) == []


def test_settings_that_shut_the_operator_out_undo_themselves(box: Box) -> None:
    changed(box, **SSHD)
    done = applied(box, **SSHD, sshd_options={"AllowUsers": "nobody"}).expect(1)
    assert [problem["code"] for problem in done.json["problems"]] == ["BW140"]
    assert sshd(box, "allowusers") == ""
    assert changed(box, **SSHD) == []
    assert applied(box, **SSHD, sshd_options={"MaxAuthTries": "many"}).expect(1)
    assert changed(box, **SSHD) == []


def test_an_operator_without_a_key_is_refused(box: Box) -> None:
    login = str(box.variables.get("ansible_user", "root"))
    home = box.sh(f"getent passwd {login} | cut -d: -f6").strip()
    keys = f"{home}/.ssh/authorized_keys"
    box.put("/etc/ssh/other_keys", box.sh(f"cat {keys}"))
    # Keys at another place are found by sshd's own word; without any it is refused.
    box.put("/etc/ssh/sshd_config.d/90-keys.conf", "AuthorizedKeysFile /etc/ssh/other_keys\n")
    box.sh(f"systemctl reload ssh; mv {keys} {keys}.away")
    try:
        assert applied(box, **SSHD).expect().code == 0
        # The connection that is open goes on; the keys are taken away under it.
        box.sh(f"mv {keys}.away {keys}; rm /etc/ssh/sshd_config.d/90-keys.conf; systemctl reload ssh")
        assert applied(box, **SSHD, sshd_root="no", ansible_user="root", ansible_become=False).expect(2)
    finally:
        box.sh(f"[ ! -e {keys}.away ] || mv {keys}.away {keys}; rm -f /etc/ssh/sshd_config.d/90-keys.conf")
        box.sh("rm -f /etc/ssh/other_keys; systemctl reload ssh")


def test_switched_off_it_is_open_again_and_removed_it_is_gone(box: Box, bare: tuple[Box, set[str]]) -> None:
    changed(box, **SSHD)
    assert changed(box, firewall_enabled=False) == ["sshd: no settings of ours", "firewall: no rules"]
    assert changed(box, firewall_enabled=False) == []
    assert scan(box, "lan", "192.168.77.1")["192.168.77.1"] >= {PROGRAM, PUBLISHED}

    changed(box, **SSHD)
    box.sh("docker rm --force $(docker ps --all --quiet); systemctl stop program")
    box.sh("ip link delete lan0; ip link delete tailscale0; ip netns delete lan; ip netns delete tail; rm -r /srv/root")
    box.sh("rm /etc/ssh/sshd_config.d/50-cloud-init.conf; docker image rm links; rm -f /srv/server.pid")
    done = box.run("boxwright", "remove", "--json", "--purge").expect().json["hosts"][box.host]["changed"]
    assert {"firewall: no rules", "sshd: no settings of ours", "host: remove what undoes changes"} <= set(done)
    left = made_of(box) - bare[1]
    assert [line for line in left if "boxwright" in line or "nftables" in line or "guard" in line] == []
    assert table(box) == ""
    assert box.run("boxwright", "remove", "--json", "--purge").expect().json["hosts"][box.host]["changed"] == []
