"""Which program is where on a Mac, and what stands for it here.

`PROGRAMS` is module to names, `PLACES` folder to names. A name in `PLACES` that is in no module of `PROGRAMS` is
Debian's own program: behind `gate` where that lists its options, as it is otherwise. What is not here does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

PROGRAMS = {
    "launchctl": "launchctl shutdown reboot halt loginwindow",
    "accounts": "dscl dseditgroup dsmemberutil dscacheutil sysadminctl createhomedir id groups",
    "power": "pmset caffeinate",
    "identity": "uname arch sw_vers sysctl system_profiler scutil ioreg vm_stat nvram uptime",
    "files": "stat readlink realpath mktemp df xattr base64 md5 wc find sed date head xargs cp ls chflags lockf "
    "path_helper",
    "plists": "defaults plutil PlistBuddy",
    "firewall": "socketfilterfw pfctl",
    "volumes": "mdutil tmutil diskutil",
    "security": "fdesetup csrutil spctl codesign softwareupdate systemsetup xcode_stub xcode_select",
    "logs": "newsyslog log",
    "sockets": "lsof netstat sntp ifconfig ipconfig route",
    "processes": "ps pgrep pkill killall",
    "brew": "brew",
}
STUBS = "python3 git cc clang gcc make ld nm strip otool swift xcodebuild xcrun pip3 gm4 m4 svn"
PLACES = {
    "/bin": "[ bash cat chmod cp dash date dd df echo expr hostname kill launchctl link ln ls mkdir mv ps pwd realpath "
    "rm rmdir sh sleep stty sync test unlink zsh",
    "/sbin": "halt ifconfig md5 mount nologin pfctl reboot route shutdown umount",
    "/usr/sbin": "chown chroot createhomedir dseditgroup diskutil ioreg lsof netstat newsyslog nvram scutil "
    "softwareupdate spctl sshd sysadminctl sysctl system_profiler systemsetup visudo ipconfig",
    "/usr/bin": "arch awk base64 basename bzcat bunzip2 bzip2 caffeinate chflags chgrp cksum clear cmp "
    "codesign comm csplit csrutil curl cut defaults diff diff3 dirname dscacheutil dscl dsmemberutil du egrep env "
    "expand false fdesetup fgrep file find fmt fold getconf grep groups gunzip gzip head iconv id "
    "infocmp install ipcs jq join killall less locale lockf log logger login logname md5 mdutil mkfifo mktemp "
    "nc newgrp nice nl nohup od openssl passwd paste patch pathchk perl pgrep pkill plutil pmset pr "
    "printenv printf readlink renice rev scp script sdiff sed seq sftp shasum sort split ssh ssh-add ssh-agent "
    "ssh-keygen ssh-keyscan stat su sudo sum sw_vers tabs tail tar tee tic tmutil top touch tput tr true "
    "tset tsort tty uname unexpand uniq unzip uptime users vm_stat w wc which who whoami xargs xattr xcode-select "
    "yes zcat zcmp zdiff zegrep zfgrep zgrep zmore sntp python3 git cc clang gcc make ld nm strip otool swift "
    "xcodebuild xcrun pip3 m4",
    "/usr/libexec": "path_helper PlistBuddy",
    "/usr/libexec/ApplicationFirewall": "socketfilterfw",
}
#: Names on a Mac of what Debian calls otherwise.
RENAMED = {"awk": "original-awk", "sh": "bash", "nc": "nc.openbsd", "tar": "bsdtar", "nologin": "nologin"}
MODULES = {name: module for module, names in PROGRAMS.items() for name in names.split()}


def function(name: str) -> Callable[[str, list[str]], int]:
    """What runs under a name."""
    if name in STUBS.split():
        name = "xcode_stub"
    name = {"xcode-select": "xcode_select"}.get(name, name)
    found: Callable[[str, list[str]], int] = getattr(import_module(MODULES[name]), name)
    return found


def is_ours(name: str) -> bool:
    """Whether the double has a program of its own for a name."""
    return name in MODULES or name in STUBS.split() or name == "xcode-select"
