"""A whole Mac from nothing: a double of one (tests/doubles/macos) to which boxwright comes over SSH, as to any other.

Real are the gateway, the engine with its model, and the programs that watch over them, as they are made for Linux; the
double is what is around them: launchd, accounts, Homebrew, lsof. Cloudflare is the double that a Linux box has, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import mac_mirror
import pytest
from kit import Lab, eventually
from ports import open_ports
from streams import texts
from studio import PORT, QUESTION, TOKEN, TUNNEL_SECRET, Studio, tunnel_formulae

from tests.doubles.macos import MacDouble

pytestmark = pytest.mark.lab

CADDYFILE = "/etc/boxwright/caddy/Caddyfile"
SERVICES = ("caddy", "llamacpp", "boxwright-watchdog", "boxwright-cloudflared")


@pytest.fixture(scope="module")
def studio(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A Mac on which everything was set up once."""
    url = mac_mirror.address()
    with MacDouble(name="studio", full_disk_access=True, throttle=1) as mac:
        for formula in tunnel_formulae(tmp_path_factory.mktemp("formulae")):
            mac.formula(*formula)
        made = Studio(lab, mac, url)
        changed = made.apply()
        assert {name.partition(":")[0] for name in changed} == {
            "host",
            "power",
            "inference",
            "llamacpp",
            "gateway",
            "cloudflared",
        }
        yield made


def test_it_answers_whoever_has_a_token_and_nobody_else(studio: Studio) -> None:
    assert studio.answers()
    assert studio.http("GET", "v1/models", "another-token-0123456789").status_code == 401
    for path in ("metrics", "slots", "health"):
        assert "llama" not in studio.http("GET", path, TOKEN).text.lower()
    # A browser asks before it has a token; no page was declared.
    preflight = studio.http("OPTIONS", "v1/models")
    assert preflight.status_code == 401


def test_a_stream_arrives_in_pieces(studio: Studio) -> None:
    with studio.http("POST", "v1/chat/completions", TOKEN, json={**QUESTION, "stream": True}, stream=True) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        pieces = list(texts(line.decode() for line in answer.iter_lines(chunk_size=1)))
    assert len([piece for piece in pieces if piece]) > 3


def test_only_what_is_declared_can_be_reached(studio: Studio) -> None:
    assert open_ports(studio.mac.address) == {22, PORT}


def test_services_are_not_root_and_hold_no_secret_in_sight(studio: Studio) -> None:
    for service in SERVICES:
        # The watchdog restarts others.
        root = service == "boxwright-watchdog"
        assert studio.owner(service) == ("root" if root else f"_{service.removeprefix('boxwright-')}")
    seen = studio.mac.as_user(
        "ps -axwwo command=; cat /Library/LaunchDaemons/boxwright.*.plist; "
        "cat /etc/boxwright/caddy/* /etc/boxwright/cloudflared/* /var/log/boxwright/*/* /var/log/caddy/*"
    )
    for secret in (TOKEN, TUNNEL_SECRET):
        assert secret not in "".join(map(str, seen))
    assert TUNNEL_SECRET in studio.mac.sh("cat /etc/boxwright/cloudflared/credentials.json")


def test_verify_says_so_too(studio: Studio) -> None:
    done = studio.run("verify", "--json")
    found = json.loads(done.out)
    for role in ("gateway", "cloudflared", "power"):
        checks = [check for check in found["checks"] if check["role"] == role]
        assert [check for check in checks if check["outcome"] not in ("ok", "skipped")] == []
        assert [check for check in checks if check["outcome"] == "ok"]


def test_a_second_run_changes_nothing(studio: Studio) -> None:
    assert studio.apply() == []


def test_what_was_edited_is_put_back_without_cutting_a_stream(studio: Studio) -> None:
    caddy, engine_pid = studio.pid("caddy"), studio.pid("llamacpp")
    studio.mac.sh(f"echo '# mine' >>{CADDYFILE}; chmod 0644 {CADDYFILE}")
    # What is loaded is what is there again.
    assert studio.apply() == ["gateway: write the Caddyfile"]
    assert "# mine" not in studio.mac.sh(f"cat {CADDYFILE}")
    assert studio.mac.sh(f"stat -f '%Su %Sg %Lp' {CADDYFILE}").split() == ["root", "_caddy", "640"]
    assert (studio.pid("caddy"), studio.pid("llamacpp")) == (caddy, engine_pid)
    assert studio.apply() == []


def test_a_configuration_that_cannot_be_is_refused_before_it_is_there(studio: Studio) -> None:
    before = studio.mac.sh(f"cat {CADDYFILE}")
    studio.inventory = studio.mac.inventory(**{**studio.variables, "gateway_bind": ["127.0.0.1"], "gateway_port": 443})
    refused = studio.run("apply").expect(2)
    assert "BW027" in refused.err
    assert "below 1024" in refused.err
    studio.inventory = studio.mac.inventory(**studio.variables)
    assert studio.mac.sh(f"cat {CADDYFILE}") == before


def test_what_is_killed_comes_back_by_itself(studio: Studio) -> None:
    for service in SERVICES:
        studio.kill(service)
    eventually("everything answers", studio.answers, 120)
    studio.settle()


def test_after_a_power_cut_everything_answers_again(studio: Studio) -> None:
    studio.mac.power_cut()
    eventually("everything answers", studio.answers, 180)
    assert all(studio.pid(service) for service in SERVICES)
    eventually("the tunnel stands", lambda: studio.mac.sh("curl -s http://127.0.0.1:20241/ready").startswith("{"), 60)
    studio.settle()


def test_it_can_be_taken_away(studio: Studio) -> None:
    """Last: nothing of it is left but data, and then not even that."""
    assert studio.changes("remove")
    assert studio.mac.sh("ls /Library/LaunchDaemons; ls /opt; ls /etc/boxwright 2>/dev/null").split() == ["homebrew"]
    # What stays is root's: the next account gets the numbers of those that went.
    owners = studio.mac.sh("find /var/lib/boxwright /var/log/caddy -exec stat -f %Su {} + | sort -u").split()
    assert owners == ["root"]
    assert studio.mac.sh("/usr/bin/dscl . -list /Users | grep -e caddy -e llamacpp -e cloudflared") == ""
    assert studio.changes("remove") == []
    studio.run("remove", "--purge").expect()
    assert studio.mac.sh("ls -d /var/lib/boxwright /var/log/caddy /var/log/boxwright 2>/dev/null") == ""
    assert open_ports(studio.mac.address) == {22}
    assert studio.mac.strays() == []
