"""Keeps LM Studio's headless server running with exactly the declared models, and ends when it does not run any more.

LM Studio's daemon goes into the background and nothing upstream notices its end, so systemd, or launchd on a Mac,
watches this program in its place. `run` stays in the foreground; `ready` returns when a `run` answers, and `reload`,
which makes it compare its models again, when they are loaded. Written for `lms` of August 2026 with llmster 0.0.25;
only the standard library of Python is needed.

Facts that decide how `lms` is used: its exit code says nothing about the state, so JSON is read. Most commands start
the daemon when it does not run, so that it is looked for first. `lms load` makes another instance each time. A key is
matched loosely, a path with --exact is not. The HTTP server answers unknown paths with success, so the body counts.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

# The folder of our models below LM Studio's own: what is there and not declared is taken away, the rest is not ours.
PUBLISHER = "boxwright"
# Seconds. A question to the server, how often it is asked, and how often `lms` is, which costs more.
QUESTION, EACH, COMPARE = 10, 2, 30
# So many unanswered questions in a row mean that the server hangs.
PATIENCE = 3
# Seconds for a command of `lms`, for one that loads a model, and until a model on the disk is listed.
COMMAND, LOAD, LISTED = 120, 3600, 60

# In LM Studio's own file, which it reads when the daemon starts and writes when the server does. Its form is internal
# to LM Studio and not supported; a version that does not know these keys ignores them.
SERVER_SETTINGS = {
    # A model that is asked for must be one that is declared, with the declared settings.
    "justInTimeModelLoading": False,
    # Else the text of every request is written to the disk.
    "logSensitiveData": False,
    "logIncomingTokens": False,
    # Started by this program, when the models are loaded.
    "autoStartOnLaunch": False,
    # What browsers may do is the gateway's affair.
    "cors": False,
    "networkInterface": "127.0.0.1",
}


class Trouble(Exception):
    """What a person must know; the service ends with it, or the reload."""


@dataclass(frozen=True)
class Model:
    """A declared model: public name, file, `chat` or `embedding`, tokens of a request, requests at a time, and the
    share of it on the graphics card as `lms load --gpu` takes it.
    """

    name: str
    file: str
    kind: str
    context: int
    parallel: int
    gpu: str

    @property
    def repository(self) -> str:
        """The folder of its file below PUBLISHER, for this model alone: LM Studio names models by their folder."""
        plain = re.sub(r"[^A-Za-z0-9._-]", "-", self.name)
        return plain if plain == self.name else f"{plain}-{sha256(self.name.encode()).hexdigest()[:6]}"

    @property
    def path(self) -> str:
        """As LM Studio names it exactly."""
        return f"{PUBLISHER}/{self.repository}/{Path(self.file).name}"


def fits(model: Model, instance: dict[str, Any]) -> bool:
    """Whether `instance`, an element of `lms ps --json`, has the settings of `model`.

    The share on the graphics card is not among what LM Studio tells; embedding models have no number of requests.
    """
    return (
        instance.get("contextLength") == model.context
        and instance.get("parallel") in (None, model.parallel)
        and instance.get("ttlMs") is None
    )


def differences(
    wanted: list[Model], loaded: list[dict[str, Any]], ours: dict[str, Model]
) -> tuple[list[str], list[Model]]:
    """Identifiers to unload, and models to load then. `ours` are those that this program loaded, by identifier."""
    declared = {model.name: model for model in wanted}
    kept = set()
    unload = []
    for instance in loaded:
        identifier = str(instance.get("identifier"))
        model = declared.get(identifier)
        if model and identifier not in kept and ours.get(identifier) == model and fits(model, instance):
            kept.add(identifier)
        else:
            unload.append(identifier)
    return unload, [model for model in wanted if model.name not in kept]


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "nothing")


def stamp(path: str) -> str:
    """Changes when the file does."""
    found = Path(path).stat()
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"


class Lms:
    """The command `lms` of one installation."""

    def __init__(self, home: Path) -> None:
        self.home = home / ".lmstudio"

    def run(self, *words: str, seconds: int = COMMAND) -> subprocess.CompletedProcess[str]:
        """One command, without a terminal; raises Trouble when it does not end."""
        try:
            return subprocess.run(
                [str(self.home / "bin" / "lms"), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Trouble(f"`lms {' '.join(words)}` has not ended within {seconds} s") from None
        except OSError as error:
            raise Trouble(f"`lms` cannot be run: {error}") from None

    def must(self, *words: str, seconds: int = COMMAND) -> str:
        """Standard output of a command that must succeed."""
        done = self.run(*words, seconds=seconds)
        if done.returncode != 0:
            raise Trouble(f"`lms {' '.join(words)}` failed with {done.returncode}: {last_lines(done.stderr)}")
        return done.stdout

    def json(self, kind: type, *words: str) -> Any:
        """The answer of a command with --json, which must be of the type `kind`."""
        done = self.run(*words, "--json")
        try:
            found = json.loads(done.stdout)
        except ValueError:
            found = None
        if done.returncode != 0 or not isinstance(found, kind):
            raise Trouble(
                f"`lms {' '.join(words)} --json` did not answer as documented "
                f"(exit code {done.returncode}): {first_line(done.stdout or done.stderr)}"
            )
        return found

    def loaded(self) -> list[dict[str, Any]]:
        """What is in memory."""
        found: list[dict[str, Any]] = self.json(list, "ps")
        return found


def last_lines(text: str) -> str:
    """The end of what a command said, on one line."""
    return " ".join(line.strip() for line in text.splitlines()[-3:] if line.strip()) or "it said nothing"


def alive(process: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
        except OSError:
            return False
    asked = ["/bin/ps", "-o", "state=", "-p", str(process)]
    done = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stdout.strip().startswith("Z")


class Supervisor:
    """The daemon, its server and its models, from start to end."""

    def __init__(self, settings: dict[str, Any], models_file: Path, state: Path) -> None:
        self.lms = Lms(Path(settings["home"]))
        self.port = int(settings["port"])
        self.graphics = bool(settings["graphics"])
        self.models_file = models_file
        self.state = state
        self.daemon = 0
        self.declared: list[Model] = []
        self.told = ""
        self.serving = False
        self.ours: dict[str, Model] = {}
        self.files: dict[str, str] = {}
        self.asked_to_reload = False
        self.reloads = 0

    def read(self) -> list[Model]:
        """The declared models, as the file has them now."""
        return [Model(**entry) for entry in json.loads(self.models_file.read_text())]

    def prepare(self) -> None:
        """Nothing runs, and LM Studio's own settings are those that we need."""
        if self.lms.json(dict, "daemon", "status").get("status") != "not-running":
            say("a daemon of LM Studio runs already; it is stopped")
            self.lms.run("daemon", "down")
            wait(lambda: self.lms.json(dict, "daemon", "status").get("status") == "not-running", 60, "it does not stop")
        internal = self.lms.home / ".internal"
        # llmster 0.0.25 does not make it, and without it no model can be loaded.
        (internal / "temp").mkdir(parents=True, exist_ok=True)
        path = internal / "http-server-config.json"
        try:
            saved = json.loads(path.read_text())
        except (OSError, ValueError):
            saved = {}
        text = json.dumps(
            {**(saved if isinstance(saved, dict) else {}), **SERVER_SETTINGS, "port": self.port}, indent=2
        )
        temporary = path.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(path)

    def start(self) -> None:
        """Daemon, models, server, in this order: nobody is answered before the models are there."""
        up = self.lms.json(dict, "daemon", "up")
        if not up.get("isDaemon") or not isinstance(up.get("pid"), int):
            raise Trouble(f"`lms daemon up --json` did not answer as documented: {json.dumps(up)}")
        self.daemon = up["pid"]
        say(f"the daemon of LM Studio {up.get('version', '')} runs (process {self.daemon})")
        if self.graphics:
            self.select_graphics()
        self.declared = self.read()
        self.reconcile(self.declared)
        self.start_server()
        for model in self.declared:
            self.question(model)
        self.serving = True

    def start_server(self) -> None:
        """The server answers on loopback, and it is LM Studio that answers."""
        # It gives its server half a second to answer and says that it failed, when it is slow; so does `server status`.
        done = self.lms.run("server", "start", "--port", str(self.port), "--bind", "127.0.0.1")
        problem = f"LM Studio's server does not answer on port {self.port}: {last_lines(done.stderr)}"
        wait(self.greets, 30, problem)

    def select_graphics(self) -> None:
        """The engine for graphics cards: at first the one without is selected, also in the bundle that has both."""
        rows = [line.split() for line in self.lms.must("runtime", "ls").splitlines()]
        engines = [row[0] for row in rows if row and "@" in row[0] and "cuda" in row[0]]
        if not engines:
            raise Trouble("this bundle of LM Studio has no engine for graphics cards: set `lmstudio_bundle` to cpu")
        self.lms.must("runtime", "select", engines[0])
        survey = self.lms.json(dict, "runtime", "survey")
        memory = survey.get("memoryInfo", {}).get("vramCapacity")
        if not memory:
            code = survey.get("gpuSurveyResult", {}).get("result", {}).get("code", "unknown")
            raise Trouble(f"LM Studio finds no graphics card ({code}): is the driver loaded? `nvidia-smi` says more")
        say(f"{engines[0]} is selected; the graphics card has {memory // 2**20} MiB")

    def reconcile(self, wanted: list[Model]) -> None:
        """The models in memory are these, each once."""
        self.link(wanted)
        for identifier, model in list(self.ours.items()):
            if Path(model.file).exists() and self.files[identifier] != stamp(model.file):
                say(f"{model.file} has changed")
                del self.ours[identifier]
        unload, load = differences(wanted, self.lms.loaded(), self.ours)
        for identifier in unload:
            say(f"unloading {identifier}: it is not declared like that")
            self.ours.pop(identifier, None)
            self.lms.run("unload", identifier)
        for model in load:
            self.load(model)
        if unload or load:
            left, missing = differences(wanted, self.lms.loaded(), self.ours)
            if left or missing:
                names = ", ".join([*left, *(model.name for model in missing)])
                raise Trouble(f"after loading and unloading, `lms ps` still does not list what is declared: {names}")
        for model in load if self.serving else ():
            self.question(model)

    def link(self, wanted: list[Model]) -> None:
        """Each declared file is imported by a symbolic link, in a folder of its own; other links of ours are gone."""
        folder = self.lms.home / "models" / PUBLISHER
        places = {self.lms.home / "models" / model.path: model for model in wanted}
        for link in folder.glob("*/*"):
            if link not in places or not link.is_symlink() or str(link.readlink()) != places[link].file:
                link.unlink()
        for repository in folder.glob("*"):
            if not any(repository.iterdir()):
                repository.rmdir()
        for place, model in places.items():
            if not place.is_symlink():
                with Path(model.file).open("rb") as file:
                    if file.read(4) != b"GGUF":
                        raise Trouble(f"{model.file} ({model.name}) is not a GGUF file")
                # -l: a symbolic link. Without one of -c, -L and -l the file would be moved away, after a question.
                self.lms.must("import", model.file, "--user-repo", f"{PUBLISHER}/{model.repository}", "-y", "-l")

    def load(self, model: Model) -> None:
        """One instance of `model`, which has none."""
        entry = self.listed(model)
        kind = "embedding" if entry.get("type") == "embedding" else "chat"
        if kind != model.kind:
            raise Trouble(
                f"LM Studio takes {model.file} for a model of the kind {kind}; {model.name} is declared otherwise"
            )
        say(f"loading {model.name} from {model.file}")
        words = ["load", str(entry["path"]), "--exact", "-y", "--gpu", model.gpu, "-c", str(model.context)]
        if model.kind == "chat":
            words += ["--parallel", str(model.parallel)]
        self.lms.must(*words, "--identifier", model.name, seconds=LOAD)
        self.ours[model.name] = model
        self.files[model.name] = stamp(model.file)
        made = [one for one in self.lms.loaded() if one.get("identifier") == model.name]
        if len(made) != 1 or not fits(model, made[0]):
            found = {key: made[0].get(key) for key in ("contextLength", "parallel", "ttlMs")} if made else "nothing"
            raise Trouble(
                f"{model.name} was to be loaded with a context of {model.context} and {model.parallel} requests at a "
                f"time; LM Studio lists {json.dumps(found)}"
            )

    def listed(self, model: Model) -> dict[str, Any]:
        """The element of `lms ls --json` that is this model: files are noticed some time after they appear."""
        until = time.monotonic() + LISTED
        while True:
            for entry in self.lms.json(list, "ls"):
                if entry.get("path") in (model.path, model.path.rpartition("/")[0]):
                    return dict(entry)
            if time.monotonic() > until:
                raise Trouble(
                    f"LM Studio does not list {model.file} ({model.name}) among its models: it cannot read it"
                )
            time.sleep(0.5)

    def greets(self) -> bool:
        """Whether LM Studio's server answers; raises TimeoutError when something is there and says nothing."""
        return self.ask("/lmstudio-greeting").get("lmstudio") is True

    def ask(self, path: str) -> dict[str, Any]:
        """What the server says there, empty when that is nothing; raises TimeoutError as `greets` does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=QUESTION)
        try:
            connection.request("GET", path)
            answer = json.loads(connection.getresponse().read(2**24))
            return answer if isinstance(answer, dict) else {}
        except TimeoutError:
            raise
        except (OSError, ValueError, http.client.HTTPException):
            return {}
        finally:
            connection.close()

    def question(self, model: Model) -> None:
        """Asks the model for one token, or for the numbers of one word: only an answer shows that it works."""
        questions: dict[str, tuple[str, dict[str, Any]]] = {
            "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}),
            "embedding": ("/v1/embeddings", {"input": "Hi"}),
        }
        path, body = questions[model.kind]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=COMMAND)
        try:
            said = json.dumps({"model": model.name, **body})
            connection.request("POST", path, said, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read(2**24).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise Trouble(f"{model.name} is loaded and does not answer: {error}") from None
        finally:
            connection.close()
        if response.status != 200 or answer.lstrip().startswith('{"error"'):
            raise Trouble(f"{model.name} is loaded and does not answer: status {response.status}, {answer[:200]}")

    def as_declared(self) -> bool:
        """Whether the server lists one instance of each declared model. `lms` tells more, and costs more to ask."""
        models = self.ask("/api/v1/models").get("models")
        if not isinstance(models, list):
            return True
        try:
            listed = [str(one["id"]) for model in models for one in model.get("loaded_instances", [])]
        except (AttributeError, KeyError, TypeError):
            return True
        return sorted(listed) == sorted(model.name for model in self.declared)

    def watch(self) -> None:
        """Until something is gone; what was loaded or unloaded by others is put right."""
        unanswered = 0
        compared = time.monotonic()
        while True:
            if not alive(self.daemon):
                raise Trouble(f"the daemon of LM Studio (process {self.daemon}) is gone")
            try:
                if not self.greets():
                    # Its models are still in memory: to start everything anew would cost minutes.
                    say(f"LM Studio's server on port {self.port} is gone, while its daemon lives; it is started again")
                    self.start_server()
                wrong = not self.as_declared()
                unanswered = 0
            except TimeoutError:
                wrong = False
                unanswered += 1
                if unanswered >= PATIENCE:
                    raise Trouble(f"LM Studio's server has not answered {PATIENCE} questions of {QUESTION} s") from None
            if self.asked_to_reload:
                self.asked_to_reload = False
                self.reload()
                compared = time.monotonic()
            elif time.monotonic() - compared > COMPARE or (wrong and not self.told):
                self.put_right(wrong)
                compared = time.monotonic()
            time.sleep(EACH)

    def put_right(self, wrong: bool) -> None:
        """What others have loaded or unloaded. When that fails the rest goes on serving: it is told once, and tried
        again.
        """
        if wrong:
            # Whoever watches the service must not take a model that is being loaded for one that does not answer.
            tell_systemd(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self.reconcile(self.declared)
            self.told = ""
        except (Trouble, OSError) as error:
            if str(error) != self.told:
                say(str(error))
            self.told = str(error)
        finally:
            if wrong:
                tell_systemd("READY=1")

    def reload(self) -> None:
        """The models are those of the file now, or, when they cannot be, before long those of before again. Whoever
        waits for it reads how it went.
        """
        problem = ""
        try:
            wanted = self.read()
            self.reconcile(wanted)
            self.declared = wanted
        except (Trouble, OSError, ValueError, TypeError) as error:
            problem = str(error)
            say(problem)
        self.reloads += 1
        self.note(problem)

    def note(self, problem: str) -> None:
        """For `reload` and `ready`: whose it is, how many reloads there were, and what was wrong with the last."""
        temporary = self.state.with_suffix(".new")
        temporary.write_text(json.dumps({"process": os.getpid(), "reloads": self.reloads, "problem": problem}))
        temporary.replace(self.state)

    def stop(self) -> None:
        """Server and daemon, as far as they run; never raises."""
        for words in (("server", "stop"), ("daemon", "down")):
            if not alive(self.daemon):
                return
            try:
                self.lms.run(*words, seconds=QUESTION)
            except Trouble as trouble:
                say(str(trouble))
        until = time.monotonic() + QUESTION
        while alive(self.daemon) and time.monotonic() < until:
            time.sleep(0.1)
        # launchd, unlike systemd, would leave it and the models in its memory behind.
        if alive(self.daemon):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.daemon, signal.SIGKILL)


def wait(condition: Callable[[], bool], seconds: int, problem: str) -> None:
    """Returns when `condition` holds; raises Trouble after `seconds`."""
    until = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except TimeoutError:
            pass
        if time.monotonic() > until:
            raise Trouble(problem)
        time.sleep(0.2)


def say(text: str) -> None:
    """A line of the service's log."""
    print(text, file=sys.stderr, flush=True)


def tell_systemd(text: str) -> None:
    """Nothing where nobody asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)


class Stop(Exception):
    """systemd wants the service to end."""


def stop(number: int, frame: FrameType | None) -> None:
    """Breaks off whatever is under way."""
    raise Stop


def run(supervisor: Supervisor) -> int:
    """Exit code of the service: 0 when it was told to stop."""

    def reload(number: int, frame: FrameType | None) -> None:
        supervisor.asked_to_reload = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, reload)
    try:
        supervisor.prepare()
        supervisor.start()
        supervisor.note("")
        tell_systemd(f"READY=1\nSTATUS=LM Studio answers on 127.0.0.1:{supervisor.port}")
        supervisor.watch()
    except Stop:
        return 0
    except (Trouble, OSError, ValueError, TypeError) as error:
        say(str(error))
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        supervisor.stop()
    return 0


def noted(state: Path) -> dict[str, Any]:
    """What a `run` has noted last."""
    try:
        return dict(json.loads(state.read_text()))
    except (OSError, ValueError):
        return {"process": 0, "reloads": -1}


def ready(process: int, state: Path) -> int:
    """Waits until the service, which was just started, answers."""
    while noted(state)["process"] != process:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            say("the service ended before it was ready")
            return 1
        time.sleep(0.2)
    return 0


def reload(process: int, state: Path) -> int:
    """Asks the running service to compare its models again, and waits until it has."""
    before = noted(state)["reloads"]
    number: int = signal.SIGHUP
    while True:
        try:
            # Not looked up in /proc: systemd gives this command a user namespace of its own, where it sees nobody else.
            os.kill(process, number)
        except ProcessLookupError:
            break
        number = 0
        found = noted(state)
        if found["reloads"] > before >= 0:
            if found["problem"]:
                say(found["problem"])
            return 1 if found["problem"] else 0
        time.sleep(0.2)
    say("the service ended while its models were loaded")
    return 1


def main(words: list[str]) -> int:
    """`run SETTINGS MODELS STATE`, `ready PROCESS STATE`, or `reload PROCESS STATE`."""
    if words[:1] in (["ready"], ["reload"]):
        return {"ready": ready, "reload": reload}[words[0]](int(words[1]), Path(words[2]))
    settings, models, state = map(Path, words[1:])
    return run(Supervisor(json.loads(settings.read_text()), models, state))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
