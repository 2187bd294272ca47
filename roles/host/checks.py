"""What must hold of the operating system."""

from typing import Any

import pytest


def test_no_failed_unit(host: Any) -> None:
    """No unit of systemd has failed."""
    failed = host.check_output("systemctl list-units --failed --plain --no-legend").split("\n")
    assert [line.split()[0] for line in failed if line] == []


def test_timezone(host: Any, box: Any) -> None:
    """The time zone is the declared one."""
    assert host.file("/etc/localtime").linked_to == f"/usr/share/zoneinfo/{box.host.timezone}"


def test_packages(host: Any, box: Any) -> None:
    """Declared packages are installed."""
    missing = [name for name in ("ca-certificates", "curl", *box.host.packages) if not host.package(name).is_installed]
    assert missing == []


def test_users(host: Any, box: Any) -> None:
    """Declared accounts exist, in their groups, with their keys."""
    if not box.host.users:
        pytest.skip("no account is declared")
    for user in box.host.users:
        account = host.user(user.name)
        assert account.exists, user.name
        assert set(user.groups) <= set(account.groups), user.name
        if user.ssh_keys:
            authorized = host.file(f"{account.home}/.ssh/authorized_keys")
            assert (authorized.user, authorized.mode) == (user.name, 0o600)
            assert set(user.ssh_keys) <= set(authorized.content_string.splitlines())


def test_awake(host: Any, box: Any) -> None:
    """The machine cannot be suspended."""
    if box.host.sleep != "never":
        pytest.skip("the machine may sleep")
    targets = "sleep.target suspend.target hibernate.target hybrid-sleep.target suspend-then-hibernate.target"
    assert set(host.run(f"systemctl is-enabled {targets}").stdout.split()) == {"masked"}


def test_updates(host: Any, box: Any) -> None:
    """What is held is not updated without a person, and updates are on or off as declared."""
    settings = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist").splitlines()
    missing = [
        name
        for name in (*box.host.upgrade_holds, *box.nvidia.held)
        if not any(f'"{name}"' in line for line in settings)
    ]
    assert missing == []
    wanted = {"never": "0", "security": "1", "all": "1"}.get(box.host.unattended_upgrades)
    if wanted is not None:
        assert f'"{wanted}"' in host.check_output("apt-config dump APT::Periodic::Unattended-Upgrade")
    if wanted == "1":
        assert host.package("unattended-upgrades").is_installed
        assert host.check_output("systemctl is-active apt-daily-upgrade.timer") == "active"


def test_nothing_of_ours_is_open_to_all(host: Any) -> None:
    """No file of boxwright can be written by other users."""
    # Which of the folders there are depends on what the box has.
    folders = "/etc/boxwright /opt/boxwright /var/lib/boxwright"
    found = host.check_output(f"for each in {folders}; do [ ! -e $each ] || find $each -perm /022 ! -type l; done")
    assert found == ""
