"""Tasks of the fail2ban role."""

from boxwright.operations import apt, fail2ban, files, services
from boxwright.services import PackagedService
from boxwright.templates import render
from roles.registry import Box

NAME = "boxwright-gateway"
JAIL = "/etc/fail2ban/jail.d/boxwright.local"
FILTER = f"/etc/fail2ban/filter.d/{NAME}.local"
# Read before everything else in that folder, so that each other file there, and jail.local, has the last word.
SSHD = "/etc/fail2ban/jail.d/boxwright-sshd.conf"
# Where Open WebUI 0.12 takes a password; a wrong one it answers with 400.
LOGIN = "/api/v1/auths/signin"
FILES = (JAIL, FILTER, SSHD)

# Its start returns before it has read its settings: what it is asked here is whether the jail is there by now.
ANSWERS = (
    "/bin/sh",
    "-c",
    'for try in $(seq 100); do said=$(fail2ban-client status "$1" 2>&1) && exit; sleep 0.1; done; echo "$said"; exit 1',
    "answers",
    NAME,
)
SERVICE = PackagedService(
    name="fail2ban",
    restart_files=FILES,
    # It ends with 255 when there is no log yet, and the package's unit would then leave it at that.
    settings={"Restart": "on-failure", "RestartPreventExitStatus": "", "RestartSec": "5"},
)

# The packages of the distribution: nftables does the banning; python3-systemd reads the journal for the jail of sshd,
# which comes with the package and is on (only Debian 13 installs it by itself).
PACKAGES = ("fail2ban", "nftables", "python3-systemd")


def _any_way(path: str) -> str:
    """A regular expression for `path` as a client may write it: each character may also be percent-encoded."""
    return "".join(f"(?:{char}|%{ord(char):02X}|%{ord(char):02x})" for char in path)


def filter_text() -> str:
    """What counts as an attempt."""
    return render("fail2ban/filter.local.j2", login=_any_way(LOGIN).replace("%", "%%"))


def jail(box: Box) -> str:
    """The jail: which log is read, when somebody is banned and from what."""
    ports = [box.gateway.port, *([box.gateway.http_port] if box.gateway.http_port else [])]
    settings = box.fail2ban
    return render(
        "fail2ban/jail.local.j2",
        name=NAME,
        log=box.gateway.access_log(box),
        ports=ports,
        attempts=settings.attempts,
        window=settings.window,
        ban=settings.ban,
        spared=settings.spared(box),
    )


def apply(box: Box) -> None:
    """All stages, in order; where it is not wanted, nobody is banned by it any more."""
    if not box.has("fail2ban"):
        return
    if not box.fail2ban.enabled:
        fail2ban.jail_absent(NAME, FILES, name="fail2ban: no jail")
        return
    install(box)
    configure(box)
    activate(box)


def install(box: Box) -> None:
    """The program, and the packet filter's."""
    apt.packages(PACKAGES, name="fail2ban: install the program")


def configure(box: Box) -> None:
    """The jail and what it looks for in the log."""
    files.content(name="fail2ban: write what counts", path=FILTER, text=filter_text())
    files.content(name="fail2ban: write the jail", path=JAIL, text=jail(box))
    sshd = render("fail2ban/sshd.conf.j2", spared=box.fail2ban.spared(box))
    files.content(name="fail2ban: where sshd's messages are", path=SSHD, text=sshd)
    services.unit(name="fail2ban: note what it was started with", service=SERVICE)


def activate(box: Box) -> None:
    """Running, with the declared jail. Bans that are in force outlive a restart."""
    services.running(name="fail2ban: running", service=SERVICE, answers=ANSWERS)
    fail2ban.jail(NAME, JAIL, name="fail2ban: watching")


def remove(box: Box, purge: bool) -> None:
    """Ends all bans and takes everything back; the package only when boxwright installed it."""
    if not box.has("fail2ban"):
        return
    fail2ban.jail_absent(NAME, FILES, name="fail2ban: no jail")
    services.unit_absent(name="fail2ban: remove the note", service=SERVICE)
    apt.packages_absent(PACKAGES, purge=purge, name="fail2ban: remove the program")
