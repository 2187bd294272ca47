"""lsof, netstat and what else tells of the network; see section 15."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import common
from processes import Process, processes, user

STATES = {
    "01": "ESTABLISHED",
    "02": "SYN_SENT",
    "03": "SYN_RCVD",
    "04": "FIN_WAIT_1",
    "05": "FIN_WAIT_2",
    "06": "TIME_WAIT",
    "07": "CLOSED",
    "08": "CLOSE_WAIT",
    "09": "LAST_ACK",
    "0A": "LISTEN",
    "0B": "CLOSING",
}


@dataclass
class Socket:
    """A row of /proc/net."""

    protocol: str
    family: int
    local: tuple[str, int]
    remote: tuple[str, int]
    state: str
    inode: str
    receiving: int
    sending: int


def address(text: str) -> tuple[str, int]:
    """Address and port of /proc/net's hexadecimal."""
    host, port = text.split(":")
    data = bytes.fromhex(host)
    words = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    return str(ipaddress.ip_address(words)), int(port, 16)


def sockets() -> list[Socket]:
    """All of the container."""
    found = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        with suppress(FileNotFoundError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                sending, receiving = (int(part, 16) for part in fields[4].split(":"))
                found.append(
                    Socket(
                        name[:3],
                        6 if name.endswith("6") else 4,
                        address(fields[1]),
                        address(fields[2]),
                        STATES.get(fields[3], "") if name.startswith("tcp") else "",
                        fields[9],
                        receiving,
                        sending,
                    )
                )
    return found


def owners() -> dict[str, list[tuple[Process, str]]]:
    """Inode of a socket to the processes that have it open, with the number of the descriptor."""
    found: dict[str, list[tuple[Process, str]]] = {}
    for each in processes():
        # As on a Mac nobody but root sees what others have open.
        if not common.is_root() and each.uid != os.geteuid():
            continue
        with suppress(OSError):
            for descriptor in Path(f"/proc/{each.pid}/fd").iterdir():
                with suppress(OSError):
                    target = descriptor.readlink()
                    if str(target).startswith("socket:["):
                        found.setdefault(str(target)[8:-1], []).append((each, descriptor.name))
    return found


def bare(where: tuple[str, int], numeric: bool, separator: str = ":") -> str:
    """An address as lsof and netstat write it."""
    host, port = where
    host = "*" if host in ("0.0.0.0", "::") else host
    if separator == ":" and ":" in host:
        host = f"[{host}]"
    return f"{host}{separator}{port or '*'}"


def lsof(name: str, arguments: list[str]) -> int:
    """Network files, and with paths or -p other open files; 1 when nothing is found."""
    chosen: dict[str, list[str]] = {}
    paths = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("-") and not word.startswith("+"):
            paths.append(word)
        elif word[:2] in ("-i", "-s", "-F"):
            chosen.setdefault(word[1], []).append(word[2:])
        elif word[:2] in ("-p", "-u", "-c", "+c", "-d", "-g"):
            value = word[2:] or (words.pop(0) if words else "")
            chosen.setdefault(word[:2].lstrip("-"), []).append(value)
        else:
            for letter in word[1:]:
                if letter not in "nPtabclLMNoOQrRUVwWxXTD":
                    common.complain(f"lsof: illegal option character: {letter}")
                    return 1
                chosen.setdefault(letter, []).append("")
    rows = []
    width = int(chosen.get("+c", ["9"])[0])
    pids = {pid for value in chosen.get("p", []) for pid in value.split(",")}
    users = {each for value in chosen.get("u", []) for each in value.split(",")}
    if "i" in chosen:
        who = owners()
        for each in sockets():
            if not matches(each, chosen["i"]):
                continue
            states = [value.split(":", 1)[1].upper() for value in chosen.get("s", []) if ":" in value]
            if states and each.protocol == "tcp" and each.state not in states:
                continue
            for process, descriptor in who.get(each.inode, []):
                if ("a" in chosen or pids) and pids and str(process.pid) not in pids:
                    continue
                if users and user(process.uid) not in users:
                    continue
                end = f" ({each.state})" if each.state else ""
                between = f"->{bare(each.remote, True)}" if each.remote[1] else ""
                text = f"{bare(each.local, True)}{between}"
                kind = f"IPv{each.family}"
                rows.append(
                    (
                        process,
                        f"{descriptor}u",
                        kind,
                        f"0x{int(each.inode):016x}",
                        "0t0",
                        each.protocol.upper(),
                        text,
                        end,
                    )
                )
    elif paths or pids:
        rows = files(paths, pids)
    if not rows:
        return 1
    if "t" in chosen:
        print("\n".join(dict.fromkeys(str(row[0].pid) for row in rows)))
        return 0
    if "F" in chosen:
        wanted = "".join(chosen["F"]) or "pcn"
        last = 0
        for process, descriptor, kind, _, _, node, text, _end in rows:
            if process.pid != last:
                print(f"p{process.pid}")
                if "c" in wanted:
                    print(f"c{command(process)}")
                if "u" in wanted:
                    print(f"u{process.uid}")
                if "L" in wanted:
                    print(f"L{user(process.uid)}")
                last = process.pid
            print(f"f{descriptor.rstrip('u')}")
            if "t" in wanted:
                print(f"t{kind}")
            if "P" in wanted:
                print(f"P{node}")
            print(f"n{text}")
        return 0
    print(f"{'COMMAND':<9}  {'PID':>5} {'USER':>8}   FD   TYPE {'DEVICE':>18} SIZE/OFF NODE NAME")
    for process, descriptor, kind, device, size, node, text, end in rows:
        shown = command(process).replace(" ", "\\x20")
        shown = shown[:width] if width else shown
        print(
            f"{shown:<9}  {process.pid:>5} {user(process.uid)[:8]:>8} {descriptor:>5} {kind:>5} {device:>18} "
            f"{size:>8} {node:>4} {text}{end}"
        )
    return 0


def command(process: Process) -> str:
    """What stands under COMMAND."""
    return process.executed


def matches(each: Socket, wanted: list[str]) -> bool:
    """-i: [46][TCP|UDP][@HOST][:PORT,...]."""
    for text in wanted:
        rest = text
        if rest[:1] in ("4", "6"):
            if int(rest[0]) != each.family:
                continue
            rest = rest[1:]
        if rest[:3].upper() in ("TCP", "UDP"):
            if rest[:3].lower() != each.protocol:
                continue
            rest = rest[3:]
        host, _, ports = rest.removeprefix("@").partition(":")
        if host and host not in (each.local[0], each.remote[0]):
            continue
        if ports:
            numbers: set[int] = set()
            for part in ports.split(","):
                low, _, high = part.partition("-")
                if low.isdigit():
                    numbers |= set(range(int(low), int(high or low) + 1))
            if each.local[1] not in numbers and each.remote[1] not in numbers:
                continue
        return True
    return False


def files(paths: list[str], pids: set[str]) -> list[tuple[Process, str, str, str, str, str, str, str]]:
    """Who has a file open."""
    wanted = {os.path.realpath(path) for path in paths}
    rows = []
    for each in processes():
        if (not common.is_root() and each.uid != os.geteuid()) or (pids and str(each.pid) not in pids):
            continue
        with suppress(OSError):
            for descriptor in sorted(Path(f"/proc/{each.pid}/fd").iterdir(), key=lambda path: int(path.name)):
                with suppress(OSError):
                    target = str(descriptor.readlink())
                    if (wanted and target in wanted) or (not wanted and target.startswith("/")):
                        about = descriptor.stat()
                        rows.append(
                            (
                                each,
                                f"{descriptor.name}u",
                                "REG",
                                "1,18",
                                str(about.st_size),
                                str(about.st_ino),
                                target,
                                "",
                            )
                        )
    return rows


def netstat(name: str, arguments: list[str]) -> int:
    """-an -p tcp, with -v the process; columns as the version of macOS has them."""
    pairs, _, bad = common.getopt(arguments, "AaBbcdf:gI:iLlmnp:qRrSsuvWw:x")
    if bad:
        common.complain(f"netstat: illegal option -- {bad}")
        common.complain("Usage:\tnetstat [-AaLlnW] [-f address_family | -p protocol]")
        return 1
    options = dict(pairs)
    if "r" in options:
        return routes()
    protocol = options.get("p", "tcp")
    old = common.version() < 26
    print("Active Internet connections" + (" (including servers)" if "a" in options else ""))
    head = f"{'Proto':<5} {'Recv-Q':>6} {'Send-Q':>6}  {'Local Address':<22} {'Foreign Address':<22} {'(state)':<11}"
    if "v" in options:
        head += " rxbytes txbytes rhiwat shiwat" + (
            "    pid   epid state  options" if old else "            process:pid    state  options"
        )
    print(head)
    everybody: dict[str, list[tuple[Process, str]]] = {}
    # netstat sees all processes, whoever calls it; the container shows only one's own to others than root.
    everybody = owners()
    for each in sockets():
        if each.protocol != protocol or (each.state == "LISTEN" and "a" not in options):
            continue
        both = each.family == 6 and each.local[0] == "::"
        kind = f"{each.protocol}{'46' if both else each.family}"
        line = f"{kind:<5} {each.receiving:>6} {each.sending:>6}  {bare(each.local, True, '.'):<22} "
        line += f"{bare(each.remote, True, '.'):<22} {each.state:<11}"
        if "v" in options:
            holder = everybody.get(each.inode, [(None, "")])[0][0]
            pid = holder.pid if holder else 0
            line += f" {0:>7} {0:>7} {131072:>6} {131072:>6}"
            if old:
                line += f" {pid:>6} {0:>6}  00100 00000006"
            else:
                line += f" {(command(holder) if holder else 'launchd') + ':' + str(pid or 1):>22}    00100 00000006"
        print(line.rstrip() if "v" not in options else line)
    return 0


def routes() -> int:
    """-r."""
    print("Routing tables\n\nInternet:\nDestination        Gateway            Flags               Netif Expire")
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        target, gateway = (str(ipaddress.ip_address(bytes.fromhex(text)[::-1])) for text in fields[1:3])
        name = "default" if target == "0.0.0.0" else target
        print(f"{name:<18} {gateway:<18} {'UGScg':<19} {'en0':>5}")
    return 0


def interfaces() -> list[tuple[str, str, str]]:
    """Name as on a Mac, address and mask."""
    output = subprocess.run([common.linux("ip"), "-o", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    found = []
    for line in output.splitlines():
        fields = line.split()
        number = int(fields[1].removeprefix("eth")) if fields[1].startswith("eth") else -1
        found.append(
            (f"en{number}" if number >= 0 else f"{fields[1]}0", *fields[3].split("/")[:1], fields[3].split("/")[1])
        )
    return found


def ifconfig(name: str, arguments: list[str]) -> int:
    """Addresses of all interfaces or one; -l names them."""
    words = [word for word in arguments if not word.startswith("-")]
    known = interfaces()
    if "-l" in arguments:
        print(" ".join(each for each, _, _ in known))
        return 0
    if words and words[0] not in [each for each, _, _ in known]:
        common.complain(f"ifconfig: interface {words[0]} does not exist")
        return 1
    for each, host, prefix in known:
        if words and each != words[0]:
            continue
        network = ipaddress.ip_interface(f"{host}/{prefix}").network
        loop = each.startswith("lo")
        flags = "8049<UP,LOOPBACK,RUNNING>" if loop else "8863<UP,BROADCAST,RUNNING>"
        print(f"{each}: flags={flags} mtu {16384 if loop else 1500}")
        tail = "" if loop else f" broadcast {network.broadcast_address}"
        print(f"\tinet {host} netmask 0x{int(network.netmask):08x}{tail}")
        if not loop:
            print("\tmedia: autoselect (10Gbase-T <full-duplex>)\n\tstatus: active")
    return 0


def ipconfig(name: str, arguments: list[str]) -> int:
    """getifaddr."""
    if arguments[:1] == ["getifaddr"] and len(arguments) > 1:
        for each, host, _ in interfaces():
            if each == arguments[1]:
                print(host)
                return 0
        common.complain("get if addr en0 failed, (os/kern) failure")
        return 1
    common.complain("usage: ipconfig <command> <args>")
    return 1


def route(name: str, arguments: list[str]) -> int:
    """-n get default."""
    words = [word for word in arguments if not word.startswith("-")]
    if words[:1] != ["get"]:
        common.complain("usage: route [-dnqtv] command [[modifiers] args]")
        return 64
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == "00000000":
            gateway = ipaddress.ip_address(bytes.fromhex(fields[2])[::-1])
            print(
                "   route to: default\ndestination: default\n       mask: default\n"
                f"    gateway: {gateway}\n  interface: en0"
            )
            return 0
    common.complain("route: writing to routing socket: not in table")
    return 1


def sntp(name: str, arguments: list[str]) -> int:
    """Against a server that always agrees, or cannot be reached."""
    server = arguments[-1] if arguments else ""
    if not server or server.startswith("-"):
        common.complain("usage: sntp [options] host ...")
        return 1
    try:
        socket.getaddrinfo(server, 123)
    except OSError:
        common.complain(f"sntp: {server}: nodename nor servname provided, or not known")
        return 1
    print(f"+0.000123 +/- 0.004567 {server} {server} {int(time.time())}")
    return 0
