"""What every engine has in common: it listens on loopback, speaks the OpenAI API, and tells that it works."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boxwright.errors import Problem
from boxwright.models import Model
from boxwright.settings import RoleSettings, Secret, System

# What clients of an OpenAI-style API call. Engines answer on more paths, some of which load models or show prompts.
OPENAI_PATHS = (
    "/v1/models",
    "/v1/models/*",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/responses/*",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v1/audio/*",
    "/v1/images/*",
)


# By what a model is for: path and body.
_QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}),
    "embedding": ("/v1/embeddings", {"input": "Hi"}),
}


@dataclass(frozen=True)
class Server:
    """A service of an engine, by the name of its unit, and the model that it serves, or the first of several."""

    unit: str
    port: int
    model: Model

    @property
    def question(self) -> tuple[str, str]:
        """The smallest real question to it: address on the box, and JSON text."""
        path, body = _QUESTIONS[self.model.kind]
        return f"http://127.0.0.1:{self.port}{path}", json.dumps({"model": self.model.name, **body})

    @property
    def start_question(self) -> tuple[str, str]:
        """The same, to a server with one model, whatever that is called: a start may be one with the configuration
        before, which was taken back.
        """
        path, body = _QUESTIONS[self.model.kind]
        return f"http://127.0.0.1:{self.port}{path}", json.dumps(body)

    @property
    def lasting(self) -> bool:
        """Whether the model is in memory at any time, so that a question neither loads it nor keeps it longer."""
        return self.model.preload and self.model.keep_alive == -1


class EngineSettings(RoleSettings):
    """Base of an engine's variables; a subclass has the field `port`."""

    @property
    def base_url(self) -> str:
        """Where the box itself reaches the engine; the OpenAI paths begin with /v1 below it."""
        return f"http://127.0.0.1:{self.port}"  # type: ignore[attr-defined]

    def switch(self, box: Any) -> str:
        """The variable that makes the engine run in `box`; empty where it does not."""
        if not box.inference.runs(self.prefix):
            return ""
        return "inference_engine" if box.inference.engine == self.prefix else "inference_models"

    def ports(self, box: Any) -> Mapping[str, int]:
        """The TCP ports that it listens on, by the field that says which."""
        return {"port": self.port}  # type: ignore[attr-defined]

    def elsewhere(self, box: Any) -> Mapping[str, int]:
        """What is not answered on `port`: paths, and the port where they are."""
        return {}

    def servers(self, box: Any) -> tuple[Server, ...]:
        """The services that it consists of."""
        port: int = self.port  # type: ignore[attr-defined]
        found = [Server(self.prefix, port, model) for model in box.inference.models_of(self.prefix)]
        return tuple(sorted(found, key=lambda server: not server.lasting)[:1])

    @property
    def paths(self) -> tuple[str, ...]:
        """What others may call of it."""
        return OPENAI_PATHS

    @property
    def on_graphics(self) -> bool:
        """Whether it computes on graphics cards."""
        return False

    @property
    def detached(self) -> bool:
        """Whether its processes do not come from the one that is started: launchd does not tell that they are its."""
        return False

    @property
    def exposure(self) -> float:
        """How exposed systemd may rate its service at most, from 0 to 10 (systemd-analyze security): a graphics card
        takes some of the sandbox away.
        """
        return 2.5 if self.on_graphics else 1.5

    @property
    def health_path(self) -> str:
        """Path that answers when the engine works."""
        return "/health"

    @property
    def health_body(self) -> str:
        """Regular expression that this answer must match; empty when its status says enough."""
        return ""

    def watched_question(self, server: Server) -> Mapping[str, Any]:
        """What the watchdog asks a server from time to time: its `url`, and the `body` as JSON has it. `loaded`, where
        the engine tells what it has in memory (as Ollama's /api/ps does): the `url` for that and the model's `name`.
        """
        url, body = server.question
        return {"url": url, "body": json.loads(body)}

    def listed(self, name: str) -> str:
        """How /v1/models calls the model with the public name `name`."""
        return name

    @property
    def key(self) -> Secret | None:
        """What it wants as `Authorization: Bearer` of everybody; None where it asks nobody. Only the gateway knows."""
        return None


# What the sandbox of services leaves out or replaces (`SANDBOX` in boxwright/systemd.py), and what accounts of services
# may not enter on a Mac, where homes are closed to all but their owners; the other Users folder is not.
HIDDEN: Mapping[System, tuple[str, ...]] = {
    "linux": ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/"),  # noqa: S108
    "darwin": ("/Users/", "/private/var/root/", "/var/root/"),
}
_SHARED: Mapping[System, str] = {"linux": "/srv", "darwin": "/Users/Shared"}


def cannot(message: str, help: str) -> Problem:
    """An engine that cannot serve a model in the way in which it is declared."""
    return Problem(code="BW026", variable="inference_models", message=message, help=help)


def several_problems(models: Sequence[Model], engine: str, kind: str = "") -> Iterable[Problem]:
    """What keeps an engine with one model (of a kind, "chat" for example) in each process from serving `models`.

    `engine` is its name for people.
    """
    if len(models) > 1:
        names = " and ".join(model.name for model in models)
        yield cannot(
            f"{engine} serves one {kind}{' ' if kind else ''}model, and {names} are declared",
            "keep one of them, or give the others an engine that serves several",
        )


def gguf_problems(model: Model, engine: str) -> Iterable[Problem]:
    """What keeps an engine that reads GGUF files from serving `model`. `engine` is its name for people."""
    if model.location and not model.is_gguf:
        yield cannot(
            f"{engine} reads GGUF files, and the model `{model.name}` is {model.location}",
            "name a file that ends in .gguf, or another engine",
        )


def hidden_problems(model: Model, system: System, agent: str = "") -> Iterable[Problem]:
    """What keeps an engine that reads a model where it lies from serving `model`; of a LaunchAgent of the user `agent`
    also where that is theirs.
    """
    shared = _SHARED[system]
    if agent and model.path.startswith(f"/Users/{agent}/"):
        return
    if model.path.startswith(HIDDEN[system]) and not model.path.startswith(f"{shared}/"):
        yield cannot(
            f"the model `{model.name}` is in {model.path}, which no service of the box sees",
            f"put it below {shared}, for example",
        )


def lasting_problems(model: Model, engine: str) -> Iterable[Problem]:
    """What keeps an engine that loads its model at the start, and keeps it, from serving `model`.

    `engine` is its name for people.
    """
    if model.keep_alive != -1 or not model.preload:
        yield cannot(
            f"{engine} loads its model at the start and keeps it, and the model `{model.name}` wants otherwise",
            "remove `keep_alive` and `preload`, or name another engine",
        )


def folder_problems(model: Model, engine: str, system: System, agent: str = "") -> Iterable[Problem]:
    """What keeps an engine that reads a folder of safetensors, and keeps it in memory, from serving `model`.

    `engine` is its name for people; `agent` as in `hidden_problems`.
    """
    if model.location and (model.is_gguf or not (model.files or model.path)):
        yield cannot(
            f"{engine} reads a model that is a folder, and the model `{model.name}` is one file",
            "name its `files`, or the `path` of a folder, or another engine",
        )
    yield from hidden_problems(model, system, agent)
    names = {file.name for file in model.files}
    if names and "config.json" not in names:
        yield cannot(f"the model `{model.name}` has no config.json among its `files`", "name all files that it needs")
    if names and not any(name.endswith(".safetensors") for name in names):
        yield cannot(f"the model `{model.name}` has no *.safetensors among its `files`", "name all files that it needs")
    yield from lasting_problems(model, engine)


def model_files(model: Model) -> tuple[str, ...]:
    """What a process that serves `model` has read: the files that were fetched, else what the inventory names."""
    return tuple(path for path, _ in model.downloads) or (model.location,)
