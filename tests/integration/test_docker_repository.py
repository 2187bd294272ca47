"""Docker from its own package repository and back, with real engines and a container that must not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from docker_mirror import in_mirror
from kit import LIGHT, Box, Lab
from snapshots import made_of

pytestmark = pytest.mark.lab

# The gateway and the model are not what is asked here.
VARIABLES = {**LIGHT, "docker_enabled": True}
PUBLISHER = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"


@pytest.fixture(scope="module")
def box(lab: Lab) -> Box:
    """A box that has the distribution's engine, and daemon.json of its owner's."""
    box = lab.up("docker", VARIABLES)
    box.sh("mkdir -p /etc/docker")
    box.put("/etc/docker/daemon.json", '{"shutdown-timeout": 7}\n')
    box.changes()
    return box


@pytest.fixture(scope="module")
def variables(box: Box) -> dict[str, str]:
    """What a box must be told to take Docker from the mirror."""
    return in_mirror(box.container)


@pytest.fixture(scope="module")
def container(box: Box) -> str:
    """A container that runs as long as nobody ends it."""
    box.sh(
        "mkdir -p /var/tmp/c/bin /var/tmp/c/lib64 /var/tmp/c/lib/x86_64-linux-gnu; cd /var/tmp/c; "
        "cp /bin/sleep bin/; cp -L $(ldd /bin/sleep | grep -o '/lib[^ ]*') lib/x86_64-linux-gnu/; "
        "cp -L /lib64/ld-linux-* lib64/; tar -c . | docker import - sleeper:1; rm -r /var/tmp/c"
    )
    return box.sh("docker run --detach --restart always sleeper:1 /bin/sleep 100000").strip()


def state(box: Box, container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.sh(f"docker inspect {container}"))[0]["State"]
    return found


def packages(box: Box) -> set[str]:
    listed = box.sh("dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\\n'").splitlines()
    return {line.split()[1] for line in listed if line.startswith("ii")}


def wanted(box: Box, variables: dict[str, str]) -> Path:
    return box.with_variables("docker", **variables)


def test_the_publishers_key_is_wanted_unless_the_mirror_has_its_own(
    box: Box, variables: dict[str, str], container: str
) -> None:
    """What the mirror signed is refused, and the engine that was there goes on."""
    failed = box.apply(inventory=box.with_variables("docker", docker_repository="docker"))
    failed.expect(1)
    assert "holds another key than the pinned one" in failed.text
    assert PUBLISHER in failed.text
    assert variables["mirror_key_fingerprint"] in failed.text
    assert "docker.io" in packages(box)
    assert state(box, container)["Running"]
    assert "boxwright-docker" not in box.sh("ls /etc/apt/sources.list.d /etc/apt/keyrings")


def test_from_the_distribution_to_docker_and_back(box: Box, variables: dict[str, str], container: str) -> None:
    before = state(box, container)["Pid"]
    other = wanted(box, variables)
    done = box.apply(inventory=other).expect()
    assert "will be replaced by" in done.err
    assert "docker.io" in done.err
    there = packages(box)
    assert {"docker-ce", "docker-ce-cli", "containerd.io", "docker-compose-plugin"} <= there
    assert not {"docker.io", "containerd", "runc", "docker-cli", "docker-compose"} & there
    assert state(box, container)["Pid"] == before, "the container was restarted"
    box.expect_settled(other)
    document = json.loads(box.sh("cat /etc/docker/daemon.json"))
    assert (document["shutdown-timeout"], document["live-restore"]) == (7, True)

    box.changes()
    there = packages(box)
    assert {"docker.io", "docker-compose"} <= there
    assert not {"docker-ce", "docker-ce-cli", "containerd.io", "docker-compose-plugin"} & there
    assert "boxwright-docker" not in box.sh("ls /etc/apt/sources.list.d /etc/apt/keyrings")
    assert state(box, container)["Pid"] == before, "the container was restarted"
    box.expect_settled()


def test_a_run_that_is_killed_in_the_middle_is_completed(box: Box, variables: dict[str, str], container: str) -> None:
    """The old packages are gone and the new ones are not there yet."""
    image = state(box, container)
    assert image["Running"]
    box.sh("DEBIAN_FRONTEND=noninteractive apt-get remove --assume-yes docker.io docker-cli containerd runc")
    other = wanted(box, variables)
    box.changes(other)
    assert "docker-ce" in packages(box)
    assert state(box, container)["Running"]
    box.expect_settled(other)


def test_removed(box: Box, variables: dict[str, str]) -> None:
    """Packages and repository go, what the owner put into daemon.json stays."""
    box.sh("docker ps --all --quiet | xargs --no-run-if-empty docker rm --force")
    other = wanted(box, variables)
    box.changes(other)
    box.run("boxwright", "remove", "--json", inventory=other).expect()
    assert not {"docker-ce", "docker-ce-cli", "containerd.io", "docker.io"} & packages(box)
    assert json.loads(box.sh("cat /etc/docker/daemon.json")) == {"shutdown-timeout": 7}
    assert not [line for line in made_of(box) if "boxwright-docker" in line]
    box.run("boxwright", "remove", "--json", inventory=other).expect()
