"""Tasks of the inference role: the models' files, which the engines read, and the watchdog over the engines."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from pyinfra import host as target
from pyinfra import logger

from boxwright import systems, unattended
from boxwright.artifacts import Download
from boxwright.errors import Problem
from boxwright.facts.accounts import Accounts, AccountState
from boxwright.facts.homebrew import PREFIX
from boxwright.facts.unattended import Unattended
from boxwright.models import MODELS, Model
from boxwright.operations import files, homebrew, services
from boxwright.preflight import Machine, Need
from boxwright.services import Service
from boxwright.site_mirror.supply import Supply, Target
from boxwright.sizes import human
from boxwright.templates import render
from roles.registry import Box

# Beside the weights an engine needs its own code, buffers and the keys and values of its context.
OVERHEAD = 512 * 2**20
WATCHDOG = "boxwright-watchdog"
# Where only root may write: on a Mac /usr/local may belong to a person.
PROGRAM = {"linux": "/usr/local/lib/boxwright/watchdog.py", "darwin": "/opt/boxwright/watchdog/watchdog.py"}
CONFIGURATION = "/etc/boxwright/watchdog.json"


def need(box: Box) -> Need:
    """Memory for the models that are loaded at start, disk for those that are fetched, and the files that are there."""
    models = box.inference.served
    if not models:
        return Need(files=(CONFIGURATION,))
    given = tuple(model.path for model in models if model.path)
    brew = f"{PREFIX}/bin/brew"

    def there(machine: Machine) -> Iterable[Problem]:
        for model in models:
            if model.path and model.path not in machine.files:
                yield Problem(
                    code="BW116",
                    variable="inference_models",
                    message=f"the model `{model.name}` is not on the box: {model.path} does not exist",
                    help="put it there, or name its `url` or `hub`",
                )

    def on_graphics(machine: Machine) -> Iterable[Problem]:
        whole = [
            model
            for engine in box.inference.running
            if box.engine(engine).on_graphics
            for model in box.inference.models_of(engine)
            if model.preload and model.gpu_layers == "all"
        ]
        needed = sum(model.bytes for model in whole)
        if machine.graphics_memory and needed > machine.graphics_memory:
            names = ", ".join(f"`{model.name}`" for model in whole) + (" need" if len(whole) > 1 else " needs")
            yield Problem(
                code="BW118",
                variable="inference_models",
                message=f"{names} {human(needed)} of memory of graphics cards to be there whole, "
                f"and those of the box have {human(machine.graphics_memory)}",
                help="choose a smaller model or quantisation, or say by `gpu_layers` how many layers shall be there",
            )

    def on_a_mac(machine: Machine) -> Iterable[Problem]:
        if brew not in machine.files:
            yield Problem(
                code="BW122",
                message=f"there is no Homebrew on the box ({brew} is missing), and a Mac has no Python of its own for "
                "the engines",
                help="install it as the account that boxwright comes as, by the command that https://brew.sh shows",
            )
        yield from box.inference.too_large_for_metal(box, machine.memory, "BW118", "that the Mac has")
        # One that this run makes can sign in when it has a password.
        if box.inference.agent_user and box.inference.agent_user not in [user.name for user in box.host.users]:
            yield from nobody(box.inference.agent_user)

    return Need(
        memory=sum(model.bytes for model in models if model.preload) + OVERHEAD * len(box.inference.running),
        memory_variable="inference_models",
        downloads={path: file.size for model in models for path, file in model.downloads},
        files=(*given, *((brew,) if box.system == "darwin" else ()), CONFIGURATION),
        conditions=(there, on_a_mac if box.system == "darwin" else on_graphics),
    )


def nobody(user: str, ask: Callable[[str], Mapping[str, AccountState] | None] | None = None) -> Iterable[Problem]:
    """Refuses a `user` for the engines' session who is not on the Mac, or is no person."""

    def asked(user: str) -> Mapping[str, AccountState] | None:
        found: Mapping[str, AccountState] | None = target.get_fact(Accounts, names=(user,), system="darwin")
        return found

    found = (ask or asked)(user)
    # Those of macOS and of services have smaller numbers.
    if found is None or (user in found and found[user].uid >= 500):
        return
    yield Problem(
        code="BW123",
        variable="inference_agent_user",
        message=f"the engines shall run in the session of `{user}`, "
        + ("which is no person's account" if user in found else "who is not on the Mac"),
        help="name a person of the Mac by the short name that `id -un` prints; or leave it out, and the engines run "
        "from the boot on with accounts of their own",
    )


def apply(box: Box) -> None:
    """The declared models' files, each verified before it has its name; on a Mac, Python before them."""
    if box.inference.agent_user and box.inference.running:
        target.log(unattended.agents(target.get_fact(Unattended), box.inference.agent_user), logger.warning)
    if box.system == "darwin" and box.inference.running:
        homebrew.packages((systems.PYTHON_FORMULA,), name="inference: install Python with Homebrew")
    models = [model for model in box.inference.served if model.downloads]
    if not models:
        return
    files.directory(name="inference: folder of models", path=MODELS)
    for folder in dict.fromkeys(folder for model in models for folder in _folders(model)):
        files.directory(name=f"inference: folder {PurePosixPath(folder).name}", path=folder)
    fetched = set()
    for model in models:
        for path, file in model.downloads:
            if path not in fetched:
                fetched.add(path)
                what = path.removeprefix(f"{model.location}/") if model.files else PurePosixPath(file.url).name
                artifact = _artifact(box, model, file)
                files.download(name=f"inference: fetch {what}", path=path, artifact=artifact, mirror=box.mirror)


def supply(box: Box, target: Target) -> Supply:
    """The files of the models that the box serves."""
    return Supply(
        files=tuple(_artifact(box, model, file) for model in box.inference.served for _, file in model.downloads)
    )


def _artifact(box: Box, model: Model, file: Download) -> Download:
    """A model's file, with the token that the hub may want."""
    token = box.inference.hub_token.get_secret_value() if box.inference.hub_token and model.hub else ""
    return replace(file, token=token)


def _folders(model: Model) -> Iterable[str]:
    """The folders of a model that is one, outermost first."""
    if not model.files:
        return
    yield model.location
    for file in model.files:
        parents = list(PurePosixPath(file.name).parents)[:-1]
        yield from (f"{model.location}/{parent}" for parent in reversed(parents))


def watched(box: Box) -> list[dict[str, Any]]:
    """What the watchdog asks each engine."""
    found = []
    for name in box.inference.running:
        engine = box.engine(name)
        for server in engine.servers(box):
            found.append(
                {
                    "unit": server.unit,
                    "health": f"http://127.0.0.1:{server.port}{engine.health_path}",
                    "body": engine.health_body,
                    "question": dict(engine.watched_question(server)) if server.lasting else None,
                    "account": systems.account(box.system, name) if engine.detached else "",
                    "key": engine.key.get_secret_value() if engine.key else "",
                    **({"session": box.inference.agent_user} if box.inference.agent_user else {}),
                }
            )
    return found


def watchdog(box: Box) -> Service:
    """The watchdog as a service. It asks the system to restart others, which only root may."""
    program = PROGRAM[box.system]
    return Service(
        name=WATCHDOG,
        description="Restarts an engine that hangs",
        command=(systems.python(box.system), "-I", program, CONFIGURATION),
        user="root",
        restart_files=(program, CONFIGURATION),
        sandbox_exceptions={"ProtectProc": ("default", "how much the engines compute is read from /proc")},
    )


def watch(box: Box, machine: Machine) -> None:
    """Engines that hang are restarted; after they have started."""
    if not (box.inference.watchdog and box.inference.running):
        if CONFIGURATION in machine.files:
            _watchdog_absent(box)
        return
    settings = json.dumps({"system": box.system, "engines": watched(box)}, indent=2) + "\n"
    program = PROGRAM[box.system]
    files.directory(name="inference: folder of the watchdog", path=program.rpartition("/")[0])
    files.content(name="inference: write the watchdog", path=program, text=render("inference/watchdog.py"))
    files.directory(name="inference: folder of settings", path="/etc/boxwright")
    # An engine may have a key.
    files.content(name="inference: write what is watched", path=CONFIGURATION, text=settings, mode="0600", secret=True)
    services.unit(name="inference: write the watchdog's unit", service=watchdog(box))
    services.running(name="inference: watchdog running", service=watchdog(box))


def _watchdog_absent(box: Box) -> None:
    services.unit_absent(name="inference: stop and remove the watchdog", service=watchdog(box))
    files.absent(name="inference: remove the watchdog", path=PROGRAM[box.system])
    if box.system == "darwin":
        files.absent(name="inference: remove its folder", path=PROGRAM[box.system].rpartition("/")[0])
    # Last: as long as it is there, `watch` knows that something is left to remove.
    files.absent(name="inference: remove what is watched", path=CONFIGURATION)


def prune(box: Box) -> None:
    """What was fetched for models that are no longer declared goes, when that is wanted; after the engines have
    changed over.
    """
    if box.inference.prune:
        keep = [model.location for model in box.inference.served if model.downloads]
        files.only(name="inference: remove other models", path=MODELS, keep=keep)


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; the models' files only with `purge`."""
    _watchdog_absent(box)
    if purge:
        files.absent(name="inference: remove the models", path=MODELS, recursive=True)
