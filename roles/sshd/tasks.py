"""Tasks of the sshd role."""

from pyinfra import host

from boxwright.errors import Problem
from boxwright.facts.sshd import Sshd, SshdState
from boxwright.guard import DEADLINE
from boxwright.operations import guard, sshd
from boxwright.preflight import PreflightRefused
from boxwright.templates import render
from roles.registry import Box

# Before 50-cloud-init.conf, which says `PasswordAuthentication yes` on cloud images with a password, and before
# 01-... of others: sshd takes the first value that it finds, and the main file begins by including this folder.
DROP_IN = "/etc/ssh/sshd_config.d/00-boxwright.conf"


def drop_in(box: Box) -> str:
    """The file in sshd_config.d."""
    settings = box.sshd
    return render("sshd/sshd_config.j2", passwords=settings.passwords, root=settings.root, options=settings.options)


def effective(box: Box) -> dict[str, tuple[str, ...]]:
    """What `sshd -T` must say then; it knows an old name for one of the values."""
    settings = box.sshd
    root = ("prohibit-password", "without-password") if settings.root == "prohibit-password" else (settings.root,)
    wanted: dict[str, tuple[str, ...]] = {"permitrootlogin": root, "passwordauthentication": ("yes",)}
    if not settings.passwords:
        wanted |= {"passwordauthentication": ("no",), "kbdinteractiveauthentication": ("no",)}
    return wanted


def unfit(box: Box, found: SshdState, by_password: bool) -> list[Problem]:
    """Why the hardening would shut its operator out; empty when it would not."""
    problems = []

    def problem(code: str, variable: str, message: str, help: str) -> None:
        problems.append(Problem(code=code, variable=variable, message=message, help=help, host=box.name))

    if not found.installed:
        problem("BW147", "sshd_enabled", "there is no sshd on the box", "install it, or set `sshd_enabled: false`")
        return problems
    if not box.sshd.passwords and by_password:
        problem(
            "BW147",
            "sshd_passwords",
            "boxwright signs in by `ansible_password`, which would not be accepted any more",
            f"bring a key to the box (ssh-copy-id {found.user}@...) and remove `ansible_password`; or set "
            "`sshd_passwords: true`",
        )
    elif not box.sshd.passwords and not found.keys and not found.others:
        problem(
            "BW147",
            "sshd_passwords",
            f"no key of {found.user} is on the box, who could not sign in any more",
            f"bring one: ssh-copy-id {found.user}@...; or set `sshd_passwords: true`",
        )
    if box.sshd.root == "no" and found.user == "root":
        problem(
            "BW147",
            "sshd_root",
            "boxwright signs in as root, who could not sign in any more",
            "sign in by another account, with `ansible_become: true`; or set `sshd_root: prohibit-password`",
        )
    return problems


def apply(box: Box, deadline: int = DEADLINE) -> None:
    """All stages, in order; where it is not wanted, sshd has its own settings. `deadline` is in seconds."""
    if not box.has("sshd"):
        return
    if not box.sshd.enabled:
        sshd.drop_in_absent(DROP_IN, name="sshd: no settings of ours")
        return
    found: SshdState = host.get_fact(Sshd, path=DROP_IN)
    connection = getattr(host.connector, "connection", None)
    if problems := unfit(box, found, bool(connection and connection.password)):
        raise PreflightRefused(problems)
    configure()
    activate(box, deadline)


def configure() -> None:
    """What undoes a change."""
    guard.ready(name="sshd: ready to undo a change")


def activate(box: Box, deadline: int) -> None:
    """The settings in force."""
    sshd.drop_in(DROP_IN, drop_in(box), effective(box), deadline, name="sshd: settings in force")


def remove(box: Box, purge: bool) -> None:
    """sshd has its own settings again."""
    if not box.has("sshd"):
        return
    sshd.drop_in_absent(DROP_IN, name="sshd: no settings of ours")
