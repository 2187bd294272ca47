"""A box, or what it needs, is not fit: said clearly, nothing half done that the next correct run does not repair."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from kit import MODEL_ENTRY, STACK, Box, Done
from snapshots import exact

pytestmark = pytest.mark.lab

REFUSED, FAILED = 2, 1
MODELS = "/var/lib/boxwright/models"
MODEL = f"{MODELS}/b179c9523d0e-SmolLM2-135M-Instruct.Q4_1.gguf"


def expect(done: Done, code: int, *said: str) -> None:
    """The command ended with `code` and said all of this, to a person and not to a programmer."""
    done.expect(code)
    assert "Traceback" not in done.text
    for words in said:
        assert words in done.text, done.text


@pytest.fixture
def untouched(light: Box) -> Iterator[Box]:
    """The light box, on which nothing may change during the test."""
    before = exact(light)
    yield light
    assert exact(light) == before


def test_an_unsupported_system_is_refused_at_the_first_fact(light: Box) -> None:
    light.settled = False
    light.sh("mv /etc/os-release /etc/os-release.real; printf 'ID=fedora\\nVERSION_ID=43\\n' >/etc/os-release")
    before = exact(light)
    try:
        for command in (("boxwright", "plan"), ("boxwright", "apply"), ("boxwright", "remove")):
            expect(light.run(*command), REFUSED, "BW110", "fedora 43", "Debian 12 and 13", light.host)
        # pyinfra has one code for everything that goes wrong.
        expect(light.run("pyinfra", "-y", "inventory.py", STACK), FAILED, "fedora 43")
        assert exact(light) == before
    finally:
        light.sh("mv /etc/os-release.real /etc/os-release")
    light.expect_settled()


def test_a_port_that_another_program_holds(untouched: Box) -> None:
    untouched.sh("systemd-run --quiet --collect --unit squatter python3 -m http.server 8443 --bind 127.0.0.1")
    try:
        untouched.sh("until ss -Hltn | grep -q :8443; do sleep 0.1; done")
        inventory = untouched.with_variables("port", gateway_port=8443)
        expect(untouched.apply(inventory=inventory), REFUSED, "BW113", "gateway_port", "8443", "python3")
    finally:
        untouched.sh("systemctl stop squatter")


def test_a_model_that_is_larger_than_the_machine(untouched: Box) -> None:
    """The box is measured, not only what the inventory says of it."""
    large = {**MODEL_ENTRY, "sha256": "0" * 64, "size": 10 * 2**40}
    inventory = untouched.with_variables("large", inference_models=[large])
    said = ("BW111", "10240.5 GiB", "BW112", "11264.0 GiB", "inference_models")
    expect(untouched.apply(inventory=inventory), REFUSED, *said)


def test_a_host_that_cannot_be_reached(light: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    inventory = light.with_variables("unreachable", ansible_host="127.0.0.1", ansible_port=closed)
    expect(light.apply(inventory=inventory), FAILED, "BW104", "127.0.0.1", str(closed))
    expect(light.run("pyinfra", "-y", "inventory.py", STACK, inventory=inventory), FAILED, "127.0.0.1")


@pytest.fixture
def engineless(light: Box) -> Box:
    """The light box without its model and the engine's program: the next run fetches both."""
    light.settled = False
    light.sh(f"systemctl stop llamacpp; rm -r {MODELS} /opt/boxwright/llamacpp")
    return light


def test_a_mirror_that_does_not_answer(engineless: Box) -> None:
    """Both kinds of fetch say which address failed; with the mirror back, the next run is as good as any."""
    inventory = engineless.with_variables("no-mirror", mirror_url="http://127.0.0.1:9")
    expect(engineless.apply(inventory=inventory), FAILED, "inference: fetch SmolLM2", "http://127.0.0.1:9")
    assert not engineless.succeeds(f"ls {MODEL}")
    engineless.changes()
    engineless.sh("systemctl stop llamacpp; rm -r /opt/boxwright/llamacpp")
    expect(engineless.apply(inventory=inventory), FAILED, "llamacpp: install the server", "http://127.0.0.1:9")
    assert not engineless.succeeds("ls /opt/boxwright/llamacpp/*/bin")
    engineless.apply().expect()
    engineless.expect_settled()
    assert engineless.answers()


def test_a_file_with_another_checksum_is_never_used(light: Box) -> None:
    before = light.sh(f"ls -A {MODELS}")
    inventory = light.with_variables("checksum", inference_models=[{**MODEL_ENTRY, "sha256": "0" * 64}])
    light.settled = False
    right = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    expect(light.apply(inventory=inventory), FAILED, "wrong checksum", "0" * 64, right, "was not used")
    assert light.sh(f"ls -A {MODELS}") == before
    assert light.answers()
    light.expect_settled()


def test_a_disk_that_is_full(engineless: Box) -> None:
    """The file system of the programs is full in the middle of a run; with room on it the next run completes."""
    folder = "/opt/boxwright/llamacpp"
    engineless.sh(f"mkdir -p {folder} && mount -t tmpfs -o size=20m tmpfs {folder}")
    try:
        expect(engineless.apply(), FAILED, "llamacpp: install the server", "No space left on device")
        engineless.sh(f"mount -o remount,size=1g {folder}")
        engineless.apply().expect()
        assert engineless.changes() == []
        assert engineless.answers()
    finally:
        engineless.sh(f"systemctl stop llamacpp; umount {folder}")
    engineless.apply().expect()
    engineless.expect_settled()


def test_no_room_for_the_model(engineless: Box) -> None:
    """What is free where the models go is measured before anything is changed."""
    engineless.sh(f"mkdir -p {MODELS} && mount -t tmpfs -o size=50m tmpfs /var/lib/boxwright")
    try:
        expect(engineless.apply(), REFUSED, "BW112", "50.0 MiB", "inference_models")
        assert not engineless.succeeds("ls /opt/boxwright/llamacpp")
    finally:
        engineless.sh("umount /var/lib/boxwright")
    engineless.apply().expect()
    engineless.expect_settled()
