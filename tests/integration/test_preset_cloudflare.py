"""The preset ubuntu-gateway-cloudflare, whole, as it stands: an API on the internet through Cloudflare Tunnel.

The engine, the API service, PostgreSQL, Valkey or Redis, the gateway, systemd and apt are real; cloudflared and
Cloudflare are the double of tests/doubles/cloudflared.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cloudflare_mirror import in_mirror
from kit import MODEL_ENTRY, Box, Lab, eventually
from ports import open_ports

pytestmark = pytest.mark.lab

PRESET = "ubuntu-gateway-cloudflare"
NAME = "llm.example.com"
TUNNEL = "6ff42ae2-765d-4adf-8112-31c55c1551ef"
SECRET = base64.b64encode(b"of the tunnel of the tests 12345").decode()
CREDENTIALS = json.dumps({"AccountTag": "account", "TunnelSecret": SECRET, "TunnelID": TUNNEL})
PRODUCTION, DEVELOPMENT = "boxwright-api-production", "boxwright-api-development"
SERVICES = ("caddy", "llamacpp", "boxwright-cloudflared", "boxwright-postgresql", "boxwright-redis", PRODUCTION)
ROLES = {"host", "inference", "llamacpp", "postgresql", "redis", "api", "gateway", "cloudflared"}
QUESTION = {"model": "local-llm", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}


@pytest.fixture(scope="module")
def box(lab: Lab) -> Box:
    """A box of that preset, set up once."""
    made = lab.up("cloudflare", None, "--preset", PRESET)
    assert {name.partition(":")[0] for name in made.changes(inventory(made))} == ROLES
    return made


def inventory(box: Box, **more: Any) -> Path:
    """The preset, and all that is set otherwise: whose tunnel it is, its name, and who signs the package. A lab has no
    tunnel, and one model without the preset's ten places.
    """
    changed = {
        "gateway_names": [NAME],
        "gateway_bind": None,
        "cloudflared_enabled": True,
        "cloudflared_credentials": CREDENTIALS,
        "inference_models": [{**MODEL_ENTRY, "parallel": 10}],
        **in_mirror(),
    }
    path = box.with_variables("cloudflare", **{**changed, **more})
    shutil.copytree(box.inventory.parent / "group_vars", path.parent / "group_vars", dirs_exist_ok=True)
    return path


def key(box: Box, owner: str, *options: str) -> str:
    """A new key, as the operator makes one."""
    return box.run("boxwright", "key", "add", owner, *options, inventory=inventory(box)).expect().out.strip()


def curl(box: Box, secret: str, body: Any, name: str, rest: str) -> str:
    """What curl on the box prints, which asks Cloudflare as somebody on the internet does."""
    given = {"Host": name, "X-Double-Client": "198.51.100.23", "Content-Type": "application/json"}
    given |= {"Authorization": f"Bearer {secret}"} if secret else {}
    options = " ".join(f"--header '{header}: {value}'" for header, value in given.items())
    options += f" --data '{json.dumps(body)}'" if body else ""
    return box.sh(f"curl --silent {options} {rest}", check=False)


def asked(box: Box, path: str, secret: str = "", body: Any = None, name: str = NAME) -> tuple[int, str]:
    """What somebody on the internet gets: the status, and the answer."""
    rest = f"--max-time 60 --write-out '\\n%{{http_code}}' http://127.0.0.1:20240/{path}"
    said = curl(box, secret, body, name, rest)
    text, _, code = said.rpartition("\n")
    return int(code), text


def asked_together(box: Box, secret: str, body: Any, count: int, at_once: int) -> list[tuple[int, str]]:
    """What somebody gets who asks the model `count` times, `at_once` at a time: statuses and answers."""
    box.sh("rm -rf /root/answers; mkdir /root/answers")
    url = f"--output '/root/answers/#1' 'http://127.0.0.1:20240/v1/chat/completions?[1-{count}]'"
    at_a_time = f"--max-time 300 --parallel --parallel-immediate --parallel-max {at_once}"
    codes = curl(box, secret, body, NAME, f"{at_a_time} --write-out '%{{http_code}} %{{filename_effective}}\\n' {url}")
    return [(int(code), box.sh(f"cat {file}")) for code, file in map(str.split, codes.splitlines())]


def answers(box: Box, secret: str) -> bool:
    """Whether the model answers who has a key, from the internet, and nobody else."""
    chat = "v1/chat/completions"
    return asked(box, chat, body=QUESTION)[0] == 401 and asked(box, chat, secret, QUESTION)[0] == 200


def test_who_has_a_key_is_answered_and_nobody_else(box: Box) -> None:
    secret = key(box, "somebody")
    status, text = asked(box, "v1/chat/completions", secret, QUESTION)
    assert status == 200, text
    assert json.loads(text)["usage"]["completion_tokens"]
    for wrong in ("", f"{secret}x", f"bw_AAAAAAAA_{'A' * 43}"):
        status, text = asked(box, "v1/models", wrong)
        assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
    # Pieces of an answer that is streamed, to its end.
    _, text = asked(box, "v1/chat/completions", secret, {**QUESTION, "stream": True})
    assert text.count("data: ") > 3
    assert text.rstrip().endswith("data: [DONE]")


def test_administration_and_other_names_are_not_on_the_internet(box: Box) -> None:
    secret = box.secrets["api_admin_secret"]
    for path in ("admin/keys", "v1/../admin/keys", "metrics", "docs", "openapi.json", "health", "props"):
        status, text = asked(box, path, secret)
        assert status in (401, 404), path
        assert "owner" not in text
    assert asked(box, "v1/models", key(box, "elsewhere"), name="other.example.com")[0] == 404


def test_nothing_but_ssh_can_be_reached(box: Box) -> None:
    assert open_ports(box.address) == {22}


def test_limits_are_told_in_the_words_of_openai(box: Box) -> None:
    """More at once than have a place, and more in a minute than a key has."""
    secret = key(box, "many", "--requests-per-minute", "1000")
    found = asked_together(box, secret, {**QUESTION, "max_tokens": 60}, 24, 24)
    codes = [status for status, _ in found]
    assert set(codes) == {200, 429}, {text for status, text in found if status not in (200, 429)}
    assert codes.count(200) >= 10
    refused = {json.loads(text)["error"]["code"] for status, text in found if status == 429}
    assert refused == {"chat_concurrency_limit"}
    # As the preset declares for keys that have no limit of their own.
    found = asked_together(box, key(box, "often"), {**QUESTION, "max_tokens": 1}, 64, 8)
    assert [status for status, _ in found].count(429) >= 3
    assert {json.loads(text)["error"]["code"] for status, text in found if status == 429} == {"rate_limit_exceeded"}


def test_an_experiment_is_not_reached_by_the_tunnel(box: Box) -> None:
    secret = key(box, "experimenter", "--development")
    assert asked(box, "v1/models", secret)[0] == 401
    assert box.pid(DEVELOPMENT) not in (0, box.pid(PRODUCTION))
    assert "8010" not in box.sh("cat /etc/boxwright/cloudflared/config.yml /etc/boxwright/caddy/Caddyfile")


def test_no_secret_is_seen_by_others(box: Box) -> None:
    told = box.sh("ps -eww -o args=; journalctl --no-pager --output cat; cat /var/log/caddy/*", check=False)
    told += box.sh("runuser -u nobody -- sh -c 'cat /etc/boxwright/* /etc/boxwright/*/* 2>/dev/null'", check=False)
    assert "boxwright-cloudflared" in told
    for secret in (SECRET, *(value for name, value in box.secrets.items() if name.startswith(("api_", "redis_")))):
        assert secret not in told


def test_the_checks_of_the_roles_hold(box: Box) -> None:
    """Nobody outside reaches the gateway directly, so what is asked from outside is asked through the tunnel above."""
    found = box.run("boxwright", "verify", "--json", inventory=inventory(box)).json["checks"]
    assert [check for check in found if check["outcome"] not in ("ok", "skipped")] == []
    assert {check["role"] for check in found if check["outcome"] == "ok"} >= ROLES - {"host"}


def test_what_was_changed_by_hand_is_put_right_and_nothing_else(box: Box) -> None:
    before = [box.pid(service) for service in SERVICES]
    assert box.changes(inventory(box)) == []
    box.sh("chmod 0644 /etc/boxwright/cloudflared/credentials.json; echo '# mine' >>/etc/boxwright/caddy/Caddyfile")
    assert box.changes(inventory(box)) == ["gateway: write the Caddyfile", "cloudflared: write the credentials"]
    assert [box.pid(service) for service in SERVICES] == before


def test_killed_and_restarted_it_comes_back(box: Box) -> None:
    secret = key(box, "early")
    before = {service: box.pid(service) for service in SERVICES}
    assert all(before.values())
    box.sh(f"kill -9 {' '.join(map(str, before.values()))}")
    for service, process in before.items():
        eventually(
            f"{service} runs again", lambda service=service, process=process: box.restarted(service, process), 120
        )
    eventually("it answers", lambda: answers(box, secret), 120)
    box.container.restart(timeout=60)
    eventually("it answers after a restart of the box", lambda: answers(box, secret), 300)
    eventually("all is started", lambda: box.succeeds(f"systemctl is-active --quiet {' '.join(SERVICES)}"), 120)
    assert box.changes(inventory(box)) == []


def test_it_can_be_taken_away(box: Box) -> None:
    """Last: nothing of it is left, nor is anything to be taken away a second time."""
    words = ("boxwright", "remove", "--purge", "--json")
    assert box.run(*words, inventory=inventory(box)).expect().json["hosts"][box.host]["changed"]
    assert not box.succeeds("ls -d /etc/boxwright /opt/boxwright /var/lib/boxwright /usr/bin/cloudflared")
    listening = {line.split()[3].rpartition(":")[::2] for line in box.sh("ss -Hltn").splitlines()}
    # The container engine's own name server is at 127.0.0.11.
    assert {port for address, port in listening if address != "127.0.0.11"} == {"22"}
    assert box.run(*words, inventory=inventory(box)).expect().json["hosts"][box.host]["changed"] == []
