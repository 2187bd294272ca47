"""Tasks of the vllm role."""

import json
from functools import partial

from boxwright import graphics
from boxwright.engines import model_files
from boxwright.models import Model
from boxwright.operations import files, python_packages, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import Service, Value, http_probe
from boxwright.site_mirror.supply import Supply, Target, pinned_wheels
from roles.registry import Box

USER = "vllm"
BASE = "/opt/boxwright/vllm"
STATE = "/var/lib/vllm"
ENVIRONMENT = "/etc/boxwright/vllm.env"
CONFIGURATION = "/etc/boxwright/vllm.yaml"
# The makers of graphics cards, by what vLLM computes with.
CARDS = {"cuda": "nvidia", "rocm": "amd", "cpu": "none"}


def need(box: Box) -> Need:
    """The port that it listens on, a graphics card, and whether it is there."""
    if model(box) is None:
        return Need(files=(BASE,))
    card = CARDS[box.vllm.device]
    otherwise = "set `vllm_device: cpu` with a vLLM made for that"
    follows = box.nvidia.enabled
    fits = partial(graphics.missing, card, "vllm_device", "vLLM", otherwise, installs_nvidia=follows)
    ports = {box.vllm.port: ("vllm_port", ("vllm", "python", "python3"))}
    return Need(ports=ports, files=(BASE, *graphics.DEVICES[card]), conditions=(fits,))


def model(box: Box) -> Model | None:
    """The model it serves; None where it serves none."""
    return next(iter(box.inference.models_of("vllm")), None)


def supply(box: Box, target: Target) -> Supply:
    """vLLM's wheels, where it runs."""
    return Supply(wheels=pinned_wheels(box.vllm.requirements)) if box.inference.runs("vllm") else Supply()


def environment(box: Box) -> str:
    """Folder of the virtual environment."""
    return python_packages.venv_path(BASE, box.vllm.requirements)


def configuration(model: Model) -> str:
    """What is said of the model, as `vllm serve --config` reads it: YAML with the names of its options.

    In a file of its own, so that it can be taken back when the model cannot be loaded.
    """
    values = {
        "model": model.location,
        "served-model-name": model.name,
        "max-model-len": model.context,
        "max-num-seqs": model.parallel,
        **({"runner": "pooling"} if model.kind == "embedding" else {}),
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())


def command(box: Box) -> tuple[str, ...]:
    """`vllm serve`. The key is not here: every account of a box sees the others' command lines."""
    settings = box.vllm
    on_cards = ("--gpu-memory-utilization", str(settings.gpu_memory)) if settings.device != "cpu" else ()
    cards = ("--tensor-parallel-size", str(settings.tensor_parallel)) if settings.tensor_parallel > 1 else ()
    return (
        *(f"{environment(box)}/bin/vllm", "serve", "--config", CONFIGURATION),
        *("--host", "127.0.0.1", "--port", str(settings.port)),
        *on_cards,
        *cards,
        "--disable-fastapi-docs",
        # What a request names as an image would be fetched from any address that the box reaches. No name is below
        # .invalid, so only what is in the request itself is read.
        *("--allowed-media-domains", "none.invalid"),
        *settings.arguments,
    )


def sandbox(box: Box) -> dict[str, tuple[Value, str]]:
    """What vLLM needs beyond other services."""
    found: dict[str, tuple[Value, str]] = {
        "MemoryDenyWriteExecute": ("no", "kernels are compiled while it runs"),
        "ProcSubset": ("all", "memory, processors and the driver are looked up in /proc"),
        "SystemCallFilter": (
            ("@system-service", "~@privileged"),
            "threads and memory are bound to processors, which is among @resources",
        ),
        "RestrictAddressFamilies": (
            "AF_INET AF_INET6 AF_UNIX AF_NETLINK",
            "its processes find each other by the list of network interfaces",
        ),
    }
    return {**graphics.sandbox(CARDS[box.vllm.device]), **found}


def service(box: Box, model: Model) -> Service:
    """vLLM as a service: reads its model, keeps what it compiled, listens on loopback."""
    (server,) = box.vllm.servers(box)
    groups = graphics.groups(CARDS[box.vllm.device])
    return Service(
        name="vllm",
        description=f"vLLM on 127.0.0.1:{box.vllm.port}",
        command=command(box),
        user=USER,
        group=USER,
        environment={
            "HOME": STATE,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
            # Answers that one request may ask for; upstream's limit is 16384.
            "VLLM_MAX_N_SEQUENCES": str(model.parallel),
        },
        environment_file=ENVIRONMENT,
        restart_files=(CONFIGURATION, *model_files(model), python_packages.venv_marker(environment(box))),
        probe=http_probe(f"{box.vllm.base_url}{box.vllm.health_path}", server.start_question, key="VLLM_API_KEY"),
        # Large models are read and compiled for minutes.
        start_timeout=1800,
        # At a boot the driver makes it some time after systemd has begun.
        wait_for_files=graphics.DEVICES[CARDS[box.vllm.device]],
        state_directory="vllm",
        sandbox_exceptions=sandbox(box),
        settings={
            "LimitMEMLOCK": "infinity",
            **({"SupplementaryGroups": " ".join(groups)} if groups else {}),
        },
    )


def retire(box: Box, machine: Machine) -> None:
    """Takes it away where it is no longer declared, before another engine starts."""
    if box.has("vllm") and model(box) is None and BASE in machine.files:
        remove(box, purge=False)


def prepare(box: Box) -> None:
    """Everything that is needed before it can run; another engine may still serve meanwhile."""
    if served := model(box):
        install(box)
        configure(box, served)


def install(box: Box) -> None:
    """The program and its account."""
    users.system_user(USER, home=STATE, name="vllm: account of the service")
    python_packages.venv(name="vllm: install vLLM", base=BASE, requirements=box.vllm.requirements, mirror=box.mirror)


def configure(box: Box, model: Model) -> None:
    """The key, which only root can read and systemd hands over, the model's settings, and the unit."""
    files.directory(name="vllm: folder of settings", path="/etc/boxwright")
    files.content(
        name="vllm: write the key",
        path=ENVIRONMENT,
        text=f"VLLM_API_KEY={box.vllm.api_key.get_secret_value()}\n",
        mode="0600",
        secret=True,
    )
    files.content(name="vllm: write the settings of the model", path=CONFIGURATION, text=configuration(model))
    services.unit(name="vllm: write the unit", service=service(box, model))


def activate(box: Box) -> None:
    """Running and ready: the start returns when the model answers."""
    served = model(box)
    if served is None:
        return
    unit = service(box, served)
    # A version, an argument or a model with which it does not start is taken back.
    services.running(name="vllm: running", service=unit, roll_back=(unit.unit_path, CONFIGURATION))
    python_packages.prune(name="vllm: remove older versions", base=BASE, keep=[environment(box)])


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; the model belongs to the inference role."""
    if not box.has("vllm"):
        return
    unit = Service(name="vllm", description="vLLM", command=(f"{environment(box)}/bin/vllm",))
    services.unit_absent(name="vllm: stop and remove the service", service=unit)
    files.files_absent(name="vllm: remove the settings", paths=[ENVIRONMENT, *services.with_copies(CONFIGURATION)])
    # Only what it compiled for itself is in there.
    files.absent(name="vllm: remove what it kept", path=STATE, recursive=True)
    users.user_absent(USER, name="vllm: remove the account")
    # Last: as long as it is there, `retire` knows that something is left to remove.
    files.absent(name="vllm: remove the program", path=BASE, recursive=True)
