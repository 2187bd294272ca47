"""What is served in a tailnet, and what leads there: read from what Tailscale prints, and compared."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from boxwright import tailnet
from boxwright.tailnet import Endpoint, Membership, Node

NAME = "llm.tail1234.ts.net"
GATEWAY = Endpoint(443, "/", "https", "https+insecure://127.0.0.1:443")
FILES = Endpoint(443, "/files", "https", "http://127.0.0.1:8090")
SSH = Endpoint(2222, "", "tcp", "127.0.0.1:22")
# As `tailscale serve status --json` prints what these commands of 1.98 made: `funnel --bg --https=443 ...`, `serve --bg
# --https=443 --set-path=/files ...`, `serve --bg --tcp=2222 ...`.
CONFIG = {
    "TCP": {"2222": {"TCPForward": "127.0.0.1:22"}, "443": {"HTTPS": True}},
    "Web": {
        f"{NAME}:443": {
            "Handlers": {
                "/": {"Proxy": "https+insecure://127.0.0.1:443"},
                "/files": {"Proxy": "http://127.0.0.1:8090"},
            }
        }
    },
}
PUBLIC = {**CONFIG, "AllowFunnel": {f"{NAME}:443": True}}


def public(endpoint: Endpoint) -> Endpoint:
    return Endpoint(endpoint.port, endpoint.path, endpoint.protocol, endpoint.target, True)


def test_what_is_served_is_read() -> None:
    assert tailnet.endpoints(CONFIG, NAME) == (GATEWAY, FILES, SSH)
    assert tailnet.endpoints(PUBLIC, NAME) == (public(GATEWAY), public(FILES), SSH)
    assert tailnet.endpoints({}, NAME) == tailnet.endpoints(None, NAME) == ()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"TCP": {"80": {"HTTP": True}}, "Web": {f"{NAME}:80": {"Handlers": {"/": {"Text": "hello"}}}}},
            "http 80 to text:hello",
        ),
        (
            {"TCP": {"443": {"HTTPS": True}}, "Web": {f"{NAME}:443": {"Handlers": {"/a/": {"Path": "/srv"}}}}},
            "https 443/a/ to /srv",
        ),
        (
            {"TCP": {"443": {"TCPForward": "127.0.0.1:1", "TerminateTLS": NAME}}},
            "tls-terminated-tcp 443 to 127.0.0.1:1",
        ),
        ({"TCP": {"1": {"TCPForward": "h:2"}}, "AllowFunnel": {f"{NAME}:1": True}}, "public on the internet"),
        ({"Services": {"svc:web": CONFIG}}, "of the service svc:web"),
        ({"Foreground": {"1": PUBLIC}}, "public on the internet (as long as a command in a terminal runs)"),
        (
            {"TCP": {"80": {"HTTP": True}}, "Web": {"old.ts.net:80": {"Handlers": {"/": {"Proxy": "http://x:1"}}}}},
            "http 80 to http://x:1 (under the name old.ts.net)",
        ),
        (
            {"TCP": {"80": {"HTTP": True}}, "Web": {f"{NAME}:80": {"Handlers": {"/": {"Rocket": 1}}}}},
            "something that boxwright does not know",
        ),
    ],
    ids=["text", "folder", "tls", "public tcp", "service", "foreground", "old name", "unknown"],
)
def test_what_else_is_served_is_told(config: dict, told: str) -> None:
    assert told in str(tailnet.endpoints(config, NAME)[0])
    # None of it is ours, and nothing of it stands in the way of something else.
    difference = tailnet.compare([Endpoint(8443, "/", "http", "http://127.0.0.1:1")], tailnet.endpoints(config, NAME))
    assert [endpoint.port for endpoint in difference.on] == [8443]
    assert not difference.off
    assert not difference.reset
    assert difference.foreign == tailnet.endpoints(config, NAME)


def changed(wanted: list[Endpoint], config: dict, **more: object) -> tuple[list[Endpoint], list[Endpoint]]:
    difference = tailnet.compare(wanted, tailnet.endpoints(config, NAME), **more)
    assert not difference.reset
    return list(difference.off), list(difference.on)


def test_only_what_differs_is_changed() -> None:
    assert changed([GATEWAY, FILES, SSH], CONFIG) == ([], [])
    assert changed([GATEWAY, FILES, SSH], {}) == ([], [GATEWAY, FILES, SSH])
    other = Endpoint(443, "/files", "https", "http://127.0.0.1:1")
    assert changed([GATEWAY, other, SSH], CONFIG) == ([], [other])
    # Funnel on and off.
    assert changed([public(GATEWAY), public(FILES), SSH], CONFIG) == ([], [public(GATEWAY), public(FILES)])
    assert changed([GATEWAY, FILES, SSH], PUBLIC) == ([], [GATEWAY, FILES])


def test_what_is_declared_no_longer_goes_only_when_it_is_ours_or_in_the_way() -> None:
    assert changed([GATEWAY], CONFIG, ours=[(443, "/files")]) == ([FILES], [])
    assert changed([GATEWAY], CONFIG) == ([], [])
    assert tailnet.compare([GATEWAY], tailnet.endpoints(CONFIG, NAME)).foreign == (FILES, SSH)
    assert changed([GATEWAY], CONFIG, remove_foreign=True) == ([FILES, SSH], [])
    # A port speaks one protocol.
    web = Endpoint(2222, "/", "http", "http://127.0.0.1:1")
    assert changed([web], CONFIG, ours=[(443, "/"), (443, "/files")]) == ([GATEWAY, FILES, SSH], [web])


def test_what_a_former_name_served_goes_with_all_when_nothing_is_foreign() -> None:
    old = {"TCP": CONFIG["TCP"], "Web": {"old.tail1234.ts.net:443": CONFIG["Web"][f"{NAME}:443"]}}
    there = tailnet.endpoints(old, NAME)
    everything = [GATEWAY, FILES, SSH]
    assert tailnet.compare(everything, there) == tailnet.Difference(reset=True, on=(GATEWAY, FILES, SSH))
    kept = tailnet.compare([GATEWAY, FILES], there)
    assert not kept.reset
    assert kept.on == (GATEWAY, FILES)
    assert len(kept.foreign) == 3


def test_commands() -> None:
    assert tailnet.on_arguments(GATEWAY) == (
        *("serve", "--bg", "--yes", "--https=443", "https+insecure://127.0.0.1:443"),
    )
    assert tailnet.on_arguments(public(FILES)) == (
        *("funnel", "--bg", "--yes", "--https=443", "--set-path=/files", "http://127.0.0.1:8090"),
    )
    assert tailnet.on_arguments(SSH) == ("serve", "--bg", "--yes", "--tcp=2222", "tcp://127.0.0.1:22")
    assert tailnet.off_arguments(SSH) == ("serve", "--yes", "--tcp=2222", "off")
    # Named, since without it everything on the port would go.
    assert tailnet.off_arguments(GATEWAY) == ("serve", "--yes", "--https=443", "--set-path=/", "off")


def test_what_serve_and_funnel_need_is_said() -> None:
    ready = Node(
        installed=True,
        state="Running",
        name=NAME,
        certificates=(NAME,),
        capabilities=("https", "funnel", "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000-10002"),
    )
    wanted = [public(GATEWAY)]
    assert tailnet.serve_problems(ready, wanted) == []
    assert tailnet.funnel_ports(ready.capabilities) == {443, 8443, 10000, 10001, 10002}
    bare = Node(installed=True, state="Running", name=NAME, tags=("tag:llm",))
    certificates, funnel = tailnet.serve_problems(bare, wanted)
    assert "admin console (DNS, HTTPS Certificates" in certificates
    assert '{"target": ["tag:llm"], "attr": ["funnel"]}' in funnel
    assert tailnet.serve_problems(bare, [SSH]) == []
    (port,) = tailnet.serve_problems(ready, [public(Endpoint(444, "/", "https", "http://127.0.0.1:1"))])
    assert "port 444" in port
    assert "443, 8443" in port
    # What somebody else serves on a port would be opened with it.
    assert tailnet.exposed(wanted, [FILES, SSH]) == (FILES,)
    assert tailnet.exposed([GATEWAY], [FILES, SSH]) == ()


# `tailscale status --json --peers=false` of 1.98.1, shortened.
STATUS = {
    "BackendState": "Running",
    "Self": {
        "DNSName": f"{NAME}.",
        "TailscaleIPs": ["100.64.0.1"],
        "Tags": ["tag:llm"],
        "CapMap": {"funnel": None, "https": None},
        "KeyExpiry": "2027-05-01T10:00:00Z",
    },
    "Health": ["something"],
    "CertDomains": [NAME],
}


def test_a_node_is_read() -> None:
    found = tailnet.node(STATUS, {"ControlURL": "https://x"}, None)
    assert (found.state, found.name, found.label, found.tags) == ("Running", NAME, "llm", ("tag:llm",))
    assert found.capabilities == ("funnel", "https")
    assert tailnet.days_left(found, datetime(2027, 4, 30, 10, tzinfo=UTC)) == 1
    never = tailnet.node({"Self": {"KeyExpiry": "0001-01-01T00:00:00Z"}, "CertDomains": None}, None, None)
    assert tailnet.days_left(never, datetime.now(UTC)) is None
    assert never.certificates == ()


@pytest.mark.parametrize(
    ("node", "has_key", "action", "said"),
    [
        (Node(), True, "join", ""),
        (Node(), False, "", "there is no key to join one with"),
        (Node(installed=True, state="NeedsLogin"), True, "join", ""),
        (Node(installed=True, state="NeedsLogin", expired=True), False, "", "has expired, and there is no key"),
        (Node(installed=True, state="Stopped"), False, "up", ""),
        (Node(installed=True, state="Running", tags=("tag:llm",)), False, "", ""),
        (Node(installed=True, state="Running", tags=("tag:x",)), True, "", "tags in the tailnet are tag:x"),
        (
            Node(installed=True, state="Running", preferences={"ControlURL": "https://elsewhere"}),
            True,
            "",
            "in the tailnet of https://elsewhere, not in that of https://controlplane.tailscale.com",
        ),
        (Node(installed=True, state="NeedsMachineAuth"), True, "", "waits for approval"),
        (Node(installed=True, state="NoState"), True, "", "still NoState"),
        (Node(installed=True, state="Starting", health=("no network",)), True, "", "still Starting: no network"),
        (Node(installed=True, state="silent"), True, "", "still silent"),
    ],
)
def test_what_leads_into_a_tailnet(node: Node, has_key: bool, action: str, said: str) -> None:
    step = tailnet.membership_step(node, Membership(tags=("tag:llm",)), has_key)
    assert step.action == action
    assert said in step.problem if said else step.problem == ""


def test_preferences_that_differ() -> None:
    found = {
        "Hostname": "llm",
        "RunSSH": True,
        "CorpDNS": True,
        "RouteAll": False,
        "AdvertiseRoutes": ["0.0.0.0/0", "::/0", "192.0.2.0/24"],
        "OperatorUser": "ada",
    }
    same = {
        "hostname": "llm",
        "ssh": True,
        "accept_dns": True,
        "accept_routes": False,
        "advertise_routes": ("192.0.2.0/24",),
        "advertise_exit_node": True,
        "operator": "ada",
    }
    assert tailnet.differing(found, same) == {}
    assert tailnet.differing(found, dict.fromkeys(same)) == {}
    other = {"ssh": False, "advertise_routes": (), "advertise_exit_node": False, "operator": "bob", "hostname": "x"}
    assert tailnet.differing(found, {**same, **other}) == other
    assert tailnet.preference_arguments({**other, "accept_dns": None}) == (
        *("--ssh=false", "--advertise-routes=", "--advertise-exit-node=false", "--operator=bob", "--hostname=x"),
    )


def test_what_preferences_were() -> None:
    assert tailnet.preferences_of({"RunSSH": True, "AdvertiseRoutes": ["0.0.0.0/0", "::/0"], "Hostname": "llm"}) == {
        **{"hostname": "llm", "ssh": True, "operator": "", "accept_dns": False, "accept_routes": False},
        **{"advertise_routes": frozenset(), "advertise_exit_node": True},
    }


def test_the_join_says_all_that_is_declared() -> None:
    wanted = Membership(
        server="https://h.example",
        tags=("tag:a", "tag:b"),
        hostname="llm",
        preferences={"hostname": "llm", "ssh": None},
    )
    assert wanted.join_arguments == (*("--reset", "--login-server=https://h.example", "--hostname=llm"),)
    assert Membership().join_arguments == ("--reset",)
    # The routes of others come afterwards, when somebody watches whether the operator can still connect.
    assert Membership(preferences={"accept_routes": True, "ssh": True}).join_arguments == ("--reset", "--ssh=true")


def test_a_taken_name() -> None:
    assert tailnet.taken_name("llm", "llm-1").startswith("the tailnet calls the box llm-1, not llm: another machine")
    assert not tailnet.named(Node(name="llm-1.x.ts.net"), "llm")
    assert tailnet.named(Node(name="llm.x.ts.net"), "llm")
    assert tailnet.named(Node(name="llm-1.x.ts.net"), "")
    assert tailnet.named(Node(), "llm")


def test_a_container_serves_the_same() -> None:
    config = tailnet.serve_config([public(GATEWAY), public(FILES), SSH], NAME)
    assert config == PUBLIC
    assert list(tailnet.serve_config([GATEWAY])["Web"]) == ["${TS_CERT_DOMAIN}:443"]
