"""Whether a Mac comes back by itself after a power cut or an update, in words."""

from collections.abc import Iterator

from boxwright.errors import Problem
from boxwright.facts.unattended import StartState
from boxwright.preflight.darwin import FileVault


def problem(filevault: FileVault, accepted: bool) -> Problem | None:
    """FileVault keeps everything of ours from starting until somebody gives a password; None where it is off, where
    that is `accepted`, or where it could not be seen.
    """
    if filevault != "on" or accepted:
        return None
    return Problem(
        code="BW119",
        variable="power_accept_filevault",
        message="FileVault is on: after a power cut the Mac waits for a password, and serves nothing until somebody "
        "gives it",
        help="turn it off in System Settings > Privacy & Security > FileVault, which boxwright never does; or set "
        "`power_accept_filevault: true` when somebody will unlock the Mac after each start, at its keyboard or, from "
        "macOS 26 on, over SSH with a password",
    )


def agents(found: StartState | None, user: str) -> str:
    """What it means that engines run in the session of `user`."""
    first = f"the engines run in the session of {user}: nothing is served after a start of the Mac"
    if found and found.login == user and found.filevault == "off":
        return f"{first} until it has signed {user} in by itself, nor when {user} has signed out"
    unlocked = "it is unlocked and " if found and found.filevault == "on" else ""
    return (
        f"{first}, as after a power cut, until {unlocked}{user} signs in at its screen, nor when {user} has signed "
        "out; without `inference_agent_user` they serve from the boot on"
    )


def words(found: StartState, agent: str = "") -> Iterator[str]:
    """What the operator should know of the next start, one sentence for each thing; `agent` is in whose session the
    engines run.
    """
    if found.filevault == "on":
        yield (
            "FileVault is on: after each start somebody must unlock the Mac, at its keyboard or, from macOS 26 on, "
            "over SSH with a password (keys do not work then); for a planned restart, `sudo fdesetup authrestart` "
            "unlocks it once"
        )
    elif found.filevault == "":
        yield f"whether FileVault is on could not be seen; `fdesetup status` said: {found.filevault_said or 'nothing'}"
    if found.installs_updates:
        yield (
            "macOS installs updates by itself, and restarts for them: whoever asks then gets no answer for some "
            "minutes. System Settings > General > Software Update decides it"
        )
    elif found.looks_for_updates is False:
        yield (
            "macOS does not look for updates: somebody else must, with `softwareupdate --list` (System Settings > "
            "General > Software Update)"
        )
    if found.installs_responses is False:
        yield "security responses are not installed by themselves: see Software Update in System Settings"
    if found.login and found.login != agent:
        yield (
            f"{found.login} is signed in at each start without a password, for whoever sits in front of the Mac; "
            "boxwright needs nobody to be signed in (System Settings > Users & Groups)"
        )
