"""A box in a tailnet: real Tailscale from a signed package repository, and a real Headscale that administers it.

The other machine of the tailnet is a container on the lab's network with the same programs in userspace networking.
Headscale has neither certificates nor Funnel, nor does it make a node wait for approval: those are in
tests/operations/test_tailscale.py, on a made-up host.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from headscale import DOMAIN, Headscale
from kit import LIGHT, Lab, eventually
from leaks import leaks, watched_command_lines
from snapshots import made_of

from boxwright.lab import tailnet
from tests.doubles.authority import Authority

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="this machine has no /dev/net/tun"),
]

NAME = f"llm.{DOMAIN}"
PROXY = "curl --silent --max-time 20 --proxy socks5h://127.0.0.1:1055"
SERVE = [
    {"port": 80, "protocol": "http", "target": "gateway"},
    {"port": 2222, "protocol": "tcp", "target": "tcp://127.0.0.1:22"},
]
JOIN, PREFERENCES, SERVING = "tailscale: in the tailnet", "tailscale: preferences", "tailscale: serve"


class Tailnet:
    """One box, converged into a tailnet, and what it is tried with."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.box = lab.up("tailnet", {**LIGHT, "tailscale_enabled": True})
        self.before = made_of(self.box)
        self.control = Headscale(folder / "headscale", str(ip_interface(f"{self.box.address}/24").network[1]))
        self.control.policy(
            tagOwners={"tag:llm": ["lab@"], "tag:other": ["lab@"]},
            acls=[{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
        )
        self.key = self.control.key("--reusable", "--tags", "tag:llm")

    def join(self) -> None:
        """The first run, and what was seen of it."""
        with watched_command_lines() as self.commands:
            self.first = self.box.apply(inventory=self.inventory()).expect()

    def inventory(self, label: str = "tailnet", **variables: Any) -> Path:
        """An inventory with the box in the tailnet, its gateway open to nobody but the box itself."""
        wanted = {
            "gateway_bind": ["127.0.0.1"],
            "gateway_names": [self.box.address, NAME],
            "tailscale_login_server": self.control.url,
            "tailscale_auth_key": self.key,
            "tailscale_hostname": "llm",
            "tailscale_tags": ["tag:llm"],
            "tailscale_join_timeout": 30,
            "tailscale_serve": SERVE,
        }
        return self.box.with_variables(label, **{**wanted, **variables})

    def changes(self, **variables: Any) -> list[str]:
        """Names of what a run changed."""
        return self.box.changes(self.inventory(**variables))

    def refused(self, **variables: Any) -> str:
        """What a run says that fails."""
        return self.box.apply(inventory=self.inventory(**variables)).expect(1).text

    def forget(self) -> None:
        """The box leaves, and the tailnet forgets it: Headscale 0.29 keeps a node with tags expired for good."""
        self.box.sh("tailscale logout")
        eventually("the box knows that it is out", lambda: self.status["BackendState"] == "NeedsLogin")
        self.control("nodes", "delete", "--force", "--identifier", str(self.control.nodes()["llm"]["id"]))

    @property
    def status(self) -> Any:
        """What Tailscale says of the box."""
        return json.loads(self.box.sh("tailscale status --json --peers=false"))

    @property
    def served(self) -> Any:
        """What Tailscale serves."""
        return json.loads(self.box.sh("tailscale serve status --json"))


@pytest.fixture(scope="module")
def net(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    found = Tailnet(lab, tmp_path_factory.mktemp("tailnet"))
    try:
        found.join()
        yield found
    finally:
        found.control.close()


@pytest.fixture(scope="module")
def peer(net: Tailnet) -> Iterator[Any]:
    """Another machine of the tailnet; what a shell script prints there."""
    programs = str(tailnet.folder(tailnet.TAILSCALE))
    container = net.box.lab.neighbour(net.box, volumes={programs: {"bind": "/opt/tailscale", "mode": "ro"}})

    def sh(script: str) -> str:
        said = container.exec_run(["sh", "-c", f"PATH=/opt/tailscale:$PATH; {script}"], demux=True).output
        return b"".join(part or b"" for part in said).decode()

    daemon = "tailscaled --tun=userspace-networking --socks5-server=127.0.0.1:1055 --state=mem: --statedir=/var/lib/ts"
    container.exec_run(["sh", "-c", f"mkdir -p /run/tailscale; exec /opt/tailscale/{daemon}"], detach=True)
    eventually("the other machine's tailscaled answers", lambda: "Logged out" in sh("tailscale status 2>&1"))
    try:
        up = f"tailscale up --login-server={net.control.url} --auth-key={net.control.key()} --hostname=laptop 2>&1"
        assert sh(up).strip() == ""
        yield sh
    finally:
        container.remove(force=True)


def test_a_box_joins_from_a_signed_repository_and_a_second_run_changes_nothing(net: Tailnet) -> None:
    changed = net.first.json["hosts"][net.box.host]["changed"]
    assert [name for name in changed if name.startswith("tailscale: ")] == [
        "tailscale: package repository",
        "tailscale: install the program",
        "tailscale: ready to undo a change",
        "tailscale: note what tailscaled was started with",
        "tailscale: running",
        JOIN,
        SERVING,
    ]
    node = net.control.nodes()["llm"]
    assert node["online"] is True
    assert node["tags"] == ["tag:llm"]
    assert net.status["Self"]["DNSName"] == f"{NAME}."
    assert "1.98.1" in net.box.sh("dpkg-query --show tailscale; tailscale version")
    assert net.changes() == []


def test_the_key_is_nowhere(net: Tailnet) -> None:
    """Not in an argument of any process on this machine or the box, not in a log, not in a file that stays."""
    secret = {"key": net.key}
    assert any("tailscale up --auth-key=file:" in line for line in net.commands)
    assert leaks("\n".join(net.commands), secret) == []
    assert leaks(net.first.text, secret) == []
    log = Path(net.first.json["log"]).read_text(encoding="utf-8")
    assert "tailscale up" in log
    assert leaks(log, secret) == []
    looked = "/etc /run /var/lib/tailscale /var/lib/boxwright /var/log /root /tmp"
    assert net.box.sh(f"grep -rlaF -e '{net.key}' {looked} 2>/dev/null; true") == ""
    assert leaks(net.box.sh("journalctl --no-pager"), secret) == []


def test_the_gateway_is_reached_over_the_tailnet_and_not_otherwise(net: Tailnet, peer: Any) -> None:
    user, password = net.box.credentials
    ask = f"{PROXY} --output /dev/null --write-out '%{{http_code}}' http://{NAME}/v1/models"
    eventually("the box answers over the tailnet", lambda: peer(ask) == "401", 30)
    assert peer(f"{ask} --user '{user}:{password}'") == "200"
    # The same port of the box's address in the lab, and the gateway's own, are closed to the same machine.
    for port in (80, 443):
        assert peer(f"curl --silent --max-time 5 http://{net.box.address}:{port}/; echo $?").split()[-1] == "7"
    # The gateway's own port is closed in the tailnet too: it listens on the box alone.
    assert peer(f"{PROXY} --insecure https://{NAME}/v1/models >/dev/null; echo $?").strip() != "0"
    # Silence ends it; what came before is the greeting.
    greeting = peer(f"{PROXY.replace('20', '3')} --no-buffer telnet://{NAME}:2222")
    assert greeting.startswith("SSH-2.0-"), greeting


def test_drift_is_put_right_and_what_somebody_else_serves_stays(net: Tailnet) -> None:
    box = net.box
    wanted = net.served
    box.sh(
        "tailscale serve --bg --http=80 http://127.0.0.1:9 >/dev/null; tailscale serve --tcp=2222 off;"
        "tailscale serve --bg --http=8099 text:theirs >/dev/null; tailscale set --hostname=other"
    )
    done = box.apply(inventory=net.inventory()).expect()
    assert done.json["hosts"][box.host]["changed"] == [PREFERENCES, SERVING]
    assert "Tailscale also serves what is not declared: http 8099 to text:theirs" in done.text
    assert net.served["Web"][f"{NAME}:80"] == wanted["Web"][f"{NAME}:80"]
    assert net.served["TCP"] == {**wanted["TCP"], "8099": {"HTTP": True}}
    assert net.changes() == []

    # What is declared no longer goes; what somebody else made still stays, until it is asked for.
    assert net.changes(tailscale_serve=SERVE[:1]) == [SERVING]
    assert set(net.served["TCP"]) == {"80", "8099"}
    assert net.changes(tailscale_serve_foreign="remove") == [SERVING]
    assert net.served == wanted
    assert net.changes() == []


def test_routes_of_others_that_would_cut_the_operator_off_undo_themselves(net: Tailnet, peer: Any) -> None:
    """The other machine says that the way to the network, on which the operator comes, is by it."""
    lan = str(ip_interface(f"{net.box.address}/24").network)
    peer(f"tailscale set --advertise-routes={lan}")
    laptop = str(net.control.nodes()["laptop"]["id"])
    try:
        net.control("nodes", "approve-routes", "--identifier", laptop, "--routes", lan)
        before = net.box.sh("tailscale debug prefs")
        done = net.box.apply(inventory=net.inventory(tailscale_accept_routes=True)).expect(1)
        (problem,) = done.json["problems"]
        assert problem["code"] == "BW140"
        assert "the change of tailnet was not confirmed by a new connection" in problem["message"]
        assert net.box.sh("tailscale debug prefs") == before
    finally:
        net.control("nodes", "approve-routes", "--identifier", laptop, "--routes", "")
        peer("tailscale set --advertise-routes=")
    assert net.changes() == []
    # Without that route they are accepted, and given up again.
    assert net.changes(tailscale_accept_routes=True) == [PREFERENCES]
    assert net.changes(tailscale_accept_routes=False) == [PREFERENCES]


def test_a_tailscaled_that_is_just_starting_is_waited_for(net: Tailnet) -> None:
    box, before = net.box, net.served
    process = box.pid("tailscaled")
    box.sh("systemctl kill --signal=KILL tailscaled; systemctl restart --no-block tailscaled")
    assert net.changes() == []
    assert box.pid("tailscaled") != process
    assert net.served == before


def test_a_run_that_was_killed_while_it_joined_is_completed(net: Tailnet) -> None:
    net.forget()
    net.box.sh("umask 077; echo left >/run/boxwright-tailscale-key")
    assert JOIN in net.changes()
    assert not net.box.succeeds("test -e /run/boxwright-tailscale-key")
    assert net.changes() == []


def test_an_expired_node_is_told_of_and_joins_again(net: Tailnet) -> None:
    net.control("nodes", "expire", "--identifier", str(net.control.nodes()["llm"]["id"]))
    eventually("the box knows that its key has expired", lambda: net.status["BackendState"] == "NeedsLogin")
    said = net.refused(tailscale_auth_key=None)
    assert "the box's key for the tailnet has expired, and there is no key to join one with" in " ".join(said.split())
    said = " ".join(net.refused(tailscale_join_timeout=5).split())
    assert f"{net.control.url} knows this box and keeps it expired: remove it where the tailnet is administered" in said
    net.forget()
    assert JOIN in net.changes()
    assert net.status["BackendState"] == "Running"


def test_what_the_tailnet_does_not_give_is_said_before_anything_changes(net: Tailnet) -> None:
    before = net.served
    said = " ".join(net.refused(tailscale_serve=[{"port": 443, "target": "gateway"}]).split())
    assert "the tailnet gives no HTTPS certificates: switch them on in the admin console" in said
    assert net.served == before
    said = " ".join(net.refused(tailscale_tags=["tag:other"]).split())
    assert "the box's tags in the tailnet are tag:llm, and `tailscale_tags` has tag:other" in said
    assert net.status["BackendState"] == "Running"


def test_a_name_that_another_machine_has_is_an_error(net: Tailnet, peer: Any) -> None:
    assert "laptop" in net.control.nodes()
    net.box.sh("tailscale set --hostname=laptop")
    eventually("the box has another name", lambda: net.status["Self"]["DNSName"].startswith("laptop-"))
    named = {"tailscale_hostname": "laptop", "gateway_names": [net.box.address, f"laptop.{DOMAIN}"]}
    said = " ".join(net.refused(**named).split())
    assert "not laptop: another machine has that name" in said
    assert net.changes() == [PREFERENCES]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--expiration", "1ms"), "the key in tailscale_auth_key has expired"),
        (("--tags", "tag:other"), "the tailnet does not give the tags tag:llm to this key"),
        (None, "does not know the key in tailscale_auth_key"),
    ],
    ids=["expired", "other tags", "unknown"],
)
def test_a_key_that_opens_nothing(net: Tailnet, options: tuple[str, ...] | None, expected: str) -> None:
    key = net.control.key(*options) if options else "hskey-auth-AAAAAAAAAAAA-" + "B" * 64
    if "llm" in net.control.nodes():
        net.forget()
    done = net.box.apply(inventory=net.inventory(tailscale_auth_key=key)).expect(1)
    assert leaks(done.text, {"key": key}) == []
    assert expected in " ".join(done.text.split()), done.text
    assert not net.box.succeeds("test -e /run/boxwright-tailscale-key")


def test_a_clock_that_is_wrong(net: Tailnet, tmp_path: Path) -> None:
    """To a box that lives in the past, no certificate is valid yet."""
    address = net.control.url.removeprefix("http://").partition(":")[0]
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    certificate, key = Authority(tmp_path, "An authority").issue("control", address, begins=tomorrow)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer((address, 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if "llm" in net.control.nodes():
        net.forget()
    try:
        url = f"https://{address}:{server.server_port}"
        said = " ".join(net.refused(tailscale_login_server=url, tailscale_join_timeout=15).split())
    finally:
        server.shutdown()
        server.server_close()
    assert f"the certificate of {url} is not valid at the time that this box believes it is, 20" in said
    assert "set its clock (timedatectl)" in said


def test_checks_pass_and_see_what_is_wrong(net: Tailnet) -> None:
    assert JOIN in net.changes()
    inventory = net.inventory()
    assert net.box.run("boxwright", "verify", "-k", "tailscale", inventory=inventory).expect().code == 0
    net.box.sh("tailscale serve --http=80 off")
    said = net.box.run("boxwright", "verify", "-k", "tailscale", inventory=inventory).expect(1).text
    assert "Tailscale serves what is declared" in said


def test_switched_off_it_serves_nothing_and_stays_in_the_tailnet(net: Tailnet) -> None:
    assert net.changes(tailscale_enabled=False) == ["tailscale: serve nothing"]
    assert net.served == {}
    assert net.status["BackendState"] == "Running"
    assert net.changes(tailscale_enabled=False) == []
    assert net.changes() == [SERVING]


def test_removal_leaves_the_tailnet_and_nothing_on_the_box(net: Tailnet) -> None:
    box, inventory = net.box, net.inventory()
    done = box.run("boxwright", "remove", "--json", "--purge", inventory=inventory).expect()
    changed = done.json["hosts"][box.host]["changed"]
    assert [name for name in changed if name.startswith("tailscale: ")] == [
        "tailscale: serve nothing",
        "tailscale: leave the tailnet",
        "tailscale: remove the note",
        "tailscale: remove the program",
        "tailscale: remove the package repository",
    ]
    # Headscale keeps a node that has left, and knows that it has.
    eventually("the tailnet knows that it has left", lambda: not net.control.nodes()["llm"].get("online"), 30)
    assert net.control.nodes()["llm"]["expiry"]["seconds"] > 0
    left = made_of(box) - net.before
    assert [line for line in left if "tailscale" in line] == []
    assert not box.succeeds("ls -d /var/lib/tailscale /run/tailscale /usr/sbin/tailscaled /etc/apt/*/*tailscale*")
    again = box.run("boxwright", "remove", "--json", "--purge", inventory=inventory).expect()
    assert again.json["hosts"][box.host]["changed"] == []
