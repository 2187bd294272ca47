"""What must hold of PostgreSQL."""

from typing import Any

import pytest

from boxwright.testing.probes import exposure, listeners, on_a_mac, process, starts_at_boot, unprivileged

NAME = "boxwright-postgresql"


def test_running_and_enabled(host: Any) -> None:
    """It runs and starts at boot."""
    assert process(host, NAME)
    assert starts_at_boot(host, NAME)


def test_loopback_only(host: Any, box: Any) -> None:
    """It is on loopback and nowhere else."""
    assert listeners(host, box.postgresql.port) == {"127.0.0.1"}


def test_is_not_root(host: Any) -> None:
    """It has an account of its own, and no capability."""
    assert unprivileged(host, NAME, NAME)


def test_nobody_comes_in_without_a_password(host: Any, box: Any) -> None:
    """Neither by the socket nor by the port anybody comes in who is not the administrator or has the password."""
    nobody = "sudo -n -H -u nobody sh -c" if on_a_mac(host) else "su -s /bin/sh nobody -c"
    psql = f"cd / && {box.postgresql.programs}/psql -XAtw --list"
    folder = f"{'/var/run' if on_a_mac(host) else '/run'}/{NAME}"
    for database in box.postgresql.databases(box):
        for where in (folder, "127.0.0.1"):
            name, port = database.name, box.postgresql.port
            ended = host.run(f"{nobody} '{psql} -h {where} -p {port} -U {name}'")
            assert (ended.rc, ended.stdout) == (2, "")


def test_data_is_its_own(host: Any) -> None:
    """Only the account can look into its data."""
    folder = host.file("/var/lib/boxwright/postgresql")
    assert folder.mode == 0o700
    assert folder.user == (f"_{NAME}" if on_a_mac(host) else NAME)


@pytest.mark.system("linux")
def test_copies_are_scheduled(host: Any, box: Any) -> None:
    """A timer copies the databases, where copies are kept."""
    wanted = bool(box.postgresql.backups and box.postgresql.databases(box))
    assert host.service(f"{NAME}-backup.timer").is_running is wanted


@pytest.mark.system("linux")
def test_sandbox(host: Any) -> None:
    """systemd rates the exposure of the service 1.5 or better."""
    assert exposure(host, NAME) <= 1.5
