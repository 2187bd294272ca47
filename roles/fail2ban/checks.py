"""What must hold of Fail2Ban."""

from ipaddress import ip_address, ip_network
from typing import Any

JAIL = "boxwright-gateway"


def test_running_and_enabled(host: Any) -> None:
    """Fail2Ban answers and starts at boot."""
    assert host.check_output("fail2ban-client ping").endswith("pong")
    assert host.service("fail2ban").is_enabled


def test_the_log_is_watched(host: Any, box: Any) -> None:
    """The jail of the gateway watches its access log, with the declared numbers."""
    assert box.gateway.access_log(box) in host.check_output(f"fail2ban-client get {JAIL} logpath")
    asked = ("maxretry", "findtime", "bantime")
    found = [int(host.check_output(f"fail2ban-client get {JAIL} {name}")) for name in asked]
    assert found == [box.fail2ban.attempts, box.fail2ban.window, box.fail2ban.ban]


def test_what_counts(host: Any) -> None:
    """A refused request counts, by the address it comes from; a request that was answered does not."""
    line = (
        '{"level":"info","ts":1767225600.1,"logger":"http.log.access","msg":"handled request","request":'
        '{"remote_ip":"192.0.2.7","uri":"/v1/models"},"status":%s,"size":1,"first_byte_ms":%s}'
    )
    for status, asked_upstream, matched in (("401", "null", True), ("401", "1.5", False), ("200", "null", False)):
        told = host.run(f"fail2ban-regex --out=ip '{line % (status, asked_upstream)}' {JAIL}")
        assert ("192.0.2.7" in told.stdout.split()) is matched, told.stdout


def test_who_is_never_banned(host: Any, box: Any) -> None:
    """The box itself, the tailnet and `fail2ban_never` are on the list of those who are never banned, and none is."""
    ignored = host.check_output(f"fail2ban-client get {JAIL} ignoreip")
    never = ["127.0.0.0/8", "100.64.0.0/10", "fd7a:115c:a1e0::/48", *map(str, box.fail2ban.never)]
    listed = {line.split()[-1] for line in ignored.splitlines() if line[:1] in "|`"}
    missing = [network for network in never if not {network, network.removesuffix("/32").removesuffix("/128")} & listed]
    assert missing == []
    banned = host.check_output(f"fail2ban-client get {JAIL} banip").split()
    spared = [ip_network(network) for network in never]
    assert [address for address in banned if any(ip_address(address) in network for network in spared)] == []
