"""Watches the engines named in the JSON file on the command line, and restarts one that hangs, until SIGTERM.

An engine that ends is restarted by systemd, or launchd on a Mac. This is for one that goes on running and does not
answer: every few seconds each is asked whether it works, and, where its model is in memory, a question of one token.
One that fails twice in a row is killed and started anew. An engine that computes is busy, not hanging: as long as it
uses the processor, a question without an answer says nothing.
"""

import contextlib
import json
import os
import pwd
import re
import signal
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
# Seconds from the start of a process to its first answer, where nobody tells when it is ready: a large model is read
# from the disk meanwhile.
STARTING = 1800.0

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


class Systemd:
    """Services under systemd: which are ready it knows, and all processes of one are in a control group."""

    def job(self, unit: str, session: str) -> str:
        """How it is called when it is asked for."""
        return f"{unit}.service"

    def running(self, job: str) -> str:
        """The control group of a service that is ready; empty for any other."""
        show = ["systemctl", "show", "--property", "ActiveState", "--property", "ControlGroup", job]
        done = subprocess.run(show, capture_output=True, text=True, check=False, timeout=30)
        found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        return found.get("ControlGroup", "") if found.get("ActiveState") == "active" else ""

    def age(self, group: str) -> float:
        """Seconds since the service was started; what is not ready yet is not looked at."""
        return float("inf")

    def work(self, group: str, account: str) -> float:
        """Seconds of processor time that all its processes have used."""
        ticks = 0
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with contextlib.suppress(OSError, ValueError):
                    groups = (process / "cgroup").read_text().splitlines()
                    if any(line.split(":", 2)[2] == group for line in groups):
                        fields = (process / "stat").read_text().rpartition(")")[2].split()
                        ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def restart(self, job: str, group: str, account: str) -> "list[str]":
        """Kill it and start it anew; what went wrong."""
        # A process that is stopped would not end by itself, and one that hangs may not listen.
        kill = ["systemctl", "kill", "--signal=SIGKILL", job]
        return tried(kill, ["systemctl", "restart", "--no-block", job])


class Launchd:
    """Services under launchd: one counts as running from its first moment, and is known by its first process."""

    def job(self, unit: str, session: str) -> str:
        """How launchd calls it: in the session of that user, or in the system's."""
        return f"{f'gui/{pwd.getpwnam(session).pw_uid}' if session else 'system'}/boxwright.{unit}"

    def running(self, job: str) -> str:
        """The number of its first process; empty when there is none, or its user is not signed in."""
        show = ["/bin/launchctl", "print", job]
        done = subprocess.run(show, capture_output=True, text=True, check=False, timeout=30)
        # Its own lines begin with one tab. What the service was given comes between state and number, and may hold
        # anything.
        states = re.findall(r"^\tstate = (.*)$", done.stdout, re.MULTILINE)
        numbers = re.findall(r"^\tpid = (\d+)$", done.stdout, re.MULTILINE)
        return numbers[-1] if done.returncode == 0 and numbers and states[:1] == ["running"] else ""

    def age(self, first: str) -> float:
        """Seconds since the process was started."""
        asked = ["/bin/ps", "-o", "etime=", "-p", first]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
        return seconds(done.stdout.strip() or "0")

    def work(self, first: str, account: str) -> float:
        """Seconds of processor time that its processes have used."""
        return sum(self.processes(first, account).values())

    def processes(self, first: str, account: str) -> "dict[int, float]":
        """The process `first`, all that come from it, and all of `account` where one is named: number and time."""
        asked = ["/bin/ps", "-axo", "pid=,ppid=,uid=,time="]
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30)
        owner = str(pwd.getpwnam(account).pw_uid) if account else ""
        rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
        ours = {first}
        while more := {pid for pid, parent, uid, _ in rows if (parent in ours or uid == owner) and pid not in ours}:
            ours |= more
        return {int(pid): seconds(used) for pid, _, _, used in rows if pid in ours}

    def restart(self, job: str, first: str, account: str) -> "list[str]":
        """Kill it and start it anew; what went wrong."""
        for process in self.processes(first, account):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        # launchd itself would start it again, but only ten seconds after it was last started.
        return tried(["/bin/launchctl", "kickstart", "-k", job])


def seconds(text: str) -> float:
    """A time as `ps` prints it: [[DAYS-]HOURS:]MINUTES:SECONDS."""
    days, _, rest = text.rpartition("-")
    total = 0.0
    for part in rest.split(":"):
        total = total * 60 + float(part)
    return total + float(days or 0) * 86400


def tried(*commands: "list[str]") -> "list[str]":
    """What went wrong when these were run, one after the other."""
    wrong = []
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            wrong.append(f"{' '.join(command[:2])} failed: {done.stderr.strip()}")
    return wrong


class Engine:
    """One engine: what it is asked, and what it did so far."""

    def __init__(self, settings: "dict", system: "Systemd | Launchd") -> None:
        self.system = system
        self.unit, self.account = settings["unit"], settings.get("account", "")
        self.job = system.job(self.unit, settings.get("session", ""))
        self.health, self.body = settings["health"], settings["body"]
        self.question, self.key = settings["question"], settings.get("key", "")
        # Looks in a row at which no model was in memory.
        self.unloaded = 0
        self.failures = 0
        self.restarts = 0
        self.restarted = self.asked = float("-inf")
        self.told = ""
        # Which of its processes has answered.
        self.answered = ""

    def look(self) -> None:
        """Ask once, and restart the engine when it is time to."""
        running = self.system.running(self.job)
        if not running:
            # It is being started, or somebody stopped it: not this program's affair.
            self.failures = 0
            return
        try:
            self.examine(running)
        except Fault as fault:
            if self.answered != running and self.system.age(running) < STARTING:
                self.failures = 0
                return
            self.failures += 1
            if self.failures >= (FAILURES_BUSY if fault.busy else FAILURES):
                self.restart(running, str(fault))
            return
        if self.told:
            self.say("answers again")
        self.failures, self.told, self.answered = 0, "", running
        if time.monotonic() - self.restarted > QUIET:
            self.restarts = 0

    def examine(self, running: str) -> None:
        """Raises Fault when the engine hangs."""
        before, began = self.work(running), time.monotonic()
        try:
            answer = ask(self.health, HEALTH_WITHIN)
        except Fault as fault:
            fault.busy = self.worked(running, before, began)
            raise
        if self.body and not re.search(self.body, answer):
            raise Fault(f"{self.health} answers, but not that it works: {answer[:80]!r}")
        if not self.question or (time.monotonic() - self.asked < QUESTION_EVERY and not self.failures):
            return
        before, began = self.work(running), time.monotonic()
        self.asked = began
        try:
            body = self.body_of_question()
            if body is not None:
                ask(self.question["url"], QUESTION_WITHIN, body, self.key)
        except Fault:
            if not self.worked(running, before, began):
                raise

    def body_of_question(self) -> "dict | None":
        """What is asked; None: nothing now.

        An engine that is asked by another context than the one that a client has asked for loads its model anew, for
        the question and then for the client. So where it tells what it has in memory, it is asked for just that. What
        is not in memory may be on its way there; at the second time it is asked for as it is declared, which loads it.
        """
        body, loaded = self.question["body"], self.question.get("loaded")
        if not loaded:
            return body
        try:
            models = json.loads(ask(loaded["url"], HEALTH_WITHIN, None, self.key))["models"]
            found = [model["context_length"] for model in models if model["name"] == loaded["name"]]
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(f"{loaded['url']} does not tell what is in memory: {error!r}") from error
        if found:
            self.unloaded = 0
            return {**body, "options": {**body["options"], "num_ctx": found[0]}}
        self.unloaded += 1
        return body if self.unloaded > 1 else None

    def work(self, running: str) -> float:
        """Seconds of processor time that the engine has used."""
        return self.system.work(running, self.account)

    def worked(self, running: str, before: float, began: float) -> bool:
        """Whether the engine used the processor since the time `began`, when it had used `before` seconds of it."""
        return self.work(running) - before > BUSY * (time.monotonic() - began)

    def restart(self, running: str, why: str) -> None:
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
        for problem in self.system.restart(self.job, running, self.account):
            self.say(problem)

    def say(self, text: str) -> None:
        """A line for the log."""
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
    system = Launchd() if settings["system"] == "darwin" else Systemd()
    engines = [Engine(one, system) for one in settings["engines"]]
    threads = [threading.Thread(target=watch, args=(engine,), daemon=True) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
