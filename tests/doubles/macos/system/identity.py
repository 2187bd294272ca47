"""Which machine this is: uname, sw_vers, sysctl, system_profiler, scutil and the like; see section 4."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import common


def release() -> tuple[str, str, str]:
    """Version, build and kernel of the macOS."""
    _, build, kernel = common.RELEASES[str(common.version())]
    return common.full_version(), build, kernel


def is_arm() -> bool:
    """Whether the hardware is Apple silicon."""
    return bool(common.options()["chip"].startswith("Apple"))


def machine() -> str:
    """What processes of the caller run as."""
    return "arm64" if is_arm() and not common.options()["rosetta"] else "x86_64"


def uname(name: str, arguments: list[str]) -> int:
    """-a -m -n -o -p -r -s -v."""
    pairs, rest, bad = common.getopt(arguments, "amnoprsv")
    if bad or rest:
        return common.illegal("uname", bad or "-", "uname [-amnoprsv]")
    _, _, kernel = release()
    kind = "ARM64_T6020" if is_arm() else "X86_64"
    values = {
        "s": "Darwin",
        "n": os.uname().nodename,
        "r": kernel,
        "v": f"Darwin Kernel Version {kernel}: Mon Jul 14 21:26:24 PDT 2026; root:xnu-double/RELEASE_{kind}",
        "m": machine(),
        "p": "arm" if machine() == "arm64" else "i386",
        "o": "Darwin",
    }
    flags = {letter for letter, _ in pairs} or {"s"}
    wanted = "snrvm" if "a" in flags else "snrvmpo"
    print(" ".join(values[letter] for letter in wanted if "a" in flags or letter in flags))
    return 0


def arch(name: str, arguments: list[str]) -> int:
    """Alone it says what it is; `arch -arm64 COMMAND` runs one."""
    if not arguments:
        print("arm64" if machine() == "arm64" else "i386")
        return 0
    words = list(arguments)
    while words and words[0].startswith("-"):
        words.pop(0)
    return os.execvp(words[0], words)


def sw_vers(name: str, arguments: list[str]) -> int:
    """Two tabs stand behind the colon."""
    full, build, _ = release()
    rows = {"ProductName": "macOS", "ProductVersion": full, "BuildVersion": build}
    if common.options()["version_extra"]:
        rows["ProductVersionExtra"] = common.options()["version_extra"]
    if not arguments:
        print("\n".join(f"{key}:\t\t{value}" for key, value in rows.items()))
        return 0
    wanted = {key.lower(): value for key, value in rows.items()}.get(arguments[0].lstrip("-").lower())
    if wanted is None:
        common.complain(f"sw_vers: unrecognized option `{arguments[0]}'")
        return 1
    print(wanted)
    return 0


def oids() -> dict[str, str]:
    """What sysctl knows."""
    options = common.options()
    full, build, kernel = release()
    boot = json.loads((common.VOLATILE / "boot.json").read_text())
    model, performance, efficiency = common.CHIPS.get(options["chip"], ("MacPro7,1", 12, 0))
    cores = str(performance + efficiency)
    moment = time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(boot["boot"]))
    load = Path("/proc/loadavg").read_text().split()[:3]
    found = {
        "kern.ostype": "Darwin",
        "kern.osrelease": kernel,
        "kern.osversion": build,
        "kern.osproductversion": full,
        "kern.version": f"Darwin Kernel Version {kernel}: root:xnu-double",
        "kern.hostname": os.uname().nodename,
        "kern.boottime": f"{{ sec = {int(boot['boot'])}, usec = {int(boot['boot'] % 1 * 1e6)} }} {moment}",
        "kern.bootsessionuuid": boot["uuid"],
        "kern.maxfiles": "491520",
        "kern.maxfilesperproc": "245760",
        "kern.hv_vmm_present": "0",
        "hw.memsize": str(options["memory"]),
        "hw.model": model,
        "hw.machine": machine(),
        "hw.ncpu": cores,
        "hw.physicalcpu": cores,
        "hw.logicalcpu": cores,
        "hw.activecpu": cores,
        "hw.pagesize": "16384" if is_arm() else "4096",
        "machdep.cpu.brand_string": options["chip"],
        "machdep.cpu.core_count": cores,
        "machdep.cpu.thread_count": cores,
        "vm.loadavg": "{ " + " ".join(load) + " }",
        "vm.swapusage": "total = 0.00M  used = 0.00M  free = 0.00M  (encrypted)",
    }
    if is_arm():
        found |= {
            "hw.optional.arm64": "1",
            "hw.nperflevels": "2",
            "hw.perflevel0.physicalcpu": str(performance),
            "hw.perflevel1.physicalcpu": str(efficiency),
            "sysctl.proc_translated": "1" if options["rosetta"] else "0",
        }
        if options["wired_limit"]:
            found["iogpu.wired_limit_mb"] = str(common.peek("sysctl", volatile=True).get("iogpu.wired_limit_mb", 0))
    return found


WRITABLE = ("iogpu.wired_limit_mb", "kern.maxfiles", "kern.maxfilesperproc", "kern.hostname")


def sysctl(name: str, arguments: list[str]) -> int:
    """The command: what is asked for, or set by NAME=VALUE."""
    pairs, rest, bad = common.getopt(arguments, "AabdeilhNnoqwxX")
    if bad:
        return common.illegal("sysctl", bad, "sysctl [-bdehiNnoqx] name[=value] ...")
    flags = {letter for letter, _ in pairs}
    known = oids()
    code = 0
    if flags & {"a", "A"}:
        rest = list(known)
    for word in rest:
        key, equals, value = word.partition("=")
        if key not in known:
            children = [each for each in known if each.startswith(f"{key}.")]
            if children and not equals:
                for each in children:
                    print(known[each] if "n" in flags else f"{each}: {known[each]}")
                continue
            if "i" not in flags:
                common.complain(f"sysctl: unknown oid '{key}'")
                code = 1
            continue
        if not equals:
            print(known[key] if "n" in flags else f"{key}: {known[key]}")
            continue
        if key not in WRITABLE:
            common.complain(f"sysctl: oid '{key}' is read only")
            code = 1
        elif not common.is_root():
            common.complain(f"sysctl: {key}={value}: Operation not permitted")
            code = 1
        elif not value.isdigit() and key != "kern.hostname":
            common.complain(f"sysctl: invalid integer '{value}'")
            code = 1
        else:
            with common.kept("sysctl", volatile=True) as kept:
                kept[key] = value
            print(f"{known[key]} -> {value}" if "n" in flags else f"{key}: {known[key]} -> {value}")
    return code


def system_profiler(name: str, arguments: list[str]) -> int:
    """SPHardwareDataType and SPSoftwareDataType; with -json as Apple writes JSON."""
    types = [word for word in arguments if word.startswith("SP")] or ["SPHardwareDataType"]
    options = common.options()
    full, build, kernel = release()
    model, performance, efficiency = common.CHIPS.get(options["chip"], ("MacPro7,1", 12, 0))
    hardware = {
        "_name": "hardware_overview",
        "activation_lock_status": "activation_lock_disabled",
        "boot_rom_version": "13822.1.2",
        "chip_type": options["chip"],
        "machine_model": model,
        "machine_name": "Mac Studio",
        "model_number": "Z17Z000H8D/A",
        "number_processors": f"proc {performance + efficiency}:{performance}:{efficiency}",
        "os_loader_version": "13822.1.2",
        "physical_memory": f"{options['memory'] // 2**30} GB",
        "platform_UUID": "5D0E1B2C-0000-5000-8000-D0B1E0000001",
        "provisioning_UDID": "00006020-000000000000001E",
        "serial_number": "D0UBLE0001",
    }
    software = {
        "_name": "os_overview",
        "boot_mode": "normal_boot",
        "kernel_version": f"Darwin {kernel}",
        "local_host_name": os.uname().nodename.split(".")[0],
        "os_version": f"macOS {full} ({build})",
        "secure_vm": "secure_vm_enabled",
        "system_integrity": "integrity_enabled",
    }
    if not is_arm():
        hardware = {key: value for key, value in hardware.items() if key != "chip_type"} | {"cpu_type": options["chip"]}
    found = {"SPHardwareDataType": [hardware], "SPSoftwareDataType": [software]}
    if "-json" in arguments:
        print(json.dumps({each: found.get(each, []) for each in types}, indent=2, separators=(",", " : ")))
        return 0
    for each in types:
        title = {"SPHardwareDataType": "Hardware", "SPSoftwareDataType": "Software"}.get(each, each)
        print(f"{title}:\n\n    {title} Overview:\n")
        for entry in found.get(each, []):
            for key, value in entry.items():
                if not key.startswith("_"):
                    print(f"      {key.replace('_', ' ').title()}: {value}")
        print()
    return 0


def scutil(name: str, arguments: list[str]) -> int:
    """--get, --set and --dns."""
    if arguments[:1] == ["--get"] and len(arguments) > 1:
        key = arguments[1]
        if key not in ("HostName", "ComputerName", "LocalHostName"):
            common.complain(f"SCPreferencesGetValue({key}) failed: No such key" if key else "usage: scutil --get pref")
            return 1
        names = {"ComputerName": "Operator's Mac Studio", "LocalHostName": "Operators-Mac-Studio"}
        value = {**names, **common.peek("names")}.get(key)
        if value is None:
            common.complain(f"{key}: not set")
            return 1
        print(value)
        return 0
    if arguments[:1] == ["--set"] and len(arguments) > 1:
        if not common.is_root():
            common.complain("This command must be run as root.")
            return 1
        value = arguments[2] if len(arguments) > 2 else sys.stdin.readline().strip()
        with common.kept("names") as names:
            names[arguments[1]] = value
        if arguments[1] == "HostName":
            try:
                socket.sethostname(value)
            except OSError as error:
                common.complain(str(error))
        return 0
    if arguments[:1] == ["--dns"]:
        servers = [
            line.split()[1] for line in Path("/etc/resolv.conf").read_text().splitlines() if "nameserver" in line
        ]
        print("DNS configuration\n\nresolver #1")
        print("\n".join(f"  nameserver[{number}] : {server}" for number, server in enumerate(servers)))
        return 0
    common.complain("usage: scutil\n\tinteractive access to the dynamic store.\n   or: scutil --get pref")
    return 1


def ioreg(name: str, arguments: list[str]) -> int:
    """The platform expert alone."""
    print("+-o Root  <class IORegistryEntry, id 0x100000100, retain 30>")
    print("  +-o J475cAP  <class IOPlatformExpertDevice, id 0x100000231, registered, matched, active, busy 0>")
    print("      {")
    print('        "IOPlatformSerialNumber" = "D0UBLE0001"')
    print('        "IOPlatformUUID" = "5D0E1B2C-0000-5000-8000-D0B1E0000001"')
    print("      }")
    return 0


def vm_stat(name: str, arguments: list[str]) -> int:
    """Pages of a Mac with half its memory free."""
    size = 16384 if is_arm() else 4096
    pages = common.options()["memory"] // size
    print(f"Mach Virtual Memory Statistics: (page size of {size} bytes)")
    rows = {"free": pages // 2, "active": pages // 8, "inactive": pages // 8, "speculative": 1000, "throttled": 0}
    rows |= {"wired down": pages // 8, "purgeable": 1000}
    for key, value in rows.items():
        text = f"Pages {key}:"
        print(f"{text:<38}{value:>7}.")
    return 0


def nvram(name: str, arguments: list[str]) -> int:
    """NAME, NAME=VALUE, -d NAME, -p."""
    with common.kept("nvram") as kept:
        for word in arguments or ["-p"]:
            if word in ("-p", "-x"):
                print("\n".join(f"{key}\t{value}" for key, value in {"SystemAudioVolume": "%80", **kept}.items()))
            elif word == "-d":
                if not common.is_root():
                    common.complain(f"nvram: Error clearing variable - '{arguments[-1]}': (iokit/common) not permitted")
                    return 1
                if kept.pop(arguments[-1], None) is None:
                    common.complain(
                        f"nvram: Error clearing variable - '{arguments[-1]}': (iokit/common) data was not found"
                    )
                    return 1
                return 0
            elif "=" in word:
                key, _, value = word.partition("=")
                if not common.is_root():
                    common.complain(f"nvram: Error setting variable - '{key}': (iokit/common) not permitted")
                    return 1
                kept[key] = value
            elif word in kept:
                print(f"{word}\t{kept[word]}")
            else:
                common.complain(f"nvram: Error getting variable - '{word}': (iokit/common) data was not found")
                return 1
    return 0


def uptime(name: str, arguments: list[str]) -> int:
    """Since the boot of the container, not of the machine below."""
    seconds = time.time() - json.loads((common.VOLATILE / "boot.json").read_text())["boot"]
    minutes = int(seconds // 60)
    hours, days = minutes // 60, minutes // 1440
    up = f"{days} day{'s' * (days > 1)}, " if days else ""
    up += f"{hours % 24}:{minutes % 60:02d}" if hours % 24 else f"{minutes % 60} min{'s' * (minutes % 60 != 1)}"
    load = " ".join(Path("/proc/loadavg").read_text().split()[:3])
    print(f"{time.strftime('%H:%M').lstrip('0')}  up {up}, 1 user, load averages: {load}")
    return 0
