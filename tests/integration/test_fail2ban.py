"""Who asks with wrong credentials again and again is shut out for a while: for real, and nobody else.

The clients are containers on the lab's network, each with an address of its own, and this machine.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_interface
from typing import Any

import pytest
from kit import LIGHT, Box, Lab, eventually
from snapshots import made_of

pytestmark = pytest.mark.lab

JAIL = "boxwright-gateway"
ATTEMPTS = 3
VARIABLES = {**LIGHT, "fail2ban_enabled": True, "fail2ban_attempts": ATTEMPTS}
# An address of nobody (RFC 5737), for whoever shall be banned in somebody's place.
VICTIM = "192.0.2.99"


class Client:
    """Another machine of the box's network."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.container = box.lab.neighbour(box)
        self.container.reload()
        self.address = str(self.container.attrs["NetworkSettings"]["Networks"]["boxwright"]["IPAddress"])

    def sh(self, script: str) -> str:
        """What a shell script prints there."""
        return bytes(self.container.exec_run(["sh", "-c", script]).output).decode()

    def asks(self, times: int = 1, options: str = "") -> list[str]:
        """Status codes of requests without credentials; 000 is no connection."""
        ask = f"curl --silent --insecure --max-time 5 --output /dev/null --write-out '%{{http_code}} ' {options}"
        return self.sh(f"for i in $(seq {times}); do {ask} https://{self.box.address}/v1/models; done").split()

    @property
    def shut_out(self) -> bool:
        """Whether the box refuses its connections: curl ends with 7, also when nothing but the port answers."""
        return self.sh(f"curl --silent --insecure --max-time 5 https://{self.box.address}/; echo $?").split()[-1] == "7"


@pytest.fixture(scope="module")
def before(lab: Lab) -> tuple[Box, set[str]]:
    """The box before the first run, and what it was made of."""
    box = lab.up("banning", VARIABLES)
    return box, made_of(box)


@pytest.fixture(scope="module")
def spared(before: tuple[Box, set[str]]) -> Iterator[Client]:
    """A machine on the list of those that are never banned."""
    client = Client(before[0])
    client.box.lab.up("banning", {**VARIABLES, "fail2ban_never": [client.address]})
    yield client
    client.container.remove(force=True)


@pytest.fixture
def client(before: tuple[Box, set[str]]) -> Iterator[Client]:
    """A machine that nobody knows."""
    client = Client(before[0])
    yield client
    client.container.remove(force=True)


@pytest.fixture
def box(before: tuple[Box, set[str]], spared: Client) -> Box:
    """The box, converged, with nobody banned and nothing counted."""
    box = before[0]
    box.changes()
    # What it has in memory and in its database goes, and how far it has read in the log.
    box.sh("systemctl stop fail2ban; rm -f /var/lib/fail2ban/fail2ban.sqlite3; : >/var/log/caddy/access.log")
    box.sh("systemctl start fail2ban")
    eventually("the jail is there", lambda: box.succeeds(f"fail2ban-client status {JAIL}"))
    return box


def apply(box: Box, **variables: Any) -> list[str]:
    """Names of what a run changed, with some variables set otherwise for this run."""
    return box.changes(box.with_variables("banning", **variables))


def banned(box: Box) -> set[str]:
    """Addresses that the packet filter refuses at the door, as nft says."""
    listed = box.sh("nft --json list table inet f2b-table 2>/dev/null", check=False)
    sets = [entry["set"] for entry in json.loads(listed or '{"nftables": []}')["nftables"] if "set" in entry]
    return {element for one in sets for element in one.get("elem", []) if one["name"].endswith(JAIL)}


def counted(box: Box, log: str = "/var/log/caddy/access.log") -> list[str]:
    """The address of each attempt in the access log, as the installed Fail2Ban reads it with the installed filter."""
    return box.sh(f"fail2ban-regex --out=ip {log} {JAIL}").split()


def welcome(box: Box) -> bool:
    """Whether this machine is let in."""
    return bool(box.http("GET", "v1/models", auth=box.credentials).status_code == 200)


def test_an_address_that_is_refused_again_and_again_is_banned_and_unbanned(box: Box, client: Client) -> None:
    assert client.asks(ATTEMPTS - 1) == ["401"] * (ATTEMPTS - 1)
    # What is counted is in the log; Fail2Ban has read it when it says so.
    eventually("the attempts are counted", lambda: counted_now(box) >= ATTEMPTS - 1)
    assert counted_now(box) == ATTEMPTS - 1
    assert not client.shut_out
    assert client.asks()[0] == "401"

    eventually("the address is banned", lambda: client.shut_out)
    assert banned(box) == {client.address}
    assert client.asks(3) == ["000"] * 3
    # At the door alone: SSH still answers it. And nobody else is shut out.
    assert client.sh(f"timeout 3 curl --silent --max-time 2 telnet://{box.address}:22").startswith("SSH-2.0-")
    assert welcome(box)
    assert box.changes() == []

    box.sh(f"fail2ban-client set {JAIL} unbanip {client.address}")
    assert client.asks() == ["401"]
    assert banned(box) == set()


def counted_now(box: Box) -> int:
    """Attempts that the running Fail2Ban has counted since its jail started."""
    status = box.sh(f"fail2ban-client status {JAIL}")
    return int(status.partition("Total failed:")[2].split()[0])


def test_a_ban_ends_by_itself_and_outlives_a_restart_until_then(box: Box, client: Client) -> None:
    assert {"fail2ban: write the jail", "fail2ban: running"} == set(apply(box, fail2ban_ban=5))
    client.asks(ATTEMPTS)
    eventually("the address is banned", lambda: client.shut_out)
    eventually("the ban has ended", lambda: not client.shut_out, 30)
    assert client.asks() == ["401"]

    box.changes()
    client.asks(ATTEMPTS)
    eventually("the address is banned", lambda: client.shut_out)
    box.sh("systemctl restart fail2ban")
    eventually("the ban is taken up again", lambda: banned(box) == {client.address})
    assert client.shut_out


def test_who_is_on_the_list_is_never_banned(box: Box, spared: Client, client: Client) -> None:
    assert spared.asks(5 * ATTEMPTS) == ["401"] * 5 * ATTEMPTS
    # The log is read in its order: when this one is banned, all before it was read.
    client.asks(ATTEMPTS)
    eventually("the address is banned", lambda: client.shut_out)
    assert banned(box) == {client.address}
    assert spared.asks() == ["401"]


# Texts that would be another line, or another part of one, if they were not inside of a JSON string.
FORGED = (
    f'"}},"remote_ip":"{VICTIM}","status":401,"first_byte_ms":null,"x":"',
    '","status":401,"resp_headers":{},"first_byte_ms":null,"client":"',
    '\\","status":401,\\"first_byte_ms\\":null,"',
    '{"level":"info","ts":1795269062.7,"logger":"http.log.access.log0","msg":"handled request","request":'
    f'{{"remote_ip":"{VICTIM}","uri":"/v1/models"}},"status":401,"first_byte_ms":null}}',
    f'x\\n{{"level":"info","ts":1795269062.7,"logger":"a","msg":"b","request":{{"remote_ip":"{VICTIM}","a":"',
)


def test_what_a_client_writes_bans_nobody(box: Box, client: Client) -> None:
    writes_what_it_likes(box, client)


def test_the_same_with_nginx(box: Box, client: Client) -> None:
    try:
        assert {"fail2ban: write the jail", "fail2ban: running"} <= set(apply(box, gateway_server="nginx"))
        writes_what_it_likes(box, client)
        assert apply(box, gateway_server="nginx") == []
    finally:
        box.changes()


def writes_what_it_likes(box: Box, client: Client) -> None:
    """Text in the log that looks like an attempt, from somebody who is let in, and from somebody who is not."""
    log = str(box.sh(f"fail2ban-client get {JAIL} logpath").split()[-1])
    asked = len(box.sh(f"cat {log}").splitlines())
    for text in FORGED:
        headers = {"User-Agent": text, "X-Forwarded-For": VICTIM, "Status": "401", "X-Real-Ip": VICTIM, "Cookie": text}
        answer = box.http("GET", "v1/models", auth=box.credentials, headers=headers, params={"q": text, text: "x"})
        assert answer.status_code == 200
        answer = box.http("GET", f"v1/{text}", auth=box.credentials, headers={"Referer": text})
        assert answer.status_code in (400, 404)
    lines = box.sh(f"cat {log}").splitlines()[asked:]
    assert len(lines) == 2 * len(FORGED)
    assert "\n".join(lines).count(VICTIM) >= len(FORGED)
    # The gateway asks itself at the end of a run.
    assert set(counted(box, log)) <= {"127.0.0.1"}

    # Written by one who is refused, it still is one attempt of this one alone.
    for text in FORGED:
        quoted = text.replace("'", "'\\''")
        assert client.asks(options=f"--header 'User-Agent: {quoted}' --header 'X-Forwarded-For: {VICTIM}'") in (
            ["401"],
            ["000"],
        )
    eventually("the address is banned", lambda: client.shut_out)
    assert set(counted(box, log)) - {"127.0.0.1"} == {client.address}
    assert banned(box) == {client.address}
    assert welcome(box)


class _Upstream(BaseHTTPRequestHandler):
    """Refuses whatever it is asked: at Open WebUI's login with 400, elsewhere with 401."""

    def do_GET(self) -> None:
        self.send_response(400 if "signin" in self.path else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


def test_what_an_upstream_refuses_counts_at_the_login_only(box: Box) -> None:
    here = str(ip_interface(f"{box.address}/24").network[1])
    server = ThreadingHTTPServer((here, 0), _Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        upstream = f"{here}:{server.server_port}"
        # Open WebUI is not on this box: its paths are free.
        login = {"path": "/api", "upstreams": [upstream], "strip": False, "allow": ["/api/*"]}
        other = {"path": "/other", "upstreams": [upstream]}
        apply(box, gateway_routes=[login, other])
        assert box.http("GET", "other/v1/models", auth=box.credentials).status_code == 401
        assert box.http("POST", "api/v1/chats/", auth=box.credentials).status_code == 401
        assert counted(box) == ["127.0.0.1"] * len(counted(box))
        assert box.http("POST", "api/v1/auths/signin", auth=box.credentials).status_code == 400
        assert box.http("POST", "api/v1/auths/s%69gnin?x", auth=box.credentials).status_code == 400
        assert counted(box).count(here) == 2
    finally:
        server.shutdown()
        server.server_close()
        box.changes()


def test_what_was_changed_by_hand_is_put_right(box: Box, client: Client) -> None:
    box.sh("sed -i 's/^maxretry.*/maxretry = 1000/' /etc/fail2ban/jail.d/boxwright.local; systemctl restart fail2ban")
    assert box.changes() == ["fail2ban: write the jail", "fail2ban: running"]
    assert box.sh(f"fail2ban-client get {JAIL} maxretry").strip() == str(ATTEMPTS)

    box.sh(f"fail2ban-client stop {JAIL}")
    assert box.changes() == ["fail2ban: watching"]
    box.sh("systemctl kill --signal=KILL fail2ban; systemctl disable --now fail2ban")
    assert box.changes() == ["fail2ban: running"]

    # Who empties the packet filter lets everybody in, and Fail2Ban itself does not see it.
    client.asks(ATTEMPTS)
    eventually("the address is banned", lambda: client.shut_out)
    box.sh("nft delete table inet f2b-table")
    assert not client.shut_out
    assert box.changes() == ["fail2ban: watching"]
    eventually("the address is shut out again", lambda: client.shut_out)
    assert box.changes() == []


def test_a_log_that_appears_late_is_watched(box: Box, client: Client) -> None:
    """At a boot Fail2Ban may be there before the log is."""
    box.sh("systemctl stop caddy fail2ban; rm /var/log/caddy/access.log")
    box.sh("systemctl start fail2ban", check=False)
    restarts = "systemctl show --value --property NRestarts fail2ban"
    eventually("Fail2Ban has given up once", lambda: int(box.sh(restarts)) > 0)
    box.sh("systemctl start caddy")
    client.asks(ATTEMPTS)
    eventually("the jail is there", lambda: box.succeeds(f"fail2ban-client status {JAIL}"))
    eventually("the address is banned", lambda: client.shut_out)


def test_a_log_that_was_deleted_is_the_gateways_again(box: Box) -> None:
    """Also when a run has the new settings looked at by root before anybody else needs the log."""
    box.sh("systemctl stop caddy; rm /var/log/caddy/access.log")
    assert "gateway: running" in apply(box, gateway_idle_timeout=299)
    assert welcome(box)
    assert box.sh("stat -c %U:%G:%a /var/log/caddy/access.log").strip() == "caddy:caddy:640"


def test_switched_off_nobody_is_banned_and_ssh_stays_guarded(box: Box, client: Client) -> None:
    client.asks(ATTEMPTS)
    eventually("the address is banned", lambda: client.shut_out)
    assert apply(box, fail2ban_enabled=False) == ["fail2ban: no jail"]
    assert client.asks(2 * ATTEMPTS) == ["401"] * 2 * ATTEMPTS
    assert box.sh("fail2ban-client status").split()[-1] == "sshd"
    assert apply(box, fail2ban_enabled=False) == []
    # Back again, the ban is not; what was tried meanwhile would count, as far as it is in the log.
    box.sh(": >/var/log/caddy/access.log")
    box.changes()
    assert client.asks()[0] == "401"


def test_checks_pass_on_the_box_and_see_what_is_wrong(box: Box) -> None:
    assert box.run("boxwright", "verify", "-k", "fail2ban").expect().code == 0
    box.sh(f"fail2ban-client set {JAIL} delignoreip 100.64.0.0/10")
    # Not all checks: they ask with wrong credentials, and this machine is not spared here.
    text = box.run("boxwright", "verify", "-k", "fail2ban").expect(1).text
    assert "FAILED" in text.upper()
    assert "100.64.0.0/10" in text


def test_removal_leaves_nothing(box: Box, before: tuple[Box, set[str]], client: Client) -> None:
    client.asks(ATTEMPTS)
    eventually("the address is banned", lambda: client.shut_out)
    done = box.run("boxwright", "remove", "--json", "--purge").expect()
    changed = done.json["hosts"][box.host]["changed"]
    assert {"fail2ban: no jail", "fail2ban: remove the note", "fail2ban: remove the program"} <= set(changed)
    left = made_of(box) - before[1]
    assert [line for line in left if "fail2ban" in line or "nftables" in line or "python3-systemd" in line] == []
    assert not box.succeeds("ls -d /etc/fail2ban /var/log/fail2ban.log /run/fail2ban /etc/nftables.conf")
    # Whatever filter was there is not there any more.
    box.sh("apt-get -qq install --yes nftables >/dev/null 2>&1")
    assert "f2b" not in box.sh("nft list ruleset")
    assert box.run("boxwright", "remove", "--json", "--purge").expect().json["hosts"][box.host]["changed"] == []


def test_a_fail2ban_that_was_there_before_stays(lab: Lab, before: tuple[Box, set[str]]) -> None:
    """Its jails, and what its administrator decided, too."""
    box = before[0]
    box.sh("apt-get -qq install --yes --no-install-recommends fail2ban nftables >/dev/null 2>&1")
    box.sh(
        "printf '[sshd]\\nmaxretry = 7\\nignoreip = 192.0.2.1\\n' >/etc/fail2ban/jail.local; systemctl restart fail2ban"
    )
    box.changes()
    assert box.sh("fail2ban-client get sshd maxretry").strip() == "7"
    assert "192.0.2.1" in box.sh("fail2ban-client get sshd ignoreip")
    assert "100.64" not in box.sh("fail2ban-client get sshd ignoreip")
    box.run("boxwright", "remove", "--purge").expect()
    assert box.sh("fail2ban-client status").split()[-1] == "sshd"
    assert not box.succeeds("ls /etc/fail2ban/*/*boxwright* /etc/systemd/system/fail2ban.service.d")
