"""What must hold of the models' files, and of the watchdog over the engines."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from boxwright.testing.probes import exposure, listeners, log, on_a_mac, process, session, starts_at_boot, unprivileged

MODELS = "/var/lib/boxwright/models"


def services(box: Any) -> Iterator[tuple[str, Any]]:
    """The services of every engine that runs on the box, each with the name of its engine."""
    for engine in box.inference.running:
        for server in box.engine(engine).servers(box):
            yield engine, server


def test_engines_run(host: Any, box: Any) -> None:
    """Every engine runs, and starts at boot, or when its user signs in."""
    assert {engine for engine, _ in services(box)} == set(box.inference.running)
    for _, server in services(box):
        assert process(host, server.unit)
        assert starts_at_boot(host, server.unit), server.unit


def test_engines_listen_on_loopback_only(host: Any, box: Any) -> None:
    """No engine can be reached from elsewhere but through the gateway."""
    for _, server in services(box):
        assert listeners(host, server.port) == {"127.0.0.1"}, server.unit


def test_engines_are_unprivileged(host: Any, box: Any) -> None:
    """Every engine has an account of its own, or is its user's, and can do no more than that."""
    for engine, server in services(box):
        assert unprivileged(host, server.unit, engine), server.unit


@pytest.mark.system("darwin")
def test_engines_run_in_the_declared_way(host: Any, box: Any) -> None:
    """Every engine is a LaunchDaemon, or a LaunchAgent of `inference_agent_user`, and not both."""
    for _, server in services(box):
        assert session(host, server.unit) == box.inference.agent_user, server.unit
        daemon = f"/Library/LaunchDaemons/boxwright.{server.unit}.plist"
        assert host.file(daemon).exists == (not box.inference.agent_user), daemon
        if box.inference.agent_user:
            assert host.run(f"launchctl print system/boxwright.{server.unit}").rc == 113, server.unit


@pytest.mark.system("linux")
def test_engines_are_in_a_sandbox(host: Any, box: Any) -> None:
    """systemd rates the exposure of every engine low."""
    for engine, server in services(box):
        assert exposure(host, server.unit) <= box.engine(engine).exposure, server.unit


def test_files_of_models(host: Any, box: Any) -> None:
    """Every declared file is what its checksum says, and nobody but root can change it."""
    for model in box.inference.served:
        for path, file in model.downloads:
            found = host.file(path)
            assert (found.size, found.user, found.mode & 0o022) == (file.size, "root", 0), path
            tool = "shasum -a 256" if on_a_mac(host) else "sha256sum"
            assert host.check_output(f"{tool} %s", path).split()[0] == file.sha256, path


def test_no_other_models(host: Any, box: Any) -> None:
    """With `inference_prune`, only declared models are left."""
    if not box.inference.prune:
        pytest.skip("inference_prune is not set")
    declared = tuple(model.location.rpartition("/")[2] for model in box.inference.served)
    assert [name for name in host.file(MODELS).listdir() if not name.startswith(declared)] == []


def test_watchdog(host: Any, box: Any) -> None:
    """The watchdog runs over every engine, as long as it is wanted."""
    if not (box.inference.watchdog and box.inference.running):
        if on_a_mac(host):
            assert not host.file("/Library/LaunchDaemons/boxwright.boxwright-watchdog.plist").exists
        else:
            assert not host.service("boxwright-watchdog").is_running
        return
    assert process(host, "boxwright-watchdog")
    assert starts_at_boot(host, "boxwright-watchdog")
    watched = json.loads(host.file("/etc/boxwright/watchdog.json").content_string)["engines"]
    for engine in box.inference.running:
        assert [one for one in watched if one["unit"].startswith(engine)]
    assert "could not be examined" not in log(host, "boxwright-watchdog")


@pytest.mark.system("linux")
def test_watchdog_is_in_a_sandbox(host: Any, box: Any) -> None:
    """systemd rates the exposure of the watchdog low."""
    if box.inference.watchdog and box.inference.running:
        assert exposure(host, "boxwright-watchdog") <= 2.0


@pytest.mark.system("linux")
def test_graphics_card_is_used(host: Any, box: Any) -> None:
    """Where there is a graphics card, the engines that compute on it, and whose models are to be there, use it."""
    listing = host.run("nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits")
    if listing.rc != 0:
        pytest.skip("no graphics card of NVIDIA answers on this box")
    using = {line.split(",")[0].strip() for line in listing.stdout.splitlines() if line.strip()}
    for engine in box.inference.running:
        for server in box.engine(engine).servers(box) if box.engine(engine).on_graphics else ():
            if server.lasting and server.model.gpu_layers != 0:
                group = host.check_output(f"systemctl show -P ControlGroup {server.unit}")
                members = host.check_output(
                    f"grep -l ':{group}$' /proc/[0-9]*/cgroup 2>/dev/null | cut -d / -f 3; true"
                ).split()
                assert using & set(members), (
                    f"{server.unit} has no memory of the graphics card: `{server.model.name}` is computed by the "
                    "processor; set its gpu_layers to 0 if that is wanted"
                )
