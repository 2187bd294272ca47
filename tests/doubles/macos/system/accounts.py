"""Users and groups: the directory that dscl and its like keep, and Linux accounts made from it.

The records are in the double's state, as lists of values by attribute; /etc/passwd, group and shadow are written from
them after each change, so that processes run as these accounts.
"""

from __future__ import annotations

import getpass
import grp
import os
import plistlib
import pwd
import shutil
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import common

ETC = Path("/private/etc")
STATE = "directory"
STATE_FILE = common.STATE / f"{STATE}.json"
#: Attributes whose name in dscl's native form begins with dsAttrTypeNative:.
STANDARD = (
    "AppleMetaNodeLocation AuthenticationAuthority GeneratedUID GroupMembers GroupMembership "
    "NFSHomeDirectory NestedGroups Password Picture PrimaryGroupID RealName RecordName RecordType SMBSID "
    "UniqueID UserShell "
)
Record = dict[str, list[str]]


# The records


def first_records() -> dict[str, dict[str, Record]]:
    """What a fresh Mac has, with the operator who set it up. Called when the image is built."""
    users: dict[str, Record] = {}
    for name, uid, gid, home, shell, full in (
        ("root", 0, 0, "/var/root", "/bin/sh", "System Administrator"),
        ("daemon", 1, 1, "/var/root", "/usr/bin/false", "System Services"),
        ("nobody", -2, -2, "/var/empty", "/usr/bin/false", "Unprivileged User"),
        ("_www", 70, 70, "/Library/WebServer", "/usr/bin/false", "World Wide Web Server"),
        ("_sshd", 75, 75, "/var/empty", "/usr/bin/false", "sshd Privilege separation"),
        ("_spotlight", 89, 89, "/var/empty", "/usr/bin/false", "Spotlight"),
        ("_mbsetupuser", 248, 248, "/var/setup", "/bin/bash", "Setup User"),
        ("_oahd", 441, 441, "/var/empty", "/usr/bin/false", "OAH Daemon"),
        ("operator", 501, 20, "/Users/operator", "/bin/zsh", "Olivia Operator"),
    ):
        users[name] = user_record(name, uid, gid, home, shell, full)
    groups: dict[str, Record] = {}
    for name, gid, members in (
        ("wheel", 0, "root"),
        ("daemon", 1, "root"),
        ("kmem", 2, "root"),
        ("sys", 3, "root"),
        # On a Mac 4; the engine gives terminals to group 5.
        ("tty", 5, "root"),
        ("mail", 6, ""),
        ("everyone", 12, ""),
        ("staff", 20, "root"),
        ("utmp", 45, ""),
        ("localaccounts", 61, ""),
        ("_www", 70, ""),
        ("_sshd", 75, ""),
        ("admin", 80, "root operator"),
        ("_spotlight", 89, ""),
        ("_developer", 204, ""),
        ("_oahd", 441, ""),
        ("nobody", -2, ""),
        ("nogroup", -1, ""),
    ):
        groups[name] = group_record(name, gid, members.split())
    return {"Users": users, "Groups": groups}


def user_record(name: str, uid: int, gid: int, home: str, shell: str, full: str) -> Record:
    """A user."""
    return {
        "GeneratedUID": [str(uuid.uuid4()).upper()],
        "NFSHomeDirectory": [home],
        "Password": ["********" if uid == 501 else "*"],
        "PrimaryGroupID": [str(gid)],
        "RealName": [full],
        "RecordName": [name],
        "RecordType": ["dsRecTypeStandard:Users"],
        "UniqueID": [str(uid)],
        "UserShell": [shell],
    }


def group_record(name: str, gid: int, members: list[str]) -> Record:
    """A group."""
    record = {
        "GeneratedUID": [str(uuid.uuid4()).upper()],
        "Password": ["*"],
        "PrimaryGroupID": [str(gid)],
        "RealName": [name.lstrip("_").capitalize()],
        "RecordName": [name],
        "RecordType": ["dsRecTypeStandard:Groups"],
    }
    return record | ({"GroupMembership": members} if members else {})


def number(text: str) -> int:
    """An id as Linux has it: -2 is the last but one."""
    return int(text) % 2**32


def write_linux(records: dict[str, dict[str, Record]], passwords: dict[str, str] | None = None) -> None:
    """Writes Linux's files from the records; `passwords` are new hashes by name."""
    hashes = {}
    with suppress(FileNotFoundError):
        for line in (ETC / "shadow").read_text().splitlines():
            hashes[line.split(":")[0]] = line.split(":")[1]
    hashes |= passwords or {}
    passwd, shadow, group = [], [], []
    names = []
    for name, record in records["Users"].items():
        if "UniqueID" not in record:
            continue
        names.append(name)
        uid, gid = number(record["UniqueID"][0]), number(record.get("PrimaryGroupID", ["-2"])[0])
        full = record.get("RealName", [name])[0].replace(":", " ")
        home = record.get("NFSHomeDirectory", ["/var/empty"])[0]
        passwd.append(f"{name}:x:{uid}:{gid}:{full}:{home}:{record.get('UserShell', ['/usr/bin/false'])[0]}\n")
        shadow.append(f"{name}:{hashes.get(name, '*')}:20000:0:99999:7:::\n")
    # Debian's sshd looks for an account of this name.
    passwd.append("sshd:x:75:75:sshd Privilege separation:/var/empty:/usr/bin/false\n")
    shadow.append("sshd:*:20000:0:99999:7:::\n")
    for name, record in records["Groups"].items():
        if "PrimaryGroupID" not in record:
            continue
        everybody = name in ("everyone", "localaccounts")
        members = names if everybody else record.get("GroupMembership", [])
        group.append(f"{name}:x:{number(record['PrimaryGroupID'][0])}:{','.join(members)}\n")
    for file, lines, mode in (("passwd", passwd, 0o644), ("shadow", shadow, 0o600), ("group", group, 0o644)):
        temporary = ETC / f".{file}.new"
        temporary.write_text("".join(lines))
        temporary.chmod(mode)
        temporary.rename(ETC / file)


def password_hash(password: str) -> str:
    """For /etc/shadow."""
    command = [common.linux("openssl"), "passwd", "-6", "-stdin"]
    done = subprocess.run(command, input=password, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def may_change_homes() -> bool:
    """Whether the caller has Full Disk Access."""
    return bool(common.options()["full_disk_access"])


# dscl


def dscl(name: str, arguments: list[str]) -> int:
    """The command; see section 5."""
    as_plist = False
    while arguments[:1] and arguments[0] in ("-plist", "-url", "-q", "-raw"):
        as_plist = arguments[0] == "-plist" or as_plist
        arguments = arguments[1:]
    if len(arguments) < 2:
        common.complain("dscl (v20.4)")
        common.complain("usage: dscl [options] [<datasource> [<command>]]")
        return 64
    node, verb, rest = arguments[0], arguments[1].lstrip("-").lower(), arguments[2:]
    if node not in (".", "/Local/Default", "localhost", "/Search", "localonly"):
        common.complain(f"Data source ({node}) is not valid.")
        return 70
    verb = {"ls": "list", "cat": "read", "mk": "create", "rm": "delete"}.get(verb, verb)
    if verb in ("list", "read", "search", "authonly"):
        records = common.peek(STATE)
        if verb == "list":
            return dscl_list(records, rest)
        if verb == "read":
            return dscl_read(records, rest, as_plist)
        if verb == "search":
            return dscl_search(records, rest)
        return dscl_authonly(rest)
    if verb not in ("create", "append", "merge", "delete", "change", "passwd"):
        common.complain("dscl (v20.4)")
        common.complain("usage: dscl [options] [<datasource> [<command>]]")
        return 64
    if not common.is_root():
        return ds_error("attribute", -14120, "eDSPermissionError")
    with common.kept(STATE) as records:
        return dscl_change(records, verb, rest)


def ds_error(status: str, code: int, name: str) -> int:
    """How dscl fails; the exit code is what a byte keeps of the number."""
    common.complain(f"<main> {status} status: {name}")
    common.complain(f"<dscl_cmd> DS Error: {code} ({name})")
    return -code % 256


def split_path(path: str) -> tuple[str, str]:
    """Kind and name of a record."""
    parts = path.removeprefix("/Local/Default").strip("/").split("/", 1)
    return parts[0], parts[1] if len(parts) > 1 else ""


def native(key: str) -> str:
    """How dscl prints the name of an attribute."""
    return key if f"{key} " in STANDARD else f"dsAttrTypeNative:{key}"


def plain(key: str) -> str:
    """How it is kept."""
    return key.removeprefix("dsAttrTypeStandard:").removeprefix("dsAttrTypeNative:")


def dscl_list(records: dict[str, Any], words: list[str]) -> int:
    """Names, and with a key the first value of each that has it."""
    kind, _ = split_path(words[0] if words else "/")
    if not kind:
        print("\n".join(("Aliases", "Computers", "Groups", "Users")))
        return 0
    if kind not in records:
        return ds_error("attribute", -14009, "eDSUnknownNodeName")
    found = sorted(records[kind].items())
    if len(words) < 2:
        print("\n".join(name for name, _ in found))
        return 0
    key = plain(words[1])
    width = max((len(name) for name, _ in found), default=0) + 1
    for name, record in found:
        if key in record:
            print(f"{name:<{width}} {' '.join(record[key])}")
    return 0


def shown(key: str, values: list[str]) -> str:
    """An attribute of a record."""
    if any(" " in value for value in values):
        return "\n".join([f"{native(key)}:", *(f" {value}" for value in values)])
    return f"{native(key)}: {' '.join(values)}"


def dscl_read(records: dict[str, Any], words: list[str], as_plist: bool) -> int:
    """A record, or some attributes of it. One that is missing is no failure."""
    kind, name = split_path(words[0] if words else "/")
    record = records.get(kind, {}).get(name)
    if record is None:
        common.complain("<dscl_cmd> DS Error: -14136 (eDSRecordNotFound)")
        return 14136 % 256
    keys = [plain(word) for word in words[1:]] or sorted(record)
    if as_plist:
        found = {f"dsAttrTypeStandard:{key}": record[key] for key in keys if key in record}
        sys.stdout.write(plistlib.dumps(found).decode())
        return 0
    for key in keys:
        if key in record:
            print(shown(key, record[key]))
        else:
            common.complain(f"No such key: {key}")
    return 0


def dscl_search(records: dict[str, Any], words: list[str]) -> int:
    """Records that have a value."""
    if len(words) < 3:
        return 64
    kind, _ = split_path(words[0])
    key = plain(words[1])
    for name, record in sorted(records.get(kind, {}).items()):
        if words[2] in record.get(key, []):
            print(f"{name}\t\t{key} = (\n    {words[2]}\n)")
    return 0


def dscl_authonly(words: list[str]) -> int:
    """Whether a password is right: asks sudo's own library, by su, of nobody but that account."""
    user = words[0] if words else ""
    password = words[1] if len(words) > 1 else getpass.getpass("Password: ")
    hashed = ""
    with suppress(OSError):
        for line in (ETC / "shadow").read_text().splitlines():
            if line.split(":")[0] == user:
                hashed = line.split(":")[1]
    parts = hashed.split("$")
    if len(parts) > 3:
        command = [common.linux("openssl"), "passwd", f"-{parts[1]}", "-salt", parts[2], "-stdin"]
        done = subprocess.run(command, input=password, capture_output=True, text=True, check=True)
        if done.stdout.strip() == hashed:
            return 0
    common.complain("Authentication for node /Local/Default failed. (-14090, eDSAuthFailed)")
    return ds_error("attribute", -14090, "eDSAuthFailed")


def dscl_change(records: dict[str, Any], verb: str, words: list[str]) -> int:
    """Everything that changes a record."""
    kind, name = split_path(words[0] if words else "/")
    key, values = plain(words[1]) if len(words) > 1 else "", words[2:]
    if kind not in records or not name:
        return ds_error("attribute", -14009, "eDSUnknownNodeName")
    known = records[kind]
    record = known.get(name)
    passwords = {}
    if record is None and verb != "create":
        common.complain("<dscl_cmd> DS Error: -14136 (eDSRecordNotFound)")
        return 14136 % 256
    # Over SSH without Full Disk Access: no new user, no other home, no deletion.
    protected = (verb == "create" and record is None) or key == "NFSHomeDirectory" or (verb == "delete" and not key)
    if kind == "Users" and protected and not may_change_homes():
        return ds_error("attribute", -14120, "eDSPermissionError")
    if verb == "create":
        if record is None:
            record = known[name] = {
                "GeneratedUID": [str(uuid.uuid4()).upper()],
                "RecordName": [name],
                "RecordType": [f"dsRecTypeStandard:{kind}"],
            }
        if key:
            record[key] = values or [""]
    elif verb in ("append", "merge"):
        old = record.setdefault(key, [])
        old += [value for value in values if verb == "append" or value not in old]
    elif verb == "delete":
        if not key:
            if kind == "Users" and name in last_admin(records):
                return ds_error("attribute", -14120, "eDSPermissionError")
            del known[name]
        elif key not in record:
            return ds_error("delete", -14134, "eDSAttributeNotFound")
        elif not values:
            del record[key]
        else:
            if any(value not in record[key] for value in values):
                return ds_error("delete", -14087, "eDSAttributeValueNotFound")
            record[key] = [value for value in record[key] if value not in values]
            if not record[key]:
                del record[key]
    elif verb == "change":
        if len(values) != 2 or values[0] not in record.get(key, []):
            return ds_error("change", -14087, "eDSAttributeValueNotFound")
        record[key] = [values[1] if value == values[0] else value for value in record[key]]
    elif verb == "passwd":
        password = words[-1] if len(words) > 1 else getpass.getpass("New Password: ")
        passwords[name] = password_hash(password)
        record["Password"] = ["********"]
    write_linux(records, passwords)
    return 0


def last_admin(records: dict[str, Any]) -> list[str]:
    """The one who must not go."""
    members = [member for member in records["Groups"]["admin"].get("GroupMembership", []) if member != "root"]
    return members if len(members) == 1 else []


# sysadminctl and createhomedir


def sysadminctl(name: str, arguments: list[str]) -> int:
    """All words go to standard error, and it ends with 0 whatever happened."""
    options: dict[str, str] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        takes = word.lstrip("-") not in ("admin", "roleAccount", "secure", "keepHome", "interactive")
        options[word.lstrip("-")] = words.pop(0) if takes and words else ""

    def note(text: str) -> None:
        common.complain(f"{common.stamp('sysadminctl')} {text}")

    if "addUser" in options:
        add_user(options, note)
    elif "deleteUser" in options:
        delete_user(options, note)
    elif "secureTokenStatus" in options:
        user = options["secureTokenStatus"]
        record = common.peek(STATE)["Users"].get(user)
        if record is None:
            note(f"Unknown user {user}")
        else:
            enabled = "ENABLED" if user == "operator" else "DISABLED"
            note(f"Secure token is {enabled} for user {record.get('RealName', [user])[0]}")
    elif "screenLock" in options:
        note("screenLock is off")
    elif "autologin" in options:
        note("Automatic login is disabled.")
    else:
        common.complain("usage: sysadminctl")
    return 0


def add_user(options: dict[str, str], note: Any) -> None:
    """A new account; whether it came to be, nobody says by an exit code."""
    user = options["addUser"]
    password = options.get("password")
    if password == "-":
        password = getpass.getpass(f"User password for {user}:") if sys.stdin.isatty() else sys.stdin.readline()
        password = password.rstrip("\n")
    if not common.is_root() or not may_change_homes():
        note("Creating user record…")
        note(f"Error:-14120 File:/AppleInternal/Library/BuildRoots/double/DSRecord.m Line:563 ({user})")
        return
    with common.kept(STATE) as records:
        if user in records["Users"]:
            note(f"User {user} already exists")
            return
        note("Creating user record…")
        uids = {int(record["UniqueID"][0]) for record in records["Users"].values() if "UniqueID" in record}
        role = "roleAccount" in options
        if role and (not user.startswith("_") or not 200 <= int(options.get("UID", "250")) <= 400):
            note("Role account requires name starting with _ and UID in 200-400 range.")
            return
        uid = int(options.get("UID") or next(n for n in range(250 if role else 501, 9999) if n not in uids))
        if uid in uids:
            note(f"UID {uid} is already in use")
            return
        gid = int(options.get("GID") or 20)
        home = options.get("home") or f"/Users/{user}"
        note(f"Assigning UID: {uid} GID: {gid}")
        shell = options.get("shell") or ("/usr/bin/false" if role else "/bin/zsh")
        record = user_record(user, uid, gid, home, shell, options.get("fullName") or user)
        record["Password"] = ["********" if password else "*"]
        records["Users"][user] = record
        if "admin" in options:
            records["Groups"]["admin"].setdefault("GroupMembership", []).append(user)
        write_linux(records, {user: password_hash(password)} if password else {})
        if "home" in options:
            note(f"Home directory is assigned (not created!) at {home}")
        else:
            make_home(user)
            note(f"Creating home directory at {home}")


def delete_user(options: dict[str, str], note: Any) -> None:
    """Ends the processes of the account and takes it away, with its home."""
    user = options["deleteUser"]
    if not common.is_root() or not may_change_homes():
        note(f"Error:-14120 File:/AppleInternal/Library/BuildRoots/double/DSRecord.m Line:563 ({user})")
        return
    with common.kept(STATE) as records:
        record = records["Users"].get(user)
        if record is None:
            note(f"Unknown user {user}")
            return
        if user in last_admin(records):
            note(f"Error: {user} is the last admin user")
            return
        note(f"Killing all processes for UID {record['UniqueID'][0]}")
        uid = number(record["UniqueID"][0])
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if process.stat().st_uid == uid:
                    os.kill(int(process.name), signal.SIGKILL)
        home = record.get("NFSHomeDirectory", [""])[0]
        if "keepHome" not in options and home.startswith("/Users/"):
            note(f"Removing {user}'s home at {home}")
            shutil.rmtree(home, ignore_errors=True)
        note(f"Deleting record for {user}")
        del records["Users"][user]
        for group in records["Groups"].values():
            if user in group.get("GroupMembership", []):
                group["GroupMembership"].remove(user)
        write_linux(records)


def make_home(user: str) -> None:
    """With the folders of a new home."""
    entry = pwd.getpwnam(user)
    home = Path(entry.pw_dir)
    for folder in (home, home / "Library", home / "Desktop", home / "Documents", home / "Downloads"):
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
    home.chmod(0o750)


def createhomedir(name: str, arguments: list[str]) -> int:
    """-c makes the homes that are missing, -u of one account."""
    user = arguments[arguments.index("-u") + 1] if "-u" in arguments[:-1] else ""
    if not common.is_root():
        common.complain("createhomedir: must be run as root")
        return 1
    if not may_change_homes():
        common.complain("createhomedir: Operation not permitted")
        return 1
    print("creating home directories for (" + os.uname().nodename + ")")
    names = [user] if user else list(common.peek(STATE)["Users"])
    for each in names:
        with suppress(KeyError):
            if pwd.getpwnam(each).pw_dir.startswith("/Users/") and not Path(pwd.getpwnam(each).pw_dir).exists():
                make_home(each)
                print(f" created ({pwd.getpwnam(each).pw_dir})")
    return 0


# Groups


def dseditgroup(name: str, arguments: list[str]) -> int:
    """The command; -o create on a group that exists asks on the terminal."""
    pairs, rest, bad = common.getopt(arguments, "pqvo:n:u:P:a:d:t:T:i:g:r:k:s:c:S:L:m:")
    if bad or len(rest) != 1:
        common.complain("dseditgroup: usage: dseditgroup [options] groupname")
        return 64
    options = dict(pairs)
    group, operation = rest[0], options.get("o", "read")
    records = common.peek(STATE)
    there = group in records["Groups"]
    if operation == "checkmember":
        user = options.get("m") or pwd.getpwuid(os.getuid()).pw_name
        if not there:
            common.complain("Group not found.")
            return 64
        if user not in records["Users"]:
            common.complain("Record was not found.")
            return 67
        member = group in names_of_groups(user)
        print(f"yes {user} is a member of {group}" if member else f"no {user} is NOT a member of {group}")
        return 0 if member else 67
    if operation == "read":
        if not there:
            common.complain("Group not found.")
            return 64
        for key, values in records["Groups"][group].items():
            print(f"dsAttrTypeStandard:{key} -\n" + "\n".join(f"\t\t{value}" for value in values))
        return 0
    if not common.is_root():
        common.complain("Username and password must be provided.")
        return 77
    if operation == "create" and there:
        sys.stdout.write("Create called on existing record - do you want to overwrite, y or n : ")
        sys.stdout.flush()
        if sys.stdin.readline().strip() != "y":
            return 0
    elif operation != "create" and not there:
        common.complain("Group not found.")
        return 64
    with common.kept(STATE) as records:
        groups = records["Groups"]
        if operation == "create":
            taken = {int(record["PrimaryGroupID"][0]) for record in groups.values() if "PrimaryGroupID" in record}
            gid = int(options.get("i") or next(number for number in range(501, 9999) if number not in taken))
            groups[group] = group_record(group, gid, [])
            groups[group]["RealName"] = [options.get("r") or group]
        elif operation == "delete":
            del groups[group]
        elif operation == "edit":
            members = groups[group].setdefault("GroupMembership", [])
            if "a" in options:
                if options["a"] not in records["Users"]:
                    common.complain("Record was not found.")
                    return 67
                if options["a"] not in members:
                    members.append(options["a"])
            if "d" in options and options["d"] in members:
                members.remove(options["d"])
            if "r" in options:
                groups[group]["RealName"] = [options["r"]]
            if "i" in options:
                groups[group]["PrimaryGroupID"] = [options["i"]]
            if not members:
                del groups[group]["GroupMembership"]
        else:
            common.complain("dseditgroup: usage: dseditgroup [options] groupname")
            return 64
        write_linux(records)
    return 0


def names_of_groups(user: str) -> list[str]:
    """Primary group first."""
    entry = pwd.getpwnam(user)
    found = []
    for gid in os.getgrouplist(user, entry.pw_gid):
        try:
            found.append(grp.getgrgid(gid).gr_name)
        except KeyError:
            found.append(str(gid))
    return found


def dsmemberutil(name: str, arguments: list[str]) -> int:
    """checkmembership, getuuid, getid, flushcache."""
    verb, rest = arguments[0] if arguments else "", arguments[1:]
    options = dict(common.getopt(rest, "u:U:g:G:s:S:x:X:")[0])
    records = common.peek(STATE)
    if verb == "flushcache":
        return 0
    if verb == "checkmembership":
        user = options.get("U") or pwd.getpwuid(int(options.get("u", os.getuid()))).pw_name
        group = options.get("G") or grp.getgrgid(int(options.get("g", 0))).gr_name
        if user not in records["Users"] or group not in records["Groups"]:
            common.complain(f"{'User' if user not in records['Users'] else 'Group'} not found")
            return 1
        print(f"user is {'' if group in names_of_groups(user) else 'not '}a member of the group")
        return 0
    if verb in ("getuuid", "getid"):
        kind = "Users" if "U" in options or "u" in options else "Groups"
        key = "UniqueID" if kind == "Users" else "PrimaryGroupID"
        for each, record in records[kind].items():
            if each in (options.get("U"), options.get("G")) or record.get(key, [""])[0] in (
                options.get("u"),
                options.get("g"),
            ):
                print(record["GeneratedUID"][0] if verb == "getuuid" else record[key][0])
                return 0
        common.complain("Unable to find that entry")
        return 1
    common.complain("usage: dsmemberutil [-v] command")
    return 1


def groups(name: str, arguments: list[str]) -> int:
    """As `id -Gn`."""
    return id("groups", ["-Gn", *arguments])


def dscacheutil(name: str, arguments: list[str]) -> int:
    """-q user or group, by name or number; nothing is printed of who is not there."""
    if arguments[:1] == ["-flushcache"]:
        return 0
    if arguments[:1] != ["-q"] or len(arguments) < 2:
        common.complain("Usage: dscacheutil -h")
        return 64
    key, value = (arguments[3], arguments[4]) if arguments[2:3] == ["-a"] and len(arguments) > 4 else ("", "")
    if arguments[1] == "user":
        for user in pwd.getpwall():
            if user.pw_name != "sshd" and (not key or value in (user.pw_name if key == "name" else str(user.pw_uid),)):
                print(f"name: {user.pw_name}\npassword: ********\nuid: {user.pw_uid}\ngid: {user.pw_gid}")
                print(f"dir: {user.pw_dir}\nshell: {user.pw_shell}\ngecos: {user.pw_gecos}\n")
    elif arguments[1] == "group":
        for group in grp.getgrall():
            if not key or value in (group.gr_name if key == "name" else str(group.gr_gid),):
                print(f"name: {group.gr_name}\npassword: *\ngid: {group.gr_gid}")
                print((f"users: {' '.join(group.gr_mem)}\n" if group.gr_mem else "") + "")
    return 0


def id(name: str, arguments: list[str]) -> int:
    """id(1) as BSD has it."""
    pairs, rest, bad = common.getopt(arguments, "AFGPacgnpru")
    if bad:
        return common.illegal("id", bad, "id [user]")
    flags = {letter for letter, _ in pairs}
    uid, gid = (os.getuid(), os.getgid()) if "r" in flags else (os.geteuid(), os.getegid())
    groups = [gid, *(group for group in os.getgroups() if group != gid)]
    if rest:
        try:
            entry = pwd.getpwnam(rest[0])
        except KeyError:
            try:
                entry = pwd.getpwuid(int(rest[0]))
            except (KeyError, ValueError):
                common.complain(f"id: {rest[0]}: no such user")
                return 1
        uid, gid = entry.pw_uid, entry.pw_gid
        groups = list(dict.fromkeys([gid, *os.getgrouplist(entry.pw_name, gid)]))

    def user_name(value: int) -> str:
        try:
            return pwd.getpwuid(value).pw_name
        except KeyError:
            return str(value)

    def group_name(value: int) -> str:
        try:
            return grp.getgrgid(value).gr_name
        except KeyError:
            return str(value)

    named = "n" in flags
    if "F" in flags:
        print(pwd.getpwuid(uid).pw_gecos)
    elif "u" in flags:
        print(user_name(uid) if named else uid)
    elif "g" in flags:
        print(group_name(gid) if named else gid)
    elif "G" in flags:
        print(" ".join(group_name(group) if named else str(group) for group in groups))
    elif "P" in flags:
        entry = pwd.getpwuid(uid)
        print(f"{entry.pw_name}:********:{uid}:{gid}::0:0:{entry.pw_gecos}:{entry.pw_dir}:{entry.pw_shell}")
    else:
        listed = ",".join(f"{group}({group_name(group)})" for group in groups)
        print(f"uid={uid}({user_name(uid)}) gid={gid}({group_name(gid)}) groups={listed}")
    return 0
