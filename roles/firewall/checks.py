"""What must hold of the firewall."""

from typing import Any

TABLE = "inet boxwright"


def test_loaded_at_boot(host: Any) -> None:
    """The rules are in force, and are loaded at each boot."""
    assert host.service("boxwright-firewall").is_enabled
    assert host.service("boxwright-firewall").is_running


def test_default_deny(host: Any) -> None:
    """What no rule accepts is dropped, on the box itself and on the way to what Docker publishes."""
    assert "policy drop" in host.check_output(f"nft list chain {TABLE} input")
    published = host.check_output(f"nft list chain {TABLE} published").split("\n")
    assert [line.strip() for line in published if line.strip() not in ("", "}")][-1] == "drop"
    # A rule that accepts without a condition would make all others void.
    for chain in ("input", "forward", "published"):
        rules = [line.strip() for line in host.check_output(f"nft list chain {TABLE} {chain}").split("\n")]
        assert "accept" not in rules, chain


def test_ssh_stays_open(host: Any) -> None:
    """Each port on which sshd listens has a rule that accepts it."""
    rules = host.check_output(f"nft list chain {TABLE} input").split("\n")
    listening = host.check_output("ss -Hltnp").split("\n")
    ports = {line.split()[3].rpartition(":")[2] for line in listening if '"sshd"' in line}
    closed = [port for port in ports if not any(f"dport {port} " in rule and "accept" in rule for rule in rules)]
    assert closed == []


def test_declared_ports(host: Any, box: Any) -> None:
    """Each declared port has a rule, on the box and for what Docker publishes."""
    for chain, word in (("input", "dport"), ("published", "proto-dst")):
        rules = host.check_output(f"nft list chain {TABLE} {chain}")
        missing = [allow.port for allow in box.firewall.allow if f"{word} {allow.port} " not in rules]
        assert missing == [], chain


def test_nothing_waits(host: Any) -> None:
    """No change waits for its confirmation."""
    assert host.check_output("ls -d /var/lib/boxwright/guard/*/armed 2>/dev/null || true") == ""
