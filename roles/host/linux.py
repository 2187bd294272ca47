"""The host role on Debian and Ubuntu."""

from boxwright.operations import apt, files, guard, power, services, system, users
from boxwright.preflight import Machine
from boxwright.services import PackagedService
from boxwright.templates import render
from roles.registry import Box

# curl and the certificates serve downloads and readiness probes; Python, the programs that come as wheels.
PACKAGES = ("ca-certificates", "curl", "python3", "python3-venv", "tzdata")
TIME_SERVICE = "systemd-timesyncd"
TIME_SETTINGS = "/etc/systemd/timesyncd.conf.d/boxwright.conf"
TIMESYNCD = PackagedService(name=TIME_SERVICE, restart_files=(TIME_SETTINGS,))
# Read after the distribution's own file, 50unattended-upgrades.
UPGRADES = "/etc/apt/apt.conf.d/52boxwright-unattended-upgrades"
TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer")
# As the distributions' own files have them. ESM is Ubuntu's extended security maintenance.
SECURITY = {
    "debian": (
        "origin=Debian,codename=${distro_codename}-security,label=Debian-Security",
        "origin=Debian,codename=${distro_codename},label=Debian-Security",
    ),
    "ubuntu": (
        "origin=Ubuntu,archive=${distro_codename}-security",
        "origin=UbuntuESMApps,archive=${distro_codename}-apps-security",
        "origin=UbuntuESM,archive=${distro_codename}-infra-security",
    ),
}
UPDATES = {
    "debian": (
        "origin=Debian,codename=${distro_codename},label=Debian",
        "origin=Debian,codename=${distro_codename}-updates",
    ),
    "ubuntu": ("origin=Ubuntu,archive=${distro_codename}", "origin=Ubuntu,archive=${distro_codename}-updates"),
}


def upgrades_text(box: Box, distribution: str) -> str:
    """The settings of unattended-upgrades."""
    settings = box.host
    updates = UPDATES[distribution] if settings.unattended_upgrades == "all" else ()
    return render(
        "host/upgrades.conf.j2",
        policy=settings.unattended_upgrades,
        origins=(*SECURITY[distribution], *updates, *settings.upgrade_origins),
        reboot=settings.upgrade_reboot,
        # apt.conf(5) knows backslashes only as themselves.
        # With the driver that it installs, the role nvidia holds more.
        holds=tuple(dict.fromkeys((*settings.upgrade_holds, *box.nvidia.held))),
    )


def keeps_time(box: Box, machine: Machine) -> bool:
    """Whether systemd-timesyncd is to keep the clock: no other service does, and the clock is the box's own."""
    return box.host.time_sync and not machine.container and machine.time_service in ("", TIME_SERVICE)


def updates_itself(box: Box) -> bool:
    """Whether the box installs updates by itself because of our settings."""
    return box.host.unattended_upgrades in ("security", "all")


def install(box: Box, machine: Machine) -> None:
    """Packages."""
    wanted = [*PACKAGES, *box.host.packages]
    if keeps_time(box, machine):
        wanted.append(TIME_SERVICE)
    if updates_itself(box):
        wanted.append("unattended-upgrades")
    apt.packages(wanted, name="host: install base packages")


def configure(box: Box, machine: Machine) -> None:
    """Time zone, accounts, updates."""
    system.timezone(name="host: set the time zone", zone=box.host.timezone)
    users.users(box.host.users, name="host: accounts")
    files.content(
        name="host: write what is updated without a person",
        path=UPGRADES,
        text=upgrades_text(box, machine.distribution),
        validate="apt-config -c {path} dump",
    )
    if keeps_time(box, machine):
        if box.host.time_servers:
            files.directory(name="host: folder for time servers", path=TIME_SETTINGS.rpartition("/")[0])
            servers = render("host/timesyncd.conf.j2", servers=box.host.time_servers)
            files.content(name="host: write the time servers", path=TIME_SETTINGS, text=servers)
        else:
            files.absent(name="host: the distribution's time servers", path=TIME_SETTINGS)
        services.unit(name="host: note what the time service was started with", service=TIMESYNCD)


def activate(box: Box, machine: Machine) -> None:
    """Awake, with a clock that is kept, and updated as declared."""
    if box.host.sleep == "never":
        power.stay_awake(name="host: never sleep")
    else:
        power.may_sleep(name="host: may sleep")
    if keeps_time(box, machine):
        services.running(name="host: time service running", service=TIMESYNCD)
    if updates_itself(box):
        system.enabled(TIMERS, name="host: daily updates")


def remove(box: Box, purge: bool) -> None:
    """Takes back packages, settings and boxwright's folders. Accounts and time zone stay: people may be signed in."""
    guard.absent(name="host: remove what undoes changes")
    power.may_sleep(name="host: may sleep")
    files.absent(name="host: remove what is updated without a person", path=UPGRADES)
    files.absent(name="host: remove the time servers", path=TIME_SETTINGS)
    services.unit_absent(name="host: remove the note of the time service", service=TIMESYNCD)
    packages = [*PACKAGES, *box.host.packages, TIME_SERVICE, "unattended-upgrades"]
    apt.packages_absent(packages, name="host: remove base packages")
    files.absent(name="host: remove the folder of settings", path="/etc/boxwright", recursive=True)
    files.absent(name="host: remove the folder of programs", path="/opt/boxwright", recursive=True)
    files.absent(name="host: remove the folder of notes", path="/run/boxwright", recursive=True)
    if purge:
        files.absent(name="host: remove the folder of data", path="/var/lib/boxwright", recursive=True)
