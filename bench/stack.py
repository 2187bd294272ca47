#!/usr/bin/env python3
"""Times the main job as a user meets it: first run, second run, plan, rebuild from warm caches; prints a table.

Run it in a fresh clone: `python3 bench/stack.py > bench/stack.md`. State and caches are temporary folders of its own,
so that the first run is really a first one; the lab box is called `bench`. It downloads what the lab needs, and takes
some minutes.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOXWRIGHT = str(ROOT / ".venv/bin/boxwright")


def machine() -> str:
    """One line about this machine: cores, memory, processor, system."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    return (
        f"{os.cpu_count()} cores ({cpu.group(1) if cpu else platform.machine()}), "
        f"{int(memory.group(1)) // 2**20 if memory else '?'} GiB, {system}, Python {platform.python_version()}"
    )


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, str, int]:
    """Seconds, standard output and peak resident memory (KiB) of `command`. Ends the program when it fails."""
    print(f"... {' '.join(command)}", file=sys.stderr)
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return time.monotonic() - begun, output, usage.ru_maxrss


def main() -> None:
    """Run every step and print the table."""
    with tempfile.TemporaryDirectory(prefix="boxwright-bench-") as folder:
        environment = dict(os.environ)
        environment |= {"BOXWRIGHT_STATE_DIR": f"{folder}/state", "BOXWRIGHT_CACHE_DIR": f"{folder}/cache"}
        environment["BOXWRIGHT_INVENTORY"] = f"{folder}/state/lab/bench/hosts.yml"
        up, down = [BOXWRIGHT, "lab", "up", "bench"], [BOXWRIGHT, "lab", "down", "bench"]
        apply, plan = [BOXWRIGHT, "apply", "--json"], [BOXWRIGHT, "plan", "--json"]
        rows: list[tuple[str, float, str]] = []
        try:
            setup, _, _ = timed(["make", "-B", ".venv/.complete"], environment)
            rows.append(("virtual environment", setup, "pip's own cache as found"))
            first_up, _, _ = timed(up, environment)
            first, output, memory = timed(apply, environment)
            host = json.loads(output)["hosts"]["lab-bench"]
            rows += [
                ("lab, nothing cached", first_up, "engine present; image, mirror and Open WebUI built"),
                (
                    "first apply",
                    first,
                    f"{host['remote_commands']} remote commands, {len(host['changed'])} changes, {memory // 1024} MiB",
                ),
                ("**first `make stack`**", setup + first_up + first, "the three above"),
            ]
            second, output, memory = timed(apply, environment)
            host = json.loads(output)["hosts"]["lab-bench"]
            rows.append(
                (
                    "**second apply**",
                    second,
                    f"{host['remote_commands']} remote commands, {len(host['changed'])} changes, {memory // 1024} MiB",
                )
            )
            planned, output, _ = timed(plan, environment)
            rows.append(
                ("plan", planned, f"{json.loads(output)['hosts']['lab-bench']['remote_commands']} remote commands")
            )
            verified, _, _ = timed([BOXWRIGHT, "verify"], environment)
            rows.append(("verify", verified, ""))
            timed(down, environment)
            warm_up, _, _ = timed(up, environment)
            again, _, _ = timed(apply, environment)
            rows.append(
                (
                    "**`make stack` after `lab down`, warm caches**",
                    warm_up + again,
                    f"lab {warm_up:.1f} s, apply {again:.1f} s",
                )
            )
        finally:
            subprocess.run([BOXWRIGHT, "lab", "down", "bench", "--purge"], cwd=ROOT, env=environment, check=False)
        print(f"{machine()}\n\n| step | seconds | ratio to second apply | |\n| --- | ---: | ---: | --- |")
        for name, seconds, note in rows:
            print(f"| {name} | {seconds:.1f} | {seconds / second:.1f} | {note} |")


if __name__ == "__main__":
    main()
