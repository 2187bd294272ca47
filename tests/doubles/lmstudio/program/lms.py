"""The command `lms` of the double: words on standard error, data on standard output, exit codes as upstream's."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import store

WAKE_SECONDS = 60


def say(*words: object) -> None:
    """What a person reads."""
    print(*words, file=sys.stderr)


def fail(*words: object) -> NoReturn:
    """Ends with exit code 1."""
    say(*words)
    raise SystemExit(1)


def data(value: Any) -> None:
    """What a program reads."""
    print(json.dumps(value, separators=(",", ":")))


class Client:
    """The daemon of this user's home."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def port(self) -> int | None:
        """Of the internal server; None when no daemon answers."""
        # One exact daemon, without a look at the usual ports.
        exact = os.environ.get("LMS_API_SERVER_INFO_PATH")
        published = store.read_json(Path(exact) if exact else store.internal(self.home, "http-server.json"))
        if exact and not (isinstance(published, dict) and Path(f"/proc/{published['pid']}").exists()):
            # A daemon of another home, as of a test that runs at the same time, may have its port by now.
            return None
        first = [published["port"]] if isinstance(published, dict) else []
        for port in dict.fromkeys([*first, *(() if exact else store.INTERNAL_PORTS)]):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/lms-status", timeout=3) as answer:
                    if json.load(answer).get("package") == "daemon":
                        return int(port)
            except (OSError, ValueError, http.client.HTTPException):
                # The last: it ends just now, in the middle of its answer.
                continue
        return None

    def wake(self) -> None:
        """The daemon runs: any command starts it that needs it."""
        if self.port() is not None:
            return
        place = store.read_json(store.internal(self.home, "llmster-install-location.json"))
        if not isinstance(place, dict):
            fail("Error: no valid installation of LM Studio could be found.")
        subprocess.Popen(
            [place["path"]],
            cwd=place["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + WAKE_SECONDS
        while self.port() is None:
            if time.monotonic() > until:
                fail("Error: LM Studio could not be woken up.")
            time.sleep(0.1)

    def ask(self, method: str, **parameters: Any) -> Any:
        """The daemon's answer, which is started for it."""
        self.wake()
        return self._ask(self.port(), method, parameters)

    def running(self) -> Any:
        """What the daemon says of itself; None when none runs, also when it ends just now."""
        port = self.port()
        try:
            return None if port is None else self._ask(port, "info", {})
        except (OSError, http.client.HTTPException):
            return None

    def _ask(self, port: int | None, method: str, parameters: dict[str, Any]) -> Any:
        key = store.internal(self.home, "lms-key-2").read_text()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/rpc",
            json.dumps({"method": method, "parameters": parameters}).encode(),
            {"X-Key": key},
        )
        try:
            with urllib.request.urlopen(request) as answer:
                result = json.load(answer)
        except urllib.error.HTTPError as error:
            result = json.load(error)
        if "error" in result:
            fail(f"Error: {result['error']}")
        return result["result"]


def served(port: int, bind: str) -> bool:
    """Whether an LM Studio server answers there."""
    try:
        with urllib.request.urlopen(f"http://{bind}:{port}/lmstudio-greeting", timeout=0.5) as answer:
            return json.load(answer).get("lmstudio") is True
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        return False


def ratio(text: str) -> float:
    """off, max, or a number between 0 and 1."""
    return {"off": 0.0, "max": 1.0}.get(text) if text in ("off", "max") else float(text)  # type: ignore[return-value]


def daemon(client: Client, options: argparse.Namespace) -> None:
    if options.verb == "status":
        info = client.running()
        if info is None:
            data({"status": "not-running"}) if options.json else print("LM Studio is not running")
            return
        if options.json:
            data({"status": "running", "pid": info["pid"], "isDaemon": True})
        else:
            print(f"llmster v{info['version']} is running (PID: {info['pid']})")
    elif options.verb == "up":
        before = client.port()
        info = client.ask("info")
        if options.json:
            data({"status": "running", "pid": info["pid"], "isDaemon": True, "version": info["version"]})
        elif before is None:
            print(f"llmster started (PID: {info['pid']}).")
        else:
            print(f"The daemon is already running (PID: {info['pid']}).")
    else:
        if client.port() is None:
            fail("Daemon is not running.")
        say("Shutting down llmster...")
        client.ask("shut_down")
        say("Done.")


def server(client: Client, options: argparse.Namespace) -> None:
    saved = store.read_json(store.internal(client.home, "http-server-config.json"))
    settings = saved if isinstance(saved, dict) else {}
    if options.verb == "start":
        bind = options.bind or os.environ.get("LMS_SERVER_HOST") or "127.0.0.1"
        port = options.port or settings.get("port") or 1234
        if bind != "127.0.0.1":
            say("Server will accept connections from the network. Only use this if you know what you are doing!")
        client.ask("start_http", port=port, bind=bind, cors=options.cors)
        for _ in range(5):
            if served(port, bind):
                say(f"Success! Server is now running on port {port}")
                return
            time.sleep(1)
        fail("Failed to verify the server is running. Please try to use another port.")
    running = bool(settings) and served(settings["port"], settings["networkInterface"])
    if options.verb == "status":
        if options.json:
            data({"running": running} | ({"port": settings["port"]} if settings else {}))
        else:
            say(f"The server is running on port {settings['port']}." if running else "The server is not running.")
        return
    if not running:
        fail("The server is not running.")
    client.ask("stop_http")
    say(f"Stopped the server on port {settings['port']}.")


def ls(client: Client, options: argparse.Namespace) -> None:
    found = client.ask("models")
    if options.llm or options.embedding:
        found = [one for one in found if getattr(options, one["type"])]
    if options.json:
        data(found)
        return
    print(f"\nYou have {len(found)} models\n")
    for model in found:
        print(f"{model['modelKey']}    {model['architecture']}    {model['sizeBytes']}")


def ps(client: Client, options: argparse.Namespace) -> None:
    found = client.ask("loaded")
    if options.json:
        data(found)
    elif not found:
        say("No models are currently loaded.\n\nTo load a model, run:\n\n    lms load <model path>")
    else:
        print("\nIDENTIFIER    MODEL    STATUS    CONTEXT    PARALLEL")
        for model in found:
            print(model["identifier"], model["modelKey"], model["status"].upper(), model["contextLength"])


def matches(pattern: str, text: str) -> bool:
    """The characters of `pattern` appear in `text` in their order: what a fuzzy search finds."""
    rest = iter(text.lower())
    return all(letter in rest for letter in pattern.lower())


def load(client: Client, options: argparse.Namespace) -> None:
    found = client.ask("models")
    if options.exact:
        chosen = [model for model in found if model["path"] == options.key]
        if not chosen:
            fail(f'Error: Model not found\n\nNo model found with path being exactly "{options.key}".')
    else:
        last = (store.read_json(store.internal(client.home, "cli-pref.json")) or {}).get("lastLoadedModels", [])
        order = {key: place for place, key in enumerate(last)}
        found.sort(key=lambda model: order.get(model["modelKey"], len(order)))
        chosen = [model for model in found if matches(options.key or "", model["modelKey"])]
        if not options.yes and (len(chosen) != 1 or options.key is None):
            terminal("Select a model to load")
        if not chosen:
            fail(f'Error: Model not found\n\nNo model found that matches model key "{options.key}".')
        if len(chosen) > 1:
            say(f"{len(chosen)} models match the provided model key on the same device. Loading the first one.")
        key = chosen[0]["modelKey"]
        store.write_json(
            store.internal(client.home, "cli-pref.json"),
            {"lastLoadedModels": [key, *(one for one in last if one != key)][:20]},
        )
    began = time.monotonic()
    made = client.ask(
        "load",
        key=chosen[0]["path"],
        context=options.context_length,
        parallel=options.parallel,
        gpu=options.gpu,
        ttl=options.ttl,
        identifier=options.identifier,
    )
    say(f"Model loaded successfully in {time.monotonic() - began:.2f}s.\n({made['sizeBytes']} B)")
    say(f'To use the model in the API/SDK, use the identifier "{made["identifier"]}".')


def unload(client: Client, options: argparse.Namespace) -> None:
    names = [model["identifier"] for model in client.ask("loaded")]
    if options.all:
        for name in names:
            say(f'Unloading "{name}"...')
            client.ask("unload", identifier=name)
        say(f"Unloaded {len(names)} models." if names else "No models to unload.")
        return
    if options.identifier is None:
        terminal("Select a model to unload")
    if not client.ask("unload", identifier=options.identifier):
        # Exit code 0: upstream returns here.
        say(f'Error: Model Not Found\n\nCannot find a model with the identifier "{options.identifier}".')
        return
    say(f'Model "{options.identifier}" unloaded.')


def terminal(question: str) -> None:
    """A question to a person; without a terminal the command breaks down, whatever --yes says."""
    if not sys.stdin.isatty():
        fail("BadResource: ENOTTY: Not a typewriter\n    at Stdin.setRaw")
    say(question)
    if input().strip().lower() not in ("", "y", "yes"):
        raise SystemExit(1)


def import_file(client: Client, options: argparse.Namespace) -> None:
    source = Path(options.file)
    if not source.exists():
        fail(f"error: command-argument value '{source}' is invalid for argument 'file-path'. File does not exist")
    ways = [options.copy, options.hard_link, options.symbolic_link]
    if sum(ways) > 1:
        fail("Invalid Usage: cannot specify more than one of --copy, --hard-link, or --symbolic-link")
    settings = store.read_json(client.home / "settings.json")
    folder = client.home / "models"
    if isinstance(settings, dict) and isinstance(settings.get("downloadsFolder"), str):
        folder = Path(settings["downloadsFolder"])
    else:
        say("Could not locate LM Studio configuration file, using default path:", folder)
    if not any(ways):
        if options.yes:
            say("Warning about move suppressed by the --yes flag.")
        terminal("Do you wish to continue?")
    if options.user_repo is None:
        terminal("Please specify the user and repository")
        options.user_repo = f"{os.environ.get('USER', 'unknown')}/{source.stem}"
    if len(options.user_repo.split("/")) != 2:
        fail("error: option '--user-repo <user/repo>' argument is invalid. Must be user and repo separated by a slash.")
    target = folder / options.user_repo / source.name
    if target.exists():
        fail("Target file already exists:", target)
    verb = "Would " if options.dry_run else ""
    if not options.dry_run:
        target.parent.mkdir(parents=True, exist_ok=True)
    if options.copy:
        say(f"{verb}copy to" if verb else "File copied to", target)
        _ = options.dry_run or shutil.copyfile(source, target)
    elif options.hard_link:
        _ = options.dry_run or os.link(source, target)
        say(f"{verb}create a hard link at" if verb else "Hard link created at", target)
    elif options.symbolic_link:
        _ = options.dry_run or target.symlink_to(source)
        say(f"{verb}create a symbolic link at" if verb else "Symbolic link created at", target)
    else:
        _ = options.dry_run or shutil.move(source, target)
        say(f"{verb}move the file to" if verb else "File moved to", target)


def runtime(client: Client, options: argparse.Namespace) -> None:
    engines = client.ask("engines")
    if options.verb == "ls":
        selected = client.ask("selected_engine")
        print("LLM ENGINE    SELECTED    MODEL FORMAT")
        for engine in engines:
            print(f"{engine}    {'✓' if engine == selected else ' '}    GGUF")
    elif options.verb == "survey":
        survey = {
            "gpuSurveyResult": {"result": {"code": "noDevicesFound", "message": "No devices found"}, "gpuInfo": []},
            "memoryInfo": {"ramCapacity": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "vramCapacity": 0},
        }
        data(survey) if options.json else print("No GPUs detected")
    else:
        fitting = [one for one in engines if options.alias in (one, one.partition("@")[0])]
        if len(fitting) != 1:
            fail(f"No installed runtime extensions found matching: {options.alias}")
        # Exit code 0 also when there is no card for it.
        client.ask("select_engine", engine=fitting[0])
        say(f"Selected {fitting[0]} for GGUF")


def arguments() -> argparse.ArgumentParser:
    """The commands."""
    parser = argparse.ArgumentParser(prog="lms")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(title: str, *verbs: str) -> argparse.ArgumentParser:
        made = commands.add_parser(title)
        made.add_argument("--quiet", action="store_true")
        if verbs:
            made.add_argument("verb", choices=verbs)
        return made

    made = command("daemon", "up", "status", "down")
    made.add_argument("--json", action="store_true")
    made = command("server", "start", "status", "stop")
    made.add_argument("--json", action="store_true")
    made.add_argument("-p", "--port", type=int)
    made.add_argument("--bind")
    made.add_argument("--cors", action="store_true")
    made = command("ls")
    for flag in ("--json", "--llm", "--embedding"):
        made.add_argument(flag, action="store_true")
    command("ps").add_argument("--json", action="store_true")
    made = command("load")
    made.add_argument("key", nargs="?")
    made.add_argument("--gpu", type=ratio)
    made.add_argument("-c", "--context-length", type=int)
    made.add_argument("--parallel", type=int)
    made.add_argument("--ttl", type=int)
    made.add_argument("--identifier")
    for flag in (("--exact",), ("--local",), ("-y", "--yes")):
        made.add_argument(*flag, action="store_true")
    made = command("unload")
    made.add_argument("identifier", nargs="?")
    made.add_argument("-a", "--all", action="store_true")
    made = command("import")
    made.add_argument("file")
    made.add_argument("--user-repo")
    for flag in (("-y", "--yes"), ("-c", "--copy"), ("-L", "--hard-link"), ("-l", "--symbolic-link"), ("--dry-run",)):
        made.add_argument(*flag, action="store_true")
    made = command("runtime", "ls", "select", "survey")
    made.add_argument("alias", nargs="?")
    made.add_argument("--json", action="store_true")
    made.add_argument("--latest", action="store_true")
    return parser


def main() -> None:
    """One command."""
    options = arguments().parse_args()
    if options.quiet:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    client = Client(store.find_home())
    verbs = {"import": import_file, "daemon": daemon, "server": server, "runtime": runtime}
    (verbs | {"ls": ls, "ps": ps, "load": load, "unload": unload})[options.command](client, options)


if __name__ == "__main__":
    main()
