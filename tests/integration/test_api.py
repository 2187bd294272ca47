"""The API service on a box, with everything real: engine, gateway, keys, databases; broken, restarted and removed."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import LIGHT, MODEL_ENTRY, REMOVE, Box, Lab, eventually, operations
from qdrant_mirror import in_mirror

from boxwright.lab import ollama
from boxwright.lab.mirror import mirror_dir
from boxwright.lab.progress import Progress

pytestmark = pytest.mark.lab

SMALL: dict[str, Any] = {**LIGHT, "api_enabled": True, "gateway_auth": "keys", "gateway_server": "nginx"}
LARGE: dict[str, Any] = {
    **LIGHT,
    "api_enabled": True,
    "api_store": "full",
    "api_development": True,
    "gateway_auth": "keys",
    # The lab has one model for both.
    "inference_models": [MODEL_ENTRY, {**MODEL_ENTRY, "name": "embedder", "kind": "embedding", "context": 256}],
    "api_retrieval_model": "embedder",
}
PRODUCTION, DEVELOPMENT = "boxwright-api-production", "boxwright-api-development"
QUESTION = {"model": "local-llm", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
WRONG = f"bw_AAAAAAAA_{'A' * 43}"


@pytest.fixture(scope="module")
def _small(lab: Lab) -> Box:
    return lab.up("api-small", SMALL)


@pytest.fixture(scope="module")
def _large(lab: Lab) -> Box:
    return lab.up("api-large", {**LARGE, **in_mirror()})


@pytest.fixture
def small(_small: Box) -> Box:
    """SQLite and limits in the process, nginx in front."""
    _small.settle()
    return _small


@pytest.fixture
def large(_large: Box) -> Box:
    """PostgreSQL, Redis, Qdrant (a double), two workers, Caddy in front; a second instance beside it."""
    _large.settle()
    return _large


@pytest.fixture(params=["small", "large"])
def box(request: pytest.FixtureRequest) -> Box:
    """Each of them."""
    found: Box = request.getfixturevalue(request.param)
    return found


def admin(box: Box, method: str, path: str, body: Any = None, port: int = 8000) -> Any:
    """What /admin answers on the box itself, whose own root reads the secret."""
    which = {8000: "production", 8010: "development"}[port]
    text = (
        f'printf \'header = "Authorization: Bearer %s"\' "$(cat /etc/boxwright/api/{which}/admin_secret)" | '
        f"curl --config - --silent --show-error --fail-with-body --noproxy '*' --request {method} "
        f"--header 'Content-Type: application/json' --data '{json.dumps(body or {})}' http://127.0.0.1:{port}{path}"
    )
    return json.loads(box.sh(text))


def made(box: Box, owner: str = "tester", port: int = 8000, **more: Any) -> str:
    """A new key."""
    return str(admin(box, "POST", "/admin/keys", {"owner": owner, **more}, port)["key"])


def ask(box: Box, key: str, path: str = "v1/chat/completions", body: Any = None, **more: Any) -> Any:
    """An answer to this machine, with a key."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return box.http("GET" if path == "v1/models" else "POST", path, headers=headers, json=body or QUESTION, **more)


def usage(box: Box, owner: str) -> int:
    """Requests that are in the usage log for a key's owner."""
    rows = admin(box, "GET", "/admin/usage?span=month")
    rows = rows["data"] if isinstance(rows, dict) else rows
    ids = {key["id"] for key in keys(box) if key["owner"] == owner}
    return sum(int(row["requests"]) for row in rows if row.get("key_id") in ids)


def keys(box: Box, port: int = 8000) -> list[dict[str, Any]]:
    """All keys."""
    found = admin(box, "GET", "/admin/keys", port=port)
    return list(found["data"] if isinstance(found, dict) else found)


def ready(box: Box, port: int = 8000) -> bool:
    """Whether the service says so on the box."""
    return box.succeeds(f"curl --silent --fail --noproxy '*' http://127.0.0.1:{port}/api/v1/ready")


# What clients get


def test_a_second_run_changes_nothing(box: Box) -> None:
    box.expect_settled()


def test_a_key_opens_the_model_and_nothing_else_does(box: Box) -> None:
    key = made(box)
    for path in ("v1/models", "v1/chat/completions"):
        for wrong in ("", WRONG, f"{key}x"):
            answer = ask(box, wrong, path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
    # Neither what the gateway itself would know.
    assert box.http("GET", "v1/models", auth=("boxwright", box.secrets["gateway_password"])).status_code == 401
    offered = {model["id"] for model in ask(box, key, "v1/models").json()["data"]}
    assert offered == {model["name"] for model in box.variables.get("inference_models", [MODEL_ENTRY])}
    answer = ask(box, key)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"]
    eventually("it is in the usage log", lambda: usage(box, "tester") >= 1)


def test_a_stream_comes_piece_by_piece(box: Box) -> None:
    answer = ask(box, made(box), body={**QUESTION, "max_tokens": 8, "stream": True}, stream=True)
    lines = [line for line in answer.iter_lines(decode_unicode=True) if line]
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 3


def test_administration_is_not_reached_from_outside(box: Box) -> None:
    secret = box.secrets["api_admin_secret"]
    for path in ("admin/keys", "v1/admin/keys", "v1/../admin/keys", "metrics", "docs", "openapi.json"):
        answer = box.http("GET", path, headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code in (401, 404), path
        assert "owner" not in answer.text
    # It is there for the box itself.
    assert admin(box, "GET", "/admin/keys") is not None


def test_a_revoked_key_is_refused_at_once(box: Box) -> None:
    key = made(box, "leaver")
    assert ask(box, key, "v1/models").status_code == 200
    admin(box, "POST", f"/admin/keys/{key.split('_')[1]}/revoke")
    eventually("it is refused", lambda: ask(box, key, "v1/models").status_code == 401, 10)


def test_a_limit_of_a_key(box: Box) -> None:
    key = made(box, "slow", limits={"requests_per_minute": 2})
    answers = [ask(box, key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0


def test_who_asks_is_told_to_the_service_by_the_gateway_alone(box: Box) -> None:
    """A client that writes X-Forwarded-For is not believed: it would choose what is counted for whom."""
    varied = box.with_variables("visitors", api_visitor_requests=2)
    box.settled = False
    box.apply(inventory=varied).expect()
    key = made(box, "visitor")
    found = []
    for number in range(3):
        headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": f"192.0.2.{number}"}
        found.append(box.http("POST", "v1/chat/completions", headers=headers, json=QUESTION).status_code)
    assert found == [200, 200, 429]


# An experiment


def test_an_experiment_has_keys_of_its_own(large: Box) -> None:
    key = made(large, "experimenter", port=8010)
    assert "experimenter" not in [one["owner"] for one in keys(large)]
    assert ask(large, key).status_code == 401
    before = large.pid(PRODUCTION)
    large.settled = False
    assert large.changes(large.with_variables("no-experiment", api_development=None))
    assert large.pid(PRODUCTION) == before
    assert not large.succeeds("id boxwright-api-development")
    assert large.succeeds("test -d /var/lib/boxwright/api/development")
    large.settle()
    assert "experimenter" in [one["owner"] for one in keys(large, 8010)]


def test_options_that_ollamas_v1_drops_reach_it(small: Box) -> None:
    """The service asks Ollama's own API: a real one, which the same key reaches."""
    key = made(small, "tester of Ollama")
    small.settled = False
    with Progress(io.StringIO(), plain=True) as progress:
        engine = ollama.variables(mirror_dir() / "files", {}, progress)
    small.apply(inventory=small.with_variables("ollama", inference_engine="ollama", **engine)).expect()

    def context() -> int:
        """Tokens of the model in memory; 0 without one."""
        told = json.loads(small.sh("curl -sf http://127.0.0.1:11434/api/ps"))["models"]
        return int(told[0]["context_length"]) if told else 0

    def questions() -> int:
        """How many Ollama was asked by its own API, by the service and by the watchdog."""
        return int(small.sh("journalctl -u ollama --no-pager -o cat | grep -c 'POST .*/api/chat'", check=False))

    def kept() -> bool:
        """Whether the model is still in memory as it was asked for when the watchdog has asked it, too; once not, where
        both asked at the same moment.
        """
        answer = ask(small, key, body={**QUESTION, "num_ctx": 512})
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"]
        asked = questions()
        eventually("the watchdog has asked", lambda: questions() > asked, 90)
        return context() == 512

    assert context() != 512
    eventually("the context stays what a client wanted", kept, 200)
    streamed = ask(small, key, body={**QUESTION, "max_tokens": 8, "stream": True}).text
    assert streamed.rstrip().endswith("data: [DONE]")
    assert streamed.count("data: ") > 3
    assert ask(small, key, body={**QUESTION, "keep_alive": 0}).status_code == 200
    eventually("the model is let go", lambda: context() == 0)
    eventually("all of it is in the usage log", lambda: usage(small, "tester of Ollama") >= 3)


# Passages


def passages(box: Box) -> set[str]:
    """Every collection in Qdrant, asked as the service asks."""
    text = (
        'printf \'header = "api-key: %s"\' "$(cat /etc/boxwright/api/production/retrieval_key)" | '
        "curl --config - --silent --show-error --fail --noproxy '*' http://127.0.0.1:6333/collections"
    )
    return {one["name"] for one in json.loads(box.sh(text))["result"]["collections"]}


def test_the_service_has_what_opens_qdrant(large: Box) -> None:
    assert isinstance(passages(large), set)
    told = json.loads(large.sh("cat /etc/boxwright/api/production.json"))["retrieval"]
    assert (told["url"], told["model"], told["prefix"]) == ("http://127.0.0.1:6333", "embedder", "bw-production-")
    other = json.loads(large.sh("cat /etc/boxwright/api/development.json"))["retrieval"]
    assert other["prefix"] == "bw-development-"


def test_an_answer_from_a_document(large: Box, tmp_path: Path) -> None:
    """From the operator's file to the answer outside: the real engine for both models."""
    file = tmp_path / "pump.txt"
    file.write_text("The pump is oiled each Monday.\n\nIts filter is changed in May.\n", encoding="utf-8")
    large.run("boxwright", "document", "add", "manuals", str(file)).expect()
    assert "pump.txt" in large.run("boxwright", "document", "list", "manuals").expect().out
    assert "bw-production-manuals" in passages(large)
    question = {**QUESTION, "retrieval": {"collection": "manuals"}}
    reader, other = made(large, "reader", collections=["manuals"]), made(large, "other")
    answer = ask(large, reader, body=question)
    assert (answer.status_code, answer.headers["x-boxwright-passages"]) == (200, "1"), answer.text
    with_passages, without = answer.json()["usage"]["prompt_tokens"], ask(large, reader).json()["usage"]
    assert with_passages > without["prompt_tokens"] + 10
    refused = ask(large, other, body=question)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "collection_not_allowed")
    large.sh("systemctl restart boxwright-qdrant")
    assert ask(large, reader, body=question).headers["x-boxwright-passages"] == "1"
    large.sh("systemctl stop boxwright-qdrant")
    away = ask(large, reader, body=question)
    assert (away.status_code, away.json()["error"]["code"]) == (503, "retrieval_unavailable")
    large.sh("systemctl start boxwright-qdrant")
    large.run("boxwright", "document", "remove", "manuals", "--all").expect()
    assert "bw-production-manuals" not in passages(large)


def test_without_passages_qdrant_goes_and_what_it_held_stays(large: Box) -> None:
    large.settled = False
    plain = large.with_variables("no-passages", api_retrieval_model=None)
    assert large.changes(plain)
    assert not large.succeeds("id boxwright-qdrant")
    assert not large.succeeds("test -e /etc/boxwright/api/production/retrieval_key")
    assert "retrieval" not in json.loads(large.sh("cat /etc/boxwright/api/production.json"))
    assert large.succeeds("test -d /var/lib/boxwright/qdrant/storage")
    assert ready(large)
    assert large.changes(plain) == []
    large.settle()
    assert isinstance(passages(large), set)


# Drift and accidents


@pytest.mark.parametrize(
    "damage",
    [
        "echo '{}' >/etc/boxwright/api/production.json",
        "rm /etc/boxwright/api/production/admin_secret",
        "chmod 0644 /etc/boxwright/api/production/peppers",
        "sed -i s/127.0.0.1/0.0.0.0/ /etc/boxwright/api/production.json; systemctl restart boxwright-api-production",
        "for file in /opt/boxwright/api/*/boxwright_api/__main__.py; do echo 'raise SystemExit(1)' >>\"$file\"; done; "
        "systemctl restart --no-block boxwright-api-production",
        "systemctl disable --now boxwright-api-production",
        "rm /etc/systemd/system/boxwright-api-production-migrate.service",
    ],
)
def test_drift_is_repaired(small: Box, damage: str) -> None:
    small.settled = False
    small.sh(damage, check=False)
    assert small.changes()
    small.expect_settled()
    assert ready(small)
    assert small.sh("stat -c '%U %a' /etc/boxwright/api/production/*").split("\n")[:-1] == ["root 600"] * 3
    listening = small.sh("ss -Hltn 'sport = :8000' | awk '{print $4}'").split()
    assert listening == ["127.0.0.1:8000"]


def test_settings_that_the_service_does_not_take_are_refused_and_it_goes_on(small: Box) -> None:
    before = small.pid(PRODUCTION)
    small.settled = False
    failed = small.apply(inventory=small.with_variables("wrong", api_options={"no_such": 1}))
    assert failed.code == 1
    assert "no_such" in failed.text
    assert small.pid(PRODUCTION) == before
    small.expect_settled()


def test_killed_it_comes_back(box: Box) -> None:
    before = box.pid(PRODUCTION)
    box.sh(f"kill -9 {before}")
    eventually("another process is ready", lambda: box.restarted(PRODUCTION, before) and ready(box), 120)
    assert ask(box, made(box), "v1/models").status_code == 200
    box.expect_settled()


def test_a_new_secret_is_taken_up(small: Box) -> None:
    """The administrator's; keys stay good, since they are hashed with another one."""
    key = made(small)
    before = small.pid(PRODUCTION)
    small.settled = False
    small.apply(inventory=small.with_variables("secret", api_admin_secret="another-one-of-the-tests")).expect()
    assert small.restarted(PRODUCTION, before)
    assert small.sh("cat /etc/boxwright/api/production/admin_secret").strip() == "another-one-of-the-tests"
    assert ask(small, key, "v1/models").status_code == 200


def test_no_secret_is_seen_by_others(box: Box) -> None:
    said = box.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl --no-pager --output cat -u 'boxwright-*'")
    said += box.sh(f"tr '\\0' '\\n' </proc/{box.pid(PRODUCTION)}/environ")
    for name, value in box.secrets.items():
        if name.startswith(("api_", "redis_", "qdrant_")):
            assert value not in said, name
    assert "bw_" not in re.sub(r"bw_AAAAAAAA", "", said)
    assert box.sh("runuser -u nobody -- cat /etc/boxwright/api/production.json 2>&1", check=False).endswith(
        "Permission denied\n"
    )


def test_a_new_version_of_the_service_keeps_a_copy_of_the_keys(small: Box) -> None:
    """Whatever version it was before: as if it had been another one."""
    made(small, "before")
    copies = "ls -t /var/lib/boxwright/api/production/backups"
    there = set(small.sh(copies).split())
    small.sh("echo older >/var/lib/boxwright/api/production/migrated-to; systemctl restart boxwright-api-production")
    (copy,) = set(small.sh(copies).split()) - there
    told = small.sh(
        "python3 -c 'import sqlite3, sys; print(list(sqlite3.connect(sys.argv[1]).iterdump()))' "
        f"/var/lib/boxwright/api/production/backups/{copy}"
    )
    assert "before" in told
    small.expect_settled()


def test_after_a_reboot(box: Box) -> None:
    key = made(box, "early")
    box.container.restart(timeout=60)
    eventually("it is ready", lambda: ready(box), 300)
    eventually("the door leads to it", lambda: ask(box, key, "v1/models").status_code == 200, 120)
    # The engine answers before its start is over, which ends with a question of its own.
    eventually("the engine is started", lambda: box.succeeds("systemctl is-active --quiet llamacpp"), 120)
    box.expect_settled()


@pytest.fixture
def cleared(box: Box) -> Iterator[Box]:
    """It is taken away, and comes back for who needs it."""
    box.settled = False
    yield box
    box.settled = False


def test_removed_and_removed_again(cleared: Box) -> None:
    box = cleared
    made(box, "kept")
    box.run("pyinfra", "-y", "inventory.py", REMOVE).expect()
    left = box.sh("ls /etc/systemd/system /etc/boxwright /opt/boxwright /run/boxwright 2>/dev/null", check=False)
    assert "boxwright-" not in left
    assert "api" not in left.split()
    assert not box.succeeds("id boxwright-api-production")
    again = box.run("pyinfra", "-y", "--json", "inventory.py", REMOVE).expect()
    assert operations(again)["changed"] == []
    assert box.sh("stat -c %U /var/lib/boxwright/api/production").strip() == "root"
    box.settle()
    assert "kept" in [one["owner"] for one in keys(box)]
