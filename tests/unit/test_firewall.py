"""The firewall and the hardening of SSH from settings alone: what is written, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from boxwright.errors import Refused
from boxwright.facts.files import FileState
from boxwright.facts.firewall import FirewallSurroundings, Surroundings
from boxwright.facts.sshd import Sshd, SshdState
from boxwright.guard import Change, NewFile
from boxwright.operations import guard
from boxwright.settings import parse_box
from roles.firewall import tasks as firewall
from roles.registry import Box
from roles.sshd import tasks as sshd

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
GOLDEN = Path(__file__).parent / "golden"
EVERYTHING: dict[str, Any] = {
    "gateway_bind": ["0.0.0.0", "2001:db8::1"],
    "gateway_tls": "acme",
    "gateway_acme_challenge": "http",
    "firewall_gateway_sources": ["192.0.2.0/24", "100.64.0.0/10", "2001:db8::/32"],
    "firewall_ssh_sources": ["192.0.2.0/24", "192.0.2.7", "::/0"],
    "firewall_allow": [
        {"port": "8000-8010", "sources": ["198.51.100.7", "2001:db8:1::/64"]},
        {"port": "41641", "protocol": "udp", "sources": ["0.0.0.0/0", "::/0"]},
        {"port": "9090", "interface": "tailscale0"},
        {"port": "5353", "protocol": "udp", "interface": "eth1", "sources": ["192.0.2.0/24"]},
    ],
}


def a_box(**variables: Any) -> Box:
    defaults = {"gateway_names": ["llm.example"], "inference_models": [MODEL], "firewall_enabled": True}
    return parse_box(Box, "box", (), {**defaults, **variables}, None, None)


def chain(text: str, name: str) -> list[str]:
    """The rules of a chain, without comments."""
    body = text.partition(f"chain {name} {{")[2].partition("\n\t}")[0]
    return [line.strip() for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_everything_declared_is_the_golden_file() -> None:
    """nft itself reads such files in tests/integration/test_firewall.py."""
    assert firewall.ruleset(a_box(**EVERYTHING), (22, 2222)) == (GOLDEN / "firewall.nft").read_text()


def test_a_closed_gateway_opens_nothing_but_ssh() -> None:
    text = firewall.ruleset(a_box(openwebui_enabled=False, docker_enabled=False), (22,))
    assert [rule for rule in chain(text, "input") if "tcp dport" in rule] == ["tcp dport 22 accept"]
    assert chain(text, "published") == ["drop"]
    assert "tailscale0" not in text


def test_the_container_reaches_the_gateways_inner_port_alone() -> None:
    text = firewall.ruleset(a_box(openwebui_subnet="10.9.8.0/28", gateway_internal_port=9000), (22,))
    wanted = 'iifname "br-*" ip saddr 10.9.8.0/28 ip daddr 10.9.8.1 tcp dport 9000 accept'
    assert [rule for rule in chain(text, "input") if "10.9.8" in rule] == [wanted]


def test_a_gateway_of_one_address_is_open_at_that_one() -> None:
    text = firewall.ruleset(a_box(gateway_bind=["192.0.2.1"], gateway_port=8443), (22,))
    assert [rule for rule in chain(text, "input") if "8443" in rule] == ["ip daddr 192.0.2.1 tcp dport 8443 accept"]
    # Sources of another kind of address open nothing at all, and not everything.
    text = firewall.ruleset(a_box(gateway_bind=["192.0.2.1"], firewall_gateway_sources=["2001:db8::/32"]), (22,))
    assert [rule for rule in chain(text, "input") if "443" in rule] == []


def test_tailnet_addresses_count_on_their_interface_alone_when_one_is_declared() -> None:
    for variables in (
        {"firewall_allow": [{"port": "1", "interface": "tailscale0"}]},
        {"firewall_allow": [{"port": "1", "sources": ["100.100.0.0/16"]}]},
        {"gateway_bind": ["100.64.0.7"]},
        {"firewall_ssh_sources": ["fd7a:115c:a1e0::7"]},
    ):
        text = firewall.ruleset(a_box(**variables), (22,))
        for name in ("input", "published"):
            assert 'iifname != "tailscale0" ip saddr 100.64.0.0/10 drop' in chain(text, name)
            assert 'iifname != "tailscale0" ip6 saddr fd7a:115c:a1e0::/48 drop' in chain(text, name)


@pytest.mark.parametrize(
    ("allow", "said"),
    [
        ({"port": "80"}, "without saying for whom"),
        ({"port": "90-80", "sources": ["192.0.2.1"]}, "the smaller one first"),
        ({"port": "70000", "sources": ["192.0.2.1"]}, "from 1 to 65535"),
        ({"port": "0", "interface": "eth0"}, "port"),
        ({"port": "80", "interface": 'eth0" accept'}, "interface"),
        ({"port": "80", "sources": ["192.0.2.1/24"]}, "sources"),
    ],
)
def test_a_rule_that_opens_nothing_is_refused(allow: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as refused:
        a_box(firewall_allow=[allow])
    (problem,) = refused.value.problems
    assert said in f"{problem.variable} {problem.message} {problem.help}"


def test_it_is_off_unless_asked_for() -> None:
    box = parse_box(Box, "box", (), {"gateway_names": ["a"], "inference_models": [MODEL]}, None, None)
    assert (box.firewall.enabled, box.sshd.enabled) == (False, False)


# Surroundings


def surroundings(*lines: str) -> FirewallSurroundings:
    return Surroundings().process([*lines, "examined=yes"])


def test_ports_of_sshd_come_from_all_who_know_one() -> None:
    found = surroundings("port=22", "port=2222", "port=22", "client=192.0.2.9", "port=22022", "uplink=eth0")
    assert (found.ssh_ports, found.ssh_client, found.uplinks) == ((22, 2222, 22022), "192.0.2.9", ("eth0",))


def test_what_a_firewall_cannot_live_with() -> None:
    box = a_box()
    assert firewall.unfit(box, surroundings("port=22", "uplink=eth0"), True) == []
    codes = [
        firewall.unfit(box, found, over_ssh)[0].code
        for found, over_ssh in (
            (surroundings("manager=ufw", "port=22"), True),
            (surroundings("manager=firewalld", "port=22"), True),
            (surroundings(), True),
            (surroundings("port=22", "uplink=br-lan"), True),
        )
    ]
    assert codes == ["BW143", "BW143", "BW144", "BW145"]
    # On the box itself there is no SSH that could be closed.
    assert firewall.unfit(box, surroundings(), False) == []
    assert firewall.unfit(a_box(firewall_inside=["docker0"]), surroundings("port=22", "uplink=br-lan"), True) == []


# sshd

# `sshd -T` of OpenSSH 9.2, shortened: it says prohibit-password by its old name.
SAID = """\
set port 22
set permitrootlogin without-password
set passwordauthentication no
set kbdinteractiveauthentication no
set acceptenv LANG
set acceptenv LC_*
set authorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2"""


def sshd_state(user: str = "operator", keys: int = 1, installed: bool = True) -> SshdState:
    there = ["installed=yes", f"keys={keys}"] if installed else []
    return Sshd().process(["absent", f"user={user}", *there, *SAID.splitlines()])


def test_sshds_own_word_is_read() -> None:
    found = sshd_state()
    assert found.file == FileState("absent")
    assert found.effective["acceptenv"] == "LANG LC_*"
    wanted = sshd.effective(a_box(sshd_enabled=True))
    assert all(found.effective[name] in values for name, values in wanted.items())
    assert sshd.effective(a_box(sshd_passwords=True, sshd_root="no")) == {
        "passwordauthentication": ("yes",),
        "permitrootlogin": ("no",),
    }


def test_the_drop_in() -> None:
    lines = [line for line in sshd.drop_in(a_box(sshd_options={"MaxAuthTries": "4"})).splitlines() if line[0] != "#"]
    assert lines == [
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "MaxAuthTries 4",
    ]
    assert "Kbd" not in sshd.drop_in(a_box(sshd_passwords=True))


def test_who_would_be_shut_out_is_told_before() -> None:
    box = a_box(sshd_enabled=True)
    assert sshd.unfit(box, sshd_state(), by_password=False) == []
    for found, by_password, variables, said in (
        (sshd_state(), True, {}, "ansible_password"),
        (sshd_state(keys=0), False, {}, "no key of operator"),
        (sshd_state(user="root"), False, {"sshd_root": "no"}, "signs in as root"),
        (sshd_state(installed=False), False, {}, "no sshd"),
    ):
        (problem,) = sshd.unfit(a_box(sshd_enabled=True, **variables), found, by_password)
        assert problem.code == "BW147"
        assert said in problem.message
    assert sshd.unfit(a_box(sshd_passwords=True), sshd_state(keys=0), by_password=True) == []


@pytest.mark.parametrize("name", ["PasswordAuthentication", "permitrootlogin", "Match", "Port", "Include", "UsePAM"])
def test_directives_that_are_decided_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(Refused) as refused:
        a_box(sshd_options={name: "x"})
    assert [problem.code for problem in refused.value.problems] == ["BW146"]


def test_a_value_is_one_line() -> None:
    with pytest.raises(Refused):
        a_box(sshd_options={"Banner": "none\nMatch all"})


# The confirmation


class NewConnection:
    """What `anew` makes; `ran` is whether the guard accepts what it is told."""

    remote_commands = 1

    def __init__(self, ran: bool) -> None:
        self.ran, self.left = ran, False

    def run_shell_command(self, command: Any, **arguments: Any) -> tuple[bool, Any]:
        return self.ran, SimpleNamespace(stderr_lines=["the change was taken back already"])

    def leave(self) -> None:
        self.left = True


def confirmed(anew: Any, deadline: float = 30) -> guard.Confirm:
    connector = SimpleNamespace(anew=anew, remote_commands=0) if anew else SimpleNamespace()
    command = guard.Confirm("sample", "token", deadline)
    assert command.execute(None, SimpleNamespace(connector=connector, name="box"), {}) is True
    return command


def test_a_new_connection_confirms_and_is_closed() -> None:
    made = NewConnection(True)
    assert confirmed(lambda seconds: made).problem is None
    assert made.left


def test_a_confirmation_that_comes_too_late_is_told() -> None:
    answers = iter([NewConnection(False), NewConnection(True)])
    problem = confirmed(lambda seconds: next(answers)).problem
    assert problem is not None
    assert problem.code == "BW140"
    assert "taken back already" in problem.message


def test_a_connector_that_makes_no_second_connection_cannot_confirm() -> None:
    problem = confirmed(None).problem
    assert problem is not None
    assert problem.code == "BW141"
    assert "use @boxwright" in problem.message


def test_a_change_has_plain_paths() -> None:
    with pytest.raises(ValueError, match="without spaces"):
        Change("x", {"/etc/a b": NewFile("")}, force=":", restore=":")
