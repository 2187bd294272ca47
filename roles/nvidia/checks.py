"""What must hold of NVIDIA's driver."""

import re
from typing import Any

import pytest

# Display adapters (PCI class 03) of NVIDIA (vendor 10de), as the kernel lists them.
CARDS = (
    "grep -l -s -x 0x10de /sys/bus/pci/devices/*/vendor | "
    "while read -r vendor; do grep -s ^0x03 ${vendor%vendor}class; done"
)


@pytest.fixture(autouse=True)
def _card(host: Any) -> None:
    if not host.run(CARDS).stdout.strip():
        pytest.skip("the box has no card of NVIDIA")


def _smi(host: Any, *asked: str) -> list[list[str]]:
    """What nvidia-smi says of each card; its own words are in the failure when it says nothing."""
    said = host.run(f"nvidia-smi --query-gpu={','.join(asked)} --format=csv,noheader,nounits")
    assert said.rc == 0, f"nvidia-smi: {said.stdout.strip()} {said.stderr.strip()}"
    return [[value.strip() for value in line.split(",")] for line in said.stdout.splitlines() if line.strip()]


def _loaded(host: Any) -> str:
    """Version of the kernel module at work."""
    text = host.run("cat /proc/driver/nvidia/version").stdout
    match = re.search(r"^NVRM version:.*?\s(\d{3}\.[\d.]+)\s", text, re.MULTILINE)
    assert match, "NVIDIA's kernel module is not loaded: restart the box, or see docs/nvidia.md"
    return match[1]


def test_no_restart_is_due(host: Any) -> None:
    """The kernel's module and the libraries of programs are of one version; else the box must be restarted."""
    library = host.run("readlink -f /usr/lib/*-linux-gnu/libnvidia-ml.so.1").stdout.strip()
    assert library.endswith(f".so.{_loaded(host)}"), (
        f"the box must be restarted: the kernel runs NVIDIA's module {_loaded(host)}, the library is {library} "
        '("Driver/library version mismatch")'
    )


def test_cards_answer(host: Any) -> None:
    """Each card of the box is one that the driver knows."""
    found = host.run(CARDS).stdout.split()
    assert len(_smi(host, "index", "name")) == len(found)


def test_persistence(host: Any, box: Any) -> None:
    """The driver keeps its hold on cards that nobody uses, from the next boot on too."""
    if not box.nvidia.persistence:
        pytest.skip("nvidia_persistence is false")
    assert {mode for _, mode in _smi(host, "index", "persistence_mode")} == {"Enabled"}
    assert host.service("nvidia-persistenced").is_enabled


def test_secure_boot_does_not_refuse_the_modules(host: Any) -> None:
    """With Secure Boot, the kernel did not refuse NVIDIA's modules."""
    if "SecureBoot enabled" not in host.run("mokutil --sb-state").stdout:
        pytest.skip("Secure Boot is off")
    refused = host.run("journalctl --quiet --dmesg --boot --grep 'nvidia.*(PKCS#7 signature not signed|rejected)'")
    assert refused.stdout.strip() == ""


def test_the_next_start_has_the_module(host: Any) -> None:
    """The newest kernel, which the next start takes, has NVIDIA's module."""
    kernels = host.run("ls -v /lib/modules").stdout.split()
    newest = [name for name in kernels if host.file(f"/boot/vmlinuz-{name}").exists][-1:]
    for name in newest:
        modules = host.run(f"grep -E '/(nvidia|nvidia-current)[.]ko' /lib/modules/{name}/modules.dep")
        assert modules.rc == 0, f"the kernel {name} has no NVIDIA module: the next start would be without the driver"


def test_containers_can_be_given_cards(host: Any, box: Any) -> None:
    """Docker knows the cards, by a specification that is of the driver at work."""
    if not (box.nvidia.containers and box.docker.enabled):
        pytest.skip("no container is given a card")
    text = host.check_output("cat /var/run/cdi/nvidia.yaml")
    assert f"libcuda.so.{_loaded(host)}" in text
    assert "name: all" in text
    assert '"/var/run/cdi"' in host.check_output("docker info --format '{{json .CDISpecDirs}}'")
