"""Qdrant as the role sets it up, on a real Debian: applied, broken, changed, another version, removed.

The program is the double, tests/doubles/qdrant.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from machine import Machine
from test_on_databases import Role, killed

from boxwright.preflight import Machine as Found
from boxwright.preflight import examine
from boxwright.settings import parse_box
from roles.qdrant import tasks as qdrant
from roles.registry import Box
from tests.doubles.qdrant import archive

pytestmark = pytest.mark.lab

UNIT = "boxwright-qdrant"
KEY, OTHER = "of-the-tests-of-qdrant", "another-of-the-tests-of-qdrant"
MIRROR = "http://127.0.0.1:8099"


@pytest.fixture(scope="module")
def machine():
    """With two versions of the double in a mirror of its own."""
    machine = Machine()
    for build in (0, 1):
        made = archive.make(build)
        path = made.url("x86_64").replace("https://", "/srv/mirror/")
        machine.sh(f"mkdir -p {path.rpartition('/')[0]}")
        machine.put(path, made.data)
    web = "python3 -m http.server --bind 127.0.0.1 --directory /srv/mirror 8099"
    machine.sh(f"systemd-run --quiet --unit=mirror {web}; curl -s --retry 50 --retry-connrefused {MIRROR} >/dev/null")
    yield machine
    machine.close()


def a_box(build: int = 0, **variables: Any) -> Box:
    given = {
        "gateway_names": ["llm.example"],
        "inference_engine": "none",
        "qdrant_enabled": True,
        "qdrant_api_key": KEY,
        "mirror_url": MIRROR,
        **archive.make(build).variables,
    }
    return parse_box(Box, "box", ("linux",), {**given, **variables}, None, None)


@pytest.fixture
def role(machine):
    return Role(machine, qdrant)


@pytest.fixture
def box(role):
    """It is there."""
    box = a_box()
    role.apply(box)
    return box


@pytest.fixture
def ask(machine):
    """Status and answer."""

    def said(path: str, method: str = "GET", body: Any = None, key: str = KEY, port: int = 6333) -> tuple[int, Any]:
        data = f"--data '{json.dumps(body)}'" if body is not None else ""
        header = f"--header 'api-key: {key}'" if key else ""
        asked = f"curl --silent --noproxy '*' --max-time 10 --write-out ' %{{http_code}}' --request {method}"
        text = machine.sh(f"{asked} {header} {data} 'http://127.0.0.1:{port}{path}'")
        answer, _, code = text.rpartition(" ")
        return int(code), json.loads(answer) if answer.startswith("{") else answer

    return said


@pytest.fixture
def kept(box, ask):
    """A passage that it holds."""
    ask("/collections/a", "DELETE")
    assert ask("/collections/a", "PUT", {"vectors": {"size": 2, "distance": "Cosine"}})[0] == 200
    point = {"id": 7, "vector": [3, 4], "payload": {"text": "kept"}}
    assert ask("/collections/a/points?wait=true", "PUT", {"points": [point]})[0] == 200

    def found(**options: Any) -> list[str]:
        body = {"query": [1, 1], "with_payload": True}
        status, answer = ask("/collections/a/points/query", "POST", body, **options)
        assert status == 200, answer
        return [one["payload"]["text"] for one in answer["result"]["points"]]

    assert found() == ["kept"]
    return found


def test_a_plan_asks_and_changes_nothing(machine, role):
    look = "ls /etc/boxwright /opt/boxwright /etc/systemd/system 2>&1; getent passwd"
    before = machine.sh(look)
    assert any(role.apply(a_box(), dry=True))
    assert machine.sh(look) == before


def test_applied_once(machine, role, ask):
    assert any(role.apply(a_box()))
    assert not any(role.apply(a_box()))
    assert ask("/collections") == (200, {"result": {"collections": []}, "status": "ok", "time": 0.001})
    listening = machine.sh("ss -Hltnp | grep '\"qdrant\"' | awk '{print $4}'").split()
    assert listening == ["127.0.0.1:6333"]
    owned = machine.sh("stat -c '%U %G %a' /etc/boxwright/qdrant/key.yaml /var/lib/boxwright/qdrant")
    assert owned.split("\n")[:-1] == ["root root 600", f"{UNIT} {UNIT} 700"]
    assert "--disable-telemetry" in machine.sh("ps -C qdrant -o args=")


def test_who_comes_in(machine, box, ask):
    assert ask("/readyz", key="")[0] == 200
    assert ask("/collections", key="")[0] == 401
    assert ask("/collections", key="wrong")[0] == 401
    seen = machine.sh("journalctl --no-pager; cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    pid = machine.sh(f"systemctl show --value -p MainPID {UNIT}").strip()
    assert KEY not in seen + machine.sh(f"cat /proc/{pid}/environ; cat /etc/boxwright/qdrant/config/config.yaml")
    for path in ("/etc/boxwright/qdrant/key.yaml", f"/run/credentials/{UNIT}.service/key.yaml"):
        assert "Permission denied" in machine.sh(f"runuser -u nobody -- cat {path}")


def test_the_sandbox(machine, box):
    rated = machine.sh(f"systemd-analyze security --no-pager {UNIT}.service | tail -1")
    assert float(rated.split("level for")[1].split()[1]) <= 1.5, rated


def test_one_that_answers_without_a_key_does_not_count_as_started(machine, role, box):
    """So it would be with a file for the key that it cannot read."""
    machine.sh("chmod 0640 /etc/boxwright/qdrant/key.yaml; echo '{}' >/etc/boxwright/qdrant/key.yaml")
    assert "it answers who has no key" in machine.sh(
        f"systemctl restart {UNIT}; journalctl --no-pager --output cat -u {UNIT} -n 20; systemctl stop {UNIT}"
    )
    assert any(role.apply(box))
    assert not any(role.apply(box))


def test_what_it_holds_survives_a_kill(machine, role, box, kept):
    killed(machine, UNIT)
    assert kept() == ["kept"]
    assert not any(role.apply(box))


def test_a_new_key_and_drift(machine, role, box, kept, ask):
    changed = a_box(qdrant_api_key=OTHER)
    assert any(role.apply(changed))
    assert kept(key=OTHER) == ["kept"]
    assert ask("/collections")[0] == 401
    path = "/etc/boxwright/qdrant/config/config.yaml"
    machine.sh(f"sed -i s/127.0.0.1/0.0.0.0/ {path}; systemctl restart {UNIT}")
    assert "0.0.0.0:6333" in machine.sh("ss -Hltn | awk '{print $4}'").split()
    assert any(role.apply(changed))
    assert machine.sh("ss -Hltn 'sport = :6333' | awk '{print $4}'").split() == ["127.0.0.1:6333"]
    assert not any(role.apply(changed))


def test_another_port(machine, role, box, kept):
    moved = a_box(qdrant_port=6433)
    assert any(role.apply(moved))
    assert kept(port=6433) == ["kept"]
    assert machine.sh("ss -Hltn 'sport = :6333'") == ""


def test_another_version(machine, role, box, kept, ask):
    newer = a_box(1)
    assert any(role.apply(newer))
    assert ask("/", key="")[1]["version"] == newer.qdrant.version
    assert kept() == ["kept"]
    # The one before is gone.
    assert machine.sh("ls /opt/boxwright/qdrant").split() == [qdrant.folder(newer).rpartition("/")[2]]
    assert not any(role.apply(newer))


def test_a_wrong_checksum_is_refused_and_it_serves_on(machine, box, kept):
    wrong = a_box(1, qdrant_sha256="0" * 64)
    there = Found("Linux", "x86_64", "debian", "13", systemd=True, memory=2**33, disk_free=2**34)
    result = machine.run(lambda: qdrant.apply(wrong, there))
    assert not result.ok
    assert "has the wrong checksum" in result.printed
    assert kept() == ["kept"]


def test_not_wanted_any_more_it_goes_and_comes_back_with_what_it_held(machine, role, box, kept):
    assert any(role.apply(a_box(qdrant_enabled=False)))
    assert not any(role.apply(a_box(qdrant_enabled=False)))
    assert "no such user" in machine.sh(f"id {UNIT}")
    assert machine.sh("stat -c '%U %a' /var/lib/boxwright/qdrant").strip() == "root 700"
    role.apply(box)
    assert kept() == ["kept"]


def test_removed(machine, role, box):
    assert any(role.remove(box))
    assert not any(role.remove(box))
    look = "ls /etc/boxwright /opt/boxwright /etc/systemd/system"
    assert "qdrant" not in machine.sh(look)
    assert any(role.remove(box, purge=True))
    assert not any(role.remove(box, purge=True))
    assert "qdrant" not in machine.sh("ls /var/lib/boxwright")


def test_one_of_anothers_on_the_port_is_refused_before_anything_is_changed():
    there = Found(
        "Linux", "x86_64", "debian", "13", systemd=True, memory=2**33, disk_free=2**34, listeners={6333: ("qdrant",)}
    )
    (problem,) = examine(there, qdrant.need(a_box()))
    assert (problem.code, problem.variable) == ("BW113", "qdrant_port")
    assert problem.message.endswith("taken by qdrant, which boxwright did not set up")
