"""Watches the engines named in the JSON file on the command line, and restarts one that hangs, until SIGTERM.

An engine that ends is restarted by systemd. This is for one that goes on running and does not answer: every few seconds
each is asked whether it works, and, where its model is in memory, a question of one token. One that fails twice in a
row is killed and started anew. An engine that computes is busy, not hanging: as long as it uses the processor, a
question without an answer says nothing.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

EVERY = 10.0  # seconds between two looks at an engine
HEALTH_WITHIN = 5.0  # seconds for the answer that it works
QUESTION_WITHIN = 10.0  # seconds for one token, of an engine that has nothing else to do
QUESTION_EVERY = 30.0
FAILURES = 2  # looks in a row
# Looks in a row that an engine may not say whether it works while it computes, as on a machine with too much to do.
FAILURES_BUSY = 18
# Seconds before the next restart of the same engine; each restart doubles them, ten quiet minutes take that back.
PAUSE, LONGEST_PAUSE, QUIET = 30.0, 900.0, 600.0
# Share of one processor that counts as work, while a question waits.
BUSY = 0.05

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Fault(Exception):
    """An engine does not answer as it should; the text says how. `busy`: it used the processor meanwhile."""

    busy = False


def ask(url: str, within: float, body: object = None, key: str = "") -> str:
    """The answer of `url`, or Fault. `within` is seconds for all of it; `key` is what the engine asks for."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, data, headers)  # noqa: S310 -- ours, http
    began = time.monotonic()
    try:
        with OPENER.open(request, timeout=within) as answer:
            read = b""
            while part := answer.read1(65536):
                read += part
                if time.monotonic() - began > within:
                    raise Fault(f"{url} had not answered completely after {within:.0f} s")
            return read.decode(errors="replace")
    except urllib.error.HTTPError as error:
        raise Fault(f"{url} answered {error.code}") from error
    except TimeoutError as error:
        raise Fault(f"{url} did not answer within {within:.0f} s") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise Fault(f"{url} did not answer within {within:.0f} s") from error
        raise Fault(f"{url} cannot be reached: {reason}") from error
    except Exception as error:  # what is no HTTP at all
        raise Fault(f"{url} answered what is not HTTP: {error!r}") from error


def unit_state(unit: str) -> "tuple[str, str]":
    """Of a unit: whether it is active, and its control group."""
    show = ["systemctl", "show", "--property", "ActiveState", "--property", "ControlGroup", f"{unit}.service"]
    done = subprocess.run(show, capture_output=True, text=True, check=False, timeout=30)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return found.get("ActiveState", ""), found.get("ControlGroup", "")


def processor_time(group: str) -> float:
    """Seconds of processor time that all processes in a control group have used."""
    ticks = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                groups = (process / "cgroup").read_text().splitlines()
                if group and any(line.split(":", 2)[2] == group for line in groups):
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                    ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Engine:
    """One engine: what it is asked, and what it did so far."""

    def __init__(self, settings: "dict") -> None:
        self.unit = settings["unit"]
        self.health, self.body = settings["health"], settings["body"]
        self.question, self.key = settings["question"], settings.get("key", "")
        self.failures = 0
        self.restarts = 0
        self.restarted = self.asked = float("-inf")
        self.told = ""

    def look(self) -> None:
        """Ask once, and restart the engine when it is time to."""
        state, group = unit_state(self.unit)
        if state != "active":
            # It is being started, or somebody stopped it: not this program's affair.
            self.failures = 0
            return
        try:
            self.examine(group)
        except Fault as fault:
            self.failures += 1
            if self.failures >= (FAILURES_BUSY if fault.busy else FAILURES):
                self.restart(str(fault))
            return
        if self.told:
            self.say("answers again")
        self.failures, self.told = 0, ""
        if time.monotonic() - self.restarted > QUIET:
            self.restarts = 0

    def examine(self, group: str) -> None:
        """Raises Fault when the engine hangs."""
        before, began = processor_time(group), time.monotonic()
        try:
            answer = ask(self.health, HEALTH_WITHIN)
        except Fault as fault:
            fault.busy = self.worked(group, before, began)
            raise
        if self.body and not re.search(self.body, answer):
            raise Fault(f"{self.health} answers, but not that it works: {answer[:80]!r}")
        if not self.question or (time.monotonic() - self.asked < QUESTION_EVERY and not self.failures):
            return
        before, began = processor_time(group), time.monotonic()
        self.asked = began
        try:
            ask(self.question["url"], QUESTION_WITHIN, self.question["body"], self.key)
        except Fault:
            if not self.worked(group, before, began):
                raise

    def worked(self, group: str, before: float, began: float) -> bool:
        """Whether the engine used the processor since the time `began`, when it had used `before` seconds of it."""
        return processor_time(group) - before >= BUSY * (time.monotonic() - began)

    def restart(self, why: str) -> None:
        """Kill the engine and start it anew; not more often than the pause allows."""
        pause = min(PAUSE * 2 ** max(0, self.restarts - 1), LONGEST_PAUSE) if self.restarts else 0.0
        left = self.restarted + pause - time.monotonic()
        if left > 0:
            if self.told != why:
                self.say(f"hangs again ({why}); it is restarted in {left:.0f} s at the earliest")
            self.told = why
            return
        self.told = why
        self.restarts += 1
        self.restarted = time.monotonic()
        # The next look asks everything.
        self.failures, self.asked = 0, float("-inf")
        self.say(f"hangs, restart number {self.restarts}: {why}")
        # A process that is stopped would not end by itself, and one that hangs may not listen.
        for command in (["kill", "--signal=SIGKILL"], ["restart", "--no-block"]):
            done = subprocess.run(
                ["systemctl", *command, f"{self.unit}.service"],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if done.returncode:
                self.say(f"systemctl {command[0]} failed: {done.stderr.strip()}")

    def say(self, text: str) -> None:
        """A line for the journal."""
        print(f"{self.unit} {text}", flush=True)


def watch(engine: Engine) -> None:
    """Look again and again."""
    while True:
        try:
            engine.look()
        except Exception as error:  # the next look may succeed; nobody else would look
            engine.say(f"could not be examined: {error!r}")
        time.sleep(EVERY)


def main() -> None:
    """A thread for each engine, so that one that hangs does not keep the others waiting."""
    import threading

    settings = json.loads(Path(sys.argv[1]).read_text())
    threads = [threading.Thread(target=watch, args=(Engine(one),), daemon=True) for one in settings["engines"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
