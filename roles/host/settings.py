"""Variables of the host role."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from boxwright.describe import Words
from boxwright.errors import Problem
from boxwright.settings import ByteSize, On, RoleSettings
from boxwright.sizes import human

# A driver whose kernel module is loaded must not get another user space; a container engine must not be restarted.
HELD = (
    "nvidia-",
    "libnvidia-",
    "linux-(modules|objects|signatures)-nvidia-",
    "xserver-xorg-video-nvidia",
    "cuda-",
    "libcuda",
    "libcudnn",
    "libnccl",
    "docker",
    "containerd",
    "runc$",
)


# What macOS itself needs beside the memory of its graphics processor.
KEPT_BY_MACOS = 8 * 2**30


def spared(wired: int | None, memory: int, whose: str) -> Iterable[Problem]:
    """Refuses more memory for the graphics processor than is left of `memory`; bytes. `whose` says who has it."""
    if wired is not None and wired > memory - KEPT_BY_MACOS:
        yield Problem(
            code="BW120",
            variable="host_wired_memory",
            message=f"`host_wired_memory` is {human(wired)}, and {whose} {human(memory)}, of which macOS needs "
            f"{human(KEPT_BY_MACOS)}",
            help=f"{human(max(0, memory - KEPT_BY_MACOS))} at most; or remove the line to have macOS's own limit",
        )


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return text


FolderPath = Annotated[
    str,
    StringConstraints(pattern=r"^(/[^/\n]+)+$"),
    Words("the absolute path of a folder, such as /Users/Shared/models"),
]
Server = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:-]+$"), Words("a name or an address")]
# Neither may end the string of apt.conf(5) that it is put into.
Origin = Annotated[
    str, StringConstraints(pattern=r'^[^"\\\n;]+=[^"\\\n;]+$'), Words("a pattern such as `origin=Debian`")
]
PackagePattern = Annotated[
    str,
    StringConstraints(pattern=r'^[^"\n;]+$'),
    AfterValidator(_regular_expression),
    Words("a regular expression for names of packages"),
]


class User(BaseModel):
    """A person's account on the box."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$", description="Account name.")
    groups: tuple[str, ...] = Field((), description="Further groups of the account.")
    ssh_keys: tuple[str, ...] = Field(
        (), description="Public keys that may sign in over SSH, one `authorized_keys` line each."
    )
    sudo: Literal["none", "password", "passwordless"] = Field("none", description="What the account may do with sudo.")


class HostSettings(RoleSettings, prefix="host"):
    """The operating system below everything else: packages, time zone, accounts."""

    timezone: str = Field(
        "Etc/UTC",
        pattern=r"^[A-Za-z0-9_+/-]+$",
        description="Time zone of the box, as in /usr/share/zoneinfo.",
        examples=["Europe/Berlin"],
    )
    packages: tuple[str, ...] = Field(
        (),
        description="Further packages to install: of the distribution, on a Mac of Homebrew, which must be there and "
        "belong to the account that boxwright comes as.",
        examples=[["htop", "tmux"]],
    )
    users: tuple[User, ...] = Field(
        (),
        description="Accounts of people. An account that is taken out of this list stays on the box.",
        examples=[[{"name": "ada", "groups": ["adm"], "sudo": "password"}]],
    )
    sleep: Literal["never", "as_is"] = Field(
        "never",
        description="Whether the machine may sleep. `never` also means that closing a laptop's lid does nothing; "
        "`as_is` leaves it to the system. On a Mac it is the role power that sees to it.",
    )
    time_sync: bool = Field(
        True,
        description="See that the clock is kept by a time service: the one that the box has (chrony, ntpsec ...), else "
        "systemd-timesyncd; on a Mac, macOS's own. A container has the clock of its machine.",
    )
    time_servers: tuple[Server, ...] = Field(
        (),
        description="Time servers (NTP) for systemd-timesyncd, where those of the distribution cannot "
        "be reached. Empty: the distribution's. Another time service keeps its own. A Mac asks one server.",
        examples=[["192.0.2.1", "time.example.org"]],
    )
    unattended_upgrades: Literal["as_is", "never", "security", "all"] = On(
        "linux",
        "as_is",
        description="Which updates the box installs by itself each day (unattended-upgrades): security updates, all of "
        "the distribution, or none; `as_is` leaves it to the system, which on Ubuntu means security updates.",
    )
    upgrade_origins: tuple[Origin, ...] = On(
        "linux",
        (),
        description="Further origins of such updates, such as `origin=Example,suite=${distro_codename}`. Needs "
        "`host_unattended_upgrades` to be `security` or `all`.",
    )
    upgrade_reboot: str = On(
        "linux",
        "never",
        pattern=r"^(never|([01][0-9]|2[0-3]):[0-5][0-9])$",
        description="When the box boots by itself after an update that asks for it: `never`, or a time such as "
        "`04:30`. Needs `host_unattended_upgrades` to be `security` or `all`.",
    )
    upgrade_holds: tuple[PackagePattern, ...] = On(
        "linux",
        HELD,
        description="Packages that are never updated without a person: regular expressions that fit the beginning of "
        "a name. An update of a driver or a container engine in the middle of the night ends what runs on it. They "
        "hold whoever configured the updates; `apt upgrade` by hand updates them.",
    )
    computer_name: str = On(
        "darwin",
        "",
        pattern=r"^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)?$",
        description="Name of the Mac in Finder and in the network. Empty: the one that it has. It stays when boxwright "
        "is removed.",
        examples=["studio-1"],
    )
    model_folders: tuple[FolderPath, ...] = On(
        "darwin",
        (),
        description="Further folders with models, beside /var/lib/boxwright: Spotlight does not index them, and Time "
        "Machine does not back them up. They must exist.",
        examples=[["/Users/Shared/models"]],
    )
    screen_sharing: bool = On(
        "darwin",
        False,
        description="Switch Screen Sharing on. When it is set to false later, it is switched off if boxwright switched "
        "it on. Since macOS 12.1 it may show and move nothing until it is switched on by hand once.",
    )
    wired_memory: ByteSize | None = On(
        "darwin",
        None,
        description="Memory that the graphics processor may use (iogpu.wired_limit_mb), where macOS's own limit, about "
        "three quarters of a large Mac's memory, is too little for a model. 8 GiB less than the Mac has at most.",
        examples=["112GiB"],
    )
    container_socket: str = On(
        "darwin",
        "",
        pattern=r"^(/[^\n'|\x22]+)?$",
        description="Socket of the container runtime that a role in a container uses on a Mac. Empty: the one that is "
        "found in the home folders and answers; where several do, one must be named.",
        examples=["/Users/ada/.colima/default/docker.sock"],
    )
    memory: ByteSize | None = Field(
        None,
        description="Memory of the machine. When set, a model that does not fit is refused before "
        "the first connection; it is measured on the box in any case.",
        examples=["64GiB"],
    )
    disk: ByteSize | None = Field(
        None,
        description="Disk space that models may fill. When set, it is checked before the first "
        "connection; free space is measured on the box in any case.",
        examples=["500GiB"],
    )

    def problems(self, box: Any) -> Iterable[Problem]:
        """Refuses what would have no effect, or cannot be."""
        if self.memory is not None:
            yield from spared(self.wired_memory, self.memory, "`host_memory` says the machine has")
        if box.system == "darwin":
            if len(self.time_servers) > 1:
                yield Problem(
                    code="BW022",
                    variable="host_time_servers",
                    message="`host_time_servers` has several servers, and a Mac asks one",
                    help="keep one of them for Macs, in group_vars/darwin.yml",
                )
            return
        if self.unattended_upgrades in ("security", "all"):
            return
        for name, is_set in (
            ("upgrade_reboot", self.upgrade_reboot != "never"),
            ("upgrade_origins", self.upgrade_origins),
        ):
            if is_set:
                yield Problem(
                    code="BW022",
                    variable=f"host_{name}",
                    message=f"`host_{name}` has no effect: `host_unattended_upgrades` is `{self.unattended_upgrades}`",
                    help="set `host_unattended_upgrades: security`, or `all`",
                )
