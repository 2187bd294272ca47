"""What was added can be taken away again, data only when asked for; a box that was destroyed comes back the same."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from kit import LIGHT, REMOVE, Box, Lab, operations
from snapshots import made_of

pytestmark = pytest.mark.lab

# Left on purpose, or by other programs than ours: the notes of Debian's package tools, what logins leave, and what
# Docker's own packages leave also when they are purged (until the next boot the interface, for good the group).
OTHERS = (
    "/etc/alternatives",
    "/etc/group",
    "/etc/gshadow",
    "/etc/passwd",
    "/etc/shadow",
    "/etc/subgid",
    "/etc/subuid",
    "/etc/.pwd.lock",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/mailcap",
    "/etc/ssl/certs",
    "/etc/cni",
    "group docker:",
    "interface docker0",
    "/root/.",
    "/home/",
)
# What people made, and what would be lost with it.
DATA = ("/var/lib/boxwright", "/var/lib/caddy")


def added(now: set[str], before: set[str]) -> str:
    """What a box has more than it had, apart from what is not ours, one line each."""
    return "\n".join(sorted(line for line in now - before if not line.startswith(OTHERS)))


def kept_by_debian(box: Box) -> set[str]:
    """Settings of packages that were removed, which Debian keeps until they are purged."""
    listed = box.sh("dpkg-query --show --showformat '${db:Status-Abbrev}|${Conffiles}\\n~'").split("~")
    # The links by which they were enabled have no owner.
    links = box.sh(
        "find /etc/rc*.d /etc/systemd/system -type l '(' -name '*docker*' -o -name 'containerd*' ')'", check=False
    )
    listed.append(f"rc|\n{links}")
    files = [
        line.split()[0]
        for entry in listed
        if entry.startswith("rc")
        for line in entry.partition("|")[2].splitlines()
        if line.strip()
    ]
    return {str(place) for file in files for place in (PurePosixPath(file), *PurePosixPath(file).parents)}


def removed(box: Box, *options: str) -> list[str]:
    """What `boxwright remove` says it took away."""
    box.settled = False
    done = box.run("boxwright", "remove", "--json", *options).expect()
    changes: list[str] = done.json["hosts"][box.host]["changed"]
    return changes


def chats(box: Box) -> str:
    """The administrator of Open WebUI as its own database knows it: made anew, it would have another id."""
    answer = box.http(
        "POST",
        "api/v1/auths/signin",
        json={"email": "admin@localhost", "password": box.secrets["openwebui_admin_password"]},
    )
    assert answer.status_code == 200
    return str(answer.json()["id"])


@pytest.fixture(scope="module")
def bare(lab: Lab) -> set[str]:
    """What a machine is made of on which no run ever changed anything."""
    return made_of(lab.up("bare"))


def test_remove_takes_away_what_was_added_and_keeps_data(full: Box, bare: set[str]) -> None:
    administrator, certificate, secrets = chats(full), full.ca.read_text(encoding="utf-8"), full.secrets

    assert "docker: remove the engine" in removed(full)
    left = added(made_of(full), {line.replace("lab-test-bare", full.host) for line in bare}).splitlines()
    kept = kept_by_debian(full)
    unexpected = [line for line in left if not line.startswith(DATA) and line.partition("|")[0] not in kept]
    assert "\n".join(unexpected) == ""
    assert any(line.startswith("/var/lib/boxwright/models/") and ".gguf|" in line for line in left)
    assert full.succeeds("ls /var/lib/docker/volumes/openwebui-data/_data/webui.db")
    assert not full.succeeds("pgrep -x caddy || pgrep -f '[s]erver.py' || pgrep -x dockerd")
    assert [
        line.split()[3].rpartition(":")[2] for line in full.sh("ss -Hltn4").splitlines() if "127.0.0.11" not in line
    ] == ["22"]

    # Twice is no change, by either command.
    assert removed(full) == []
    assert operations(full.run("pyinfra", "-y", "--json", "inventory.py", REMOVE).expect())["changed"] == []

    # What was kept is used again: the same people, the same certificate authority, the same passwords.
    full.settle()
    assert full.secrets == secrets
    assert full.answers()
    assert full.ca.read_text(encoding="utf-8") == certificate
    assert chats(full) == administrator


def test_remove_with_purge_leaves_nothing(full: Box, bare: set[str]) -> None:
    names = set(removed(full, "--purge"))
    assert {"gateway: remove certificates", "inference: remove the models", "openwebui: remove the containers"} <= names
    assert added(made_of(full), {line.replace("lab-test-bare", full.host) for line in bare}) == ""
    assert not full.succeeds("ls -d /var/lib/docker/volumes/openwebui-data")
    assert full.sh("ls -A /var/lib/boxwright /var/lib/caddy 2>/dev/null", check=False) == ""
    assert removed(full, "--purge") == []


def test_purge_after_a_removal_that_kept_the_data(lab: Lab) -> None:
    """Data that was kept can still be taken away, when nothing else is left of the box."""
    box = lab.up("gone", LIGHT)
    before = made_of(box)
    box.settle()
    assert removed(box) != []
    assert box.succeeds("ls /var/lib/boxwright/models/*.gguf")
    assert {"gateway: remove certificates", "inference: remove the models"} <= set(removed(box, "--purge"))
    assert added(made_of(box), before) == ""
    assert removed(box, "--purge") == []


def test_removing_from_a_machine_that_was_never_built_changes_nothing(lab: Lab, bare: set[str]) -> None:
    box = lab.up("bare")
    assert removed(box, "--purge") == []
    assert made_of(box) == bare


def test_a_destroyed_box_comes_back_with_the_same_credentials(light: Box) -> None:
    secrets, address = light.secrets, light.address
    container = light.container.id
    light.lab.run("boxwright", "lab", "down", light.name).expect()
    light.settled = False
    light.lab.up("light", LIGHT)
    assert light.container.id != container
    light.settle()
    assert light.secrets == secrets
    assert light.address == address
    assert light.answers()
    light.expect_settled()
