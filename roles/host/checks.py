"""What must hold of the operating system."""

from typing import Any

import pytest

LINUX, MAC = pytest.mark.system("linux"), pytest.mark.system("darwin")


@LINUX
def test_no_failed_unit(host: Any) -> None:
    """No unit of systemd has failed."""
    failed = host.check_output("systemctl list-units --failed --plain --no-legend").split("\n")
    assert [line.split()[0] for line in failed if line] == []


@LINUX
def test_timezone(host: Any, box: Any) -> None:
    """The time zone is the declared one."""
    assert host.file("/etc/localtime").linked_to == f"/usr/share/zoneinfo/{box.host.timezone}"


@LINUX
def test_packages(host: Any, box: Any) -> None:
    """Declared packages are installed."""
    missing = [name for name in ("ca-certificates", "curl", *box.host.packages) if not host.package(name).is_installed]
    assert missing == []


@LINUX
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


@LINUX
def test_awake(host: Any, box: Any) -> None:
    """The machine cannot be suspended."""
    if box.host.sleep != "never":
        pytest.skip("the machine may sleep")
    targets = "sleep.target suspend.target hibernate.target hybrid-sleep.target suspend-then-hibernate.target"
    assert set(host.run(f"systemctl is-enabled {targets}").stdout.split()) == {"masked"}


@LINUX
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
    open_to = r"\( -perm -020 -o -perm -002 \)"
    found = host.check_output(f"for each in {folders}; do [ ! -e $each ] || find $each {open_to} ! -type l; done")
    assert found == ""


@MAC
def test_timezone_of_a_mac(host: Any, box: Any) -> None:
    """The time zone is the declared one."""
    assert host.check_output("readlink /etc/localtime").endswith(f"/zoneinfo/{box.host.timezone}")


@MAC
def test_clock_of_a_mac(host: Any, box: Any) -> None:
    """The clock is kept by a time server."""
    if not box.host.time_sync:
        pytest.skip("host_time_sync is false")
    # It says so on standard output, and succeeds, when it may not be asked.
    said = host.check_output("systemsetup -getusingnetworktime").splitlines()[-1]
    assert said.lower() == "network time: on", said


@MAC
def test_packages_of_homebrew(host: Any, box: Any) -> None:
    """Declared packages are installed."""
    if not box.host.packages:
        pytest.skip("no package is declared")
    names = [name.rpartition("/")[2] for name in box.host.packages]
    assert [name for name in names if not host.file(f"/opt/homebrew/Cellar/{name}").is_directory] == []


@MAC
def test_users_of_a_mac(host: Any, box: Any) -> None:
    """Declared accounts exist, in their groups, with their keys."""
    if not box.host.users:
        pytest.skip("no account is declared")
    for user in box.host.users:
        assert host.run(f"id -u {user.name}").rc == 0, user.name
        for group in user.groups:
            assert host.run(f"dseditgroup -o checkmember -m {user.name} {group}").rc == 0, f"{user.name} in {group}"
        if user.ssh_keys:
            home = host.check_output(f"dscl . -read /Users/{user.name} NFSHomeDirectory").partition(":")[2].strip()
            authorized = host.check_output(f"cat {home}/.ssh/authorized_keys")
            assert set(user.ssh_keys) <= set(authorized.splitlines())


@MAC
def test_remote_login(host: Any) -> None:
    """Remote Login, by which boxwright comes, begins with the Mac."""
    if host.backend.connection.kind == "local":
        pytest.skip("boxwright runs on the Mac itself")
    assert host.run("launchctl print system/com.openssh.sshd").rc == 0
    assert '"com.openssh.sshd" => disabled' not in host.check_output("launchctl print-disabled system")


@MAC
def test_name_of_a_mac(host: Any, box: Any) -> None:
    """The Mac has the declared name."""
    if not box.host.computer_name:
        pytest.skip("no name is declared")
    names = {host.check_output(f"scutil --get {kind}") for kind in ("ComputerName", "LocalHostName", "HostName")}
    assert names == {box.host.computer_name}


@MAC
def test_models_are_not_indexed(host: Any, box: Any) -> None:
    """Spotlight leaves folders with models alone."""
    folders = ("/var/lib/boxwright", *box.host.model_folders)
    assert [one for one in folders if not host.file(f"{one}/.metadata_never_index").exists] == []


@MAC
def test_models_are_not_backed_up(host: Any, box: Any) -> None:
    """Time Machine leaves folders with models out."""
    for folder in ("/var/lib/boxwright", *box.host.model_folders):
        said = host.run(f"tmutil isexcluded '{folder}'")
        if not said.stdout.startswith("[Excluded]"):
            pytest.skip(f"it does not, {folder}: it may be told only by programs with Full Disk Access (docs/mac.md)")


@MAC
def test_memory_for_graphics(host: Any, box: Any) -> None:
    """The graphics processor may use the declared memory, from the next start on too."""
    if box.host.wired_memory is None:
        pytest.skip("host_wired_memory is not set")
    wanted = str(int(box.host.wired_memory) // 2**20)
    assert host.check_output("sysctl -n iogpu.wired_limit_mb") == wanted
    assert f"iogpu.wired_limit_mb={wanted}" in host.check_output(
        "plutil -extract ProgramArguments.1 raw /Library/LaunchDaemons/boxwright.wired-limit.plist"
    )


@MAC
def test_screen_sharing(host: Any, box: Any) -> None:
    """Screen Sharing is on where it is declared."""
    if not box.host.screen_sharing:
        pytest.skip("host_screen_sharing is false")
    assert host.run("launchctl print system/com.apple.screensharing").rc == 0
