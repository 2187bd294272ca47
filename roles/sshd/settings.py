"""Variables of the sshd role."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from boxwright.errors import Problem
from boxwright.settings import RoleSettings

# Directives and values of sshd_config(5) that hold no line break, so that none smuggles a `Match` in.
Directive = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]{1,63}$")]
Value = Annotated[str, Field(pattern=r'^[^\s#"][^\n#"]{0,511}$')]

# What this role decides itself, and what would take the way in or change where it is.
OWN = ("passwordauthentication", "kbdinteractiveauthentication", "challengeresponseauthentication", "permitrootlogin")
NOT_HERE = ("port", "listenaddress", "match", "include", "authorizedkeysfile", "usepam")


class SshdSettings(RoleSettings, prefix="sshd", systems={"linux"}):
    """Hardening of SSH: keys instead of passwords, and root not by password."""

    enabled: bool = Field(
        False,
        description="Write these settings. When it is set to false later, sshd has its own ones again.",
    )
    passwords: bool = Field(False, description="Whether an account may sign in by its password.")
    root: Literal["no", "prohibit-password", "yes"] = Field(
        "prohibit-password",
        description="Whether root may sign in: not at all, by key, or as `sshd_passwords` says.",
    )
    options: dict[Directive, Value] = Field(
        {},
        description="Further directives of sshd_config(5) with their values.",
        examples=[{"MaxAuthTries": "4", "X11Forwarding": "no", "AllowGroups": "ssh-users"}],
    )

    def problems(self, box: Any) -> Iterable[Problem]:
        """Refuses what has a variable of its own, and what this role must not touch."""
        for name in self.options:
            if name.lower() in (*OWN, *NOT_HERE):
                own = name.lower() in OWN
                yield Problem(
                    code="BW146",
                    variable="sshd_options",
                    message=f"`sshd_options` has {name}, "
                    + ("which other variables decide" if own else "which is left to the administrator of the box"),
                    help="use `sshd_passwords` and `sshd_root`"
                    if own
                    else "write it into a file of your own in /etc/ssh/sshd_config.d, at the box",
                )
