"""What decides whether a Mac comes back by itself: FileVault, updates that restart it, automatic login."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.preflight.darwin import FileVault
from boxwright.preflight.darwin import filevault as parse_filevault
from boxwright.shell import script


@dataclass(frozen=True)
class StartState:
    """`filevault` is empty where it could not be seen; `filevault_said` is what `fdesetup status` printed.
    `looks_for_updates`, `installs_updates` and `installs_responses` are None where macOS keeps no such setting, so that
    its default holds. `login` is the account that is signed in at each start, empty where there is none.
    """

    filevault: FileVault
    filevault_said: str
    looks_for_updates: bool | None = None
    installs_updates: bool | None = None
    installs_responses: bool | None = None
    login: str = ""


def parse_schedule(text: str) -> bool | None:
    """Whether macOS looks for updates, by what `softwareupdate --schedule` prints."""
    words = text.strip().rstrip(".").split()
    return {"on": True, "off": False}.get(words[-1]) if words and "checking" in text else None


class Unattended(Fact[StartState]):
    """The `StartState` of a Mac."""

    def command(self) -> StringCommand:
        return script(
            """
            fdesetup status 2>&1 | sed 's/^/filevault=/'
            softwareupdate --schedule 2>/dev/null | sed 's/^/schedule=/'
            # A key that is not there is an error, with another text in each release.
            kept() { defaults read "/Library/Preferences/$1" "$2" 2>/dev/null | sed "s/^/$3=/"; }
            kept com.apple.SoftwareUpdate AutomaticallyInstallMacOSUpdates updates
            kept com.apple.SoftwareUpdate CriticalUpdateInstall responses
            kept com.apple.loginwindow autoLoginUser login
            echo end
            """
        )

    def process(self, output: Sequence[str]) -> StartState:
        *lines, last = output
        if last != "end":
            raise FactProcessError(f"what is known of the start is cut off at {last!r}")
        values: dict[str, list[str]] = {}
        for line in lines:
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
        said = "\n".join(values.get("filevault", ()))

        def switch(key: str) -> bool | None:
            return {"1": True, "0": False}.get("".join(values.get(key, ())).strip())

        return StartState(
            filevault=parse_filevault(values.get("filevault", ())),
            filevault_said=said,
            looks_for_updates=parse_schedule("\n".join(values.get("schedule", ()))),
            installs_updates=switch("updates"),
            installs_responses=switch("responses"),
            login="".join(values.get("login", ())).strip(),
        )
