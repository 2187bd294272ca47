"""Run once in the image: moves Debian out of sight and lays out what a Mac has. Its own interpreter moves too."""

from __future__ import annotations

import compileall
import json
import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path("/usr/libexec/double")
sys.path.insert(0, str(ROOT / "system"))

import accounts  # noqa: E402
import common  # noqa: E402
import registry  # noqa: E402

PRIVATE = Path("/private")
#: Programs of Debian's by their name on a Mac.
SSHD_CONFIG = """\
# As Apple's: keys and passwords, no root by password, the environment of a Mac's session.
UsePAM yes
PasswordAuthentication yes
KbdInteractiveAuthentication no
AcceptEnv LANG LC_*
AuthorizedKeysFile .ssh/authorized_keys
HostKey /etc/ssh/ssh_host_ed25519_key
SetEnv PATH=/usr/bin:/bin:/usr/sbin:/sbin
PrintMotd no
Subsystem sftp /usr/libexec/sftp-server
"""
SUDOERS = """\
# As macOS has it (section 16): HOME is kept, there is no secure_path, whoever is in admin may do everything.
Defaults env_reset
Defaults env_keep += "BLOCKSIZE"
Defaults env_keep += "COLORFGBG COLORTERM"
Defaults env_keep += "__CF_USER_TEXT_ENCODING"
Defaults env_keep += "CHARSET LANG LANGUAGE LC_ALL LC_COLLATE LC_CTYPE"
Defaults env_keep += "LC_MESSAGES LC_MONETARY LC_NUMERIC LC_TIME"
Defaults env_keep += "LINES COLUMNS"
Defaults env_keep += "LSCOLORS"
Defaults env_keep += "SSH_AUTH_SOCK"
Defaults env_keep += "TZ"
Defaults env_keep += "DISPLAY XAUTHORIZATION XAUTHORITY"
Defaults env_keep += "EDITOR VISUAL"
Defaults env_keep += "HOME MAIL"
Defaults lecture = never
root ALL = (ALL) ALL
%admin ALL = (ALL) ALL
#includedir /private/etc/sudoers.d
"""
PAM = """\
auth required pam_unix.so nullok
account required pam_unix.so
password required pam_deny.so
session required pam_permit.so
"""


def main() -> None:
    """All steps."""
    hide_debian()
    lay_out()
    place_programs()
    write_etc()
    records = accounts.first_records()
    accounts.STATE_FILE.write_text(json.dumps(records, indent=1))
    accounts.write_linux(records)
    daemons()
    python_formula()
    own_homes()
    compileall.compile_dir(str(ROOT / "system"), quiet=1)
    # What stands at the top, so that a test can see what somebody has put there.
    top = sorted(path.name for path in Path("/").iterdir())
    (ROOT / "top.txt").write_text("\n".join(top) + "\n")


def hide_debian() -> None:
    """Every program moves to where no PATH leads. Links among them are made anew."""
    for kind in ("bin", "sbin"):
        (common.LINUX / kind).mkdir(parents=True)
    links = {}
    for kind in ("bin", "sbin"):
        for path in sorted(Path("/usr", kind).iterdir()):
            if path.is_symlink():
                links[common.LINUX / kind / path.name] = path.resolve()
    for kind in ("bin", "sbin"):
        for path in sorted(Path("/usr", kind).iterdir()):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.move(path, common.LINUX / kind / path.name)
    for link, target in links.items():
        for kind in ("bin", "sbin"):
            if target.parent in (Path("/usr", kind), Path("/", kind)):
                target = common.LINUX / kind / target.name
                break
        link.symlink_to(target)


def lay_out() -> None:
    """Folders and links at the top. /etc is the engine's until the first boot: see launchd.py."""
    for name in ("bin", "sbin"):
        Path("/", name).unlink()
        Path("/", name).mkdir(mode=0o755)
    shutil.copytree("/etc", PRIVATE / "etc", symlinks=True)
    for name in ("mtab", "hostname"):
        (PRIVATE / "etc" / name).unlink(missing_ok=True)
    for name in ("var", "tmp"):
        shutil.move(f"/{name}", PRIVATE / name)
        Path("/", name).symlink_to(f"private/{name}")
    for name in ("lib", "cache", "backups", "local", "lock", "mail", "opt", "spool"):
        path = PRIVATE / "var" / name
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    run = PRIVATE / "var" / "run"
    run.unlink()
    run.mkdir(mode=0o755)
    shutil.rmtree("/run", ignore_errors=True)
    if not Path("/run").exists():
        Path("/run").symlink_to("private/var/run")
    for name in ("home", "srv", "media", "mnt", "boot", "root", "opt"):
        shutil.rmtree(f"/{name}", ignore_errors=True)
    shutil.rmtree("/usr/local", ignore_errors=True)
    for folder, mode in (
        ("/Applications", 0o775),
        ("/Library/LaunchAgents", 0o755),
        ("/Library/LaunchDaemons", 0o755),
        ("/Library/Preferences", 0o755),
        ("/Library/Application Support", 0o755),
        ("/Library/Logs", 0o755),
        ("/System/Library/LaunchDaemons", 0o755),
        ("/System/Volumes/Data", 0o755),
        ("/System/Volumes/Preboot", 0o755),
        ("/Users/Shared", 0o1777),
        ("/Volumes", 0o755),
        ("/opt", 0o755),
        ("/usr/local", 0o755),
        ("/private/var/root", 0o750),
        ("/private/var/empty", 0o555),
        ("/private/var/db", 0o755),
        ("/private/var/log", 0o755),
        ("/private/var/folders", 0o1777),
        ("/private/etc/newsyslog.d", 0o755),
        ("/private/etc/paths.d", 0o755),
        ("/usr/libexec/ApplicationFirewall", 0o755),
        (str(common.STATE), 0o755),
        (str(common.VOLATILE), 0o755),
        (str(ROOT / "formulae"), 0o755),
    ):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder).chmod(mode)
    shutil.rmtree("/private/var/log")
    Path("/private/var/log").mkdir(mode=0o755)
    Path("/private/tmp").chmod(0o1777)
    Path("/private/var/tmp").chmod(0o1777)


def place_programs() -> None:
    """Hard links, so that a program is at its place and nowhere else when it asks."""
    tool, gate = ROOT / "tool", ROOT / "gate"
    tool.chmod(0o755)
    gate.chmod(0o755)
    gated = set()
    for line in gate.read_text().splitlines():
        if ") known=" in line:
            gated |= {name.strip() for name in line.split(")")[0].split("|")}
    missing = []
    for folder, names in registry.PLACES.items():
        for name in dict.fromkeys(names.split()):
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if registry.is_ours(name):
                os.link(tool, target)
            elif name in gated:
                os.link(gate, target)
            else:
                try:
                    source = Path(common.linux(registry.RENAMED.get(name, name))).resolve()
                except FileNotFoundError:
                    missing.append(name)
                    continue
                os.link(source, target)
    if missing:
        sys.exit(f"neither Debian nor the double has: {' '.join(missing)}")
    os.link("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server")
    # PAM looks for its helper there and nowhere else.
    os.link(common.linux("unix_chkpwd"), "/usr/sbin/unix_chkpwd")


def write_etc() -> None:
    """What a Mac has in /etc, as far as anybody looks."""
    etc = PRIVATE / "etc"
    (etc / "ssh" / "sshd_config").write_text(SSHD_CONFIG)
    shutil.rmtree(etc / "ssh" / "sshd_config.d", ignore_errors=True)
    (etc / "sudoers").write_text(SUDOERS)
    (etc / "sudoers").chmod(0o440)
    shutil.rmtree(etc / "sudoers.d")
    (etc / "sudoers.d").mkdir(mode=0o755)
    for name in ("sshd", "sudo", "sudo-i", "su", "su-l", "login", "passwd", "other"):
        (etc / "pam.d" / name).write_text(PAM)
    for name in ("su", "su-l"):
        (etc / "pam.d" / name).write_text(f"auth sufficient pam_rootok.so\n{PAM}")
    for name in ("environment", "default/locale", "motd", "issue", "os-release", "debian_version"):
        (etc / name).unlink(missing_ok=True)
    Path("/usr/lib/os-release").unlink(missing_ok=True)
    for name in ("systemd", "apt", "dpkg", "init.d", "cron.d", "cron.daily", "rc0.d", "rc1.d", "rc2.d", "rc3.d"):
        shutil.rmtree(etc / name, ignore_errors=True)
    shutil.copyfile(etc / "ssl/certs/ca-certificates.crt", etc / "ssl/cert.pem")
    (etc / "paths").write_text("/usr/local/bin\n/usr/bin\n/bin\n/usr/sbin\n/sbin\n")
    helper = "if [ -x /usr/libexec/path_helper ]; then\n\teval `/usr/libexec/path_helper -s`\nfi\n"
    (etc / "profile").write_text(helper)
    (etc / "zsh").mkdir(exist_ok=True)
    for path in (etc / "zsh").iterdir():
        path.unlink()
    # Debian's zsh reads /etc/zsh/, a Mac's /etc/.
    (etc / "zsh" / "zprofile").write_text(helper)
    (etc / "zprofile").symlink_to("zsh/zprofile")
    (etc / "shells").write_text("/bin/bash\n/bin/dash\n/bin/sh\n/bin/zsh\n")
    (etc / "newsyslog.conf").write_text(
        "# logfilename          [owner:group]    mode count size when  flags [/pid_file] [sig_num]\n"
        "/var/log/install.log\t\t\t640  5\t   1000\t*     J\n"
        "/var/log/wifi.log\t\t\t640  3\t   1000\t*     J\n"
    )
    (etc / "localtime").unlink(missing_ok=True)
    (etc / "localtime").symlink_to("/var/db/timezone/zoneinfo/UTC")


def daemons() -> None:
    """Apple's own that somebody could ask for."""
    folder = Path("/System/Library/LaunchDaemons")
    python = str(common.LINUX / "bin" / "python3")
    listener = (
        "import socket;s=socket.create_server(('0.0.0.0',5900))\n"
        "while True:\n c,_=s.accept();c.sendall(b'RFB 003.889\\n');c.close()"
    )
    jobs = {
        "ssh": {
            "Label": "com.openssh.sshd",
            "ProgramArguments": ["/usr/sbin/sshd", "-D", "-e"],
            "KeepAlive": True,
            "StandardErrorPath": "/var/log/sshd.log",
        },
        "com.apple.screensharing": {
            "Label": "com.apple.screensharing",
            "Disabled": True,
            "ProgramArguments": [python, "-ISB", "-c", listener],
            "KeepAlive": True,
        },
        "com.apple.newsyslog": {
            "Label": "com.apple.newsyslog",
            "ProgramArguments": ["/usr/sbin/newsyslog"],
            "StartCalendarInterval": {"Minute": 30},
        },
    }
    for name, plist in jobs.items():
        path = folder / f"{name}.plist"
        path.write_bytes(plistlib.dumps(plist))
        path.chmod(0o644)
    overrides = Path("/private/var/db/com.apple.xpc.launchd")
    overrides.mkdir()
    first = {"com.apple.ftpd": True, "com.openssh.sshd": False, "com.apple.screensharing": True}
    (overrides / "disabled.plist").write_bytes(plistlib.dumps(first, sort_keys=False))


def python_formula() -> None:
    """Homebrew's Python is Debian's, with the names that Homebrew's has."""
    python = common.LINUX / "bin" / "python3.13"
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    keg = ROOT / "formulae" / "python@3.13" / version
    for name in ("bin/python3.13", "bin/python3", "libexec/bin/python3", "libexec/bin/python"):
        (keg / name).parent.mkdir(parents=True, exist_ok=True)
        (keg / name).symlink_to(python)


def own_homes() -> None:
    """The operator's, and who owns the rest."""
    home = Path("/Users/operator")
    for folder in (home, home / "Library", home / "Library/Preferences", home / "Desktop", home / "Documents"):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        os.chown(folder, 501, 20)
    home.chmod(0o750)
    os.chown("/Applications", 0, 80)
    Path("/Users").chmod(0o755)
    for folder in ("/private/var/db", "/private/etc", "/Library"):
        command = [common.linux("chown"), "-R", "0:0", folder]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
