"""Tasks of the ollama role."""

import shlex
from functools import partial
from hashlib import sha256

from boxwright import graphics, strays, systems
from boxwright.artifacts import Download
from boxwright.facts.archives import MARKER as WHOLE
from boxwright.facts.ollama import manifest_path
from boxwright.models import Model
from boxwright.operations import apt, archives, files, ollama, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import UNITS, Service, Value
from boxwright.shell import portable
from boxwright.site_mirror.supply import Supply, Target
from boxwright.systemd import systemd_unit
from boxwright.templates import render
from roles.ollama.settings import RELEASES, RELEASES_FOR_MACS
from roles.registry import Box

# The publisher's archives for Linux are compressed with it.
PACKAGES = ("zstd",)
USER = "ollama"
BASE = "/opt/boxwright/ollama"
READY = f"{BASE}/ready"
# Where models are and who puts them there, and the notes about them. On Linux the sandbox keeps the serving process
# from writing there. A Mac has none: the store belongs to an account of its own, and the serving one may only read it.
STORE = {"linux": "/var/lib/ollama/models", "darwin": "/var/lib/boxwright/ollama-models"}
KEEPER = {"linux": USER, "darwin": "_ollamastore"}
RECORDS = {"linux": "/var/lib/boxwright/ollama", "darwin": "/var/lib/boxwright/ollama-notes"}
ENVIRONMENT = "/etc/boxwright/ollama.env"
PRELOADED = "/etc/boxwright/ollama.models"
UPDATE = f"{BASE}/update"
DROPIN = f"{UNITS}/ollama.service.d/boxwright.conf"
# Debian's names of the processors, which the archives have.
NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
# An unpacked archive is so much larger, mostly libraries for graphics cards.
UNPACKED = 4

# Values of the variables that are not set, by `ollama_profile`. The second is for one model behind a gateway that
# admits ten requests at a time.
PROFILES: dict[str, dict[str, str]] = {
    "default": {},
    "gateway": {
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_NUM_PARALLEL": "10",
        "OLLAMA_MAX_QUEUE": "10",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_CONTEXT_LENGTH": "4096",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
    },
}


def models(box: Box) -> tuple[Model, ...]:
    """The models it serves."""
    return box.inference.models_of("ollama")


def need(box: Box) -> Need:
    """The port, disk for the program and for the models' second copy, and whether it is there."""
    if not box.inference.runs("ollama"):
        return Need(files=(BASE, UPDATE))
    size = max(int(box.ollama.archive_for(box.system, name).size) for name in NAMES)
    copies = {f"{STORE[box.system]}/blobs/sha256-{model.sha256}": model.bytes for model in models(box) if model.sha256}
    downloads = {program(box): size * UNPACKED, **copies}
    if box.system == "darwin":
        free = strays.condition({box.ollama.port: "ollama_port"})
        return Need(downloads=downloads, files=(BASE, UPDATE), conditions=(free,))
    fits = partial(
        graphics.missing,
        box.ollama.graphics,
        "ollama_graphics",
        "Ollama",
        "set it to `none`",
        installs_nvidia=box.nvidia.enabled,
    )
    return Need(
        downloads=downloads,
        ports={box.ollama.port: ("ollama_port", ("ollama",))},
        files=(BASE, UPDATE, *graphics.DEVICES[box.ollama.graphics]),
        conditions=(fits,),
    )


def folder(box: Box) -> str:
    """Folder of the program: another version, or another archive of the same, is another folder."""
    settings = box.ollama
    if settings.archive:
        known = [settings.archive]
    elif box.system == "darwin":
        known = [RELEASES_FOR_MACS[settings.version]]
    else:
        known = list(RELEASES[settings.version].values())
    digest = sha256("".join(one.sha256 for one in known).encode()).hexdigest()
    return f"{BASE}/{settings.version}-{digest[:12]}"


# Where the program is in the publisher's archive.
INSIDE = {"linux": "bin/ollama", "darwin": "ollama"}


def program(box: Box) -> str:
    """Path of the program."""
    return f"{folder(box)}/{INSIDE[box.system]}"


def state(box: Box) -> str:
    """The home of the serving process."""
    return systems.state_folder(box.system, USER)


def environment(box: Box) -> dict[str, str]:
    """Ollama's environment; the user's own `ollama_environment` comes last and wins."""
    settings, served = box.ollama, models(box)
    profile = PROFILES[settings.profile]
    kept = max((model.keep_alive % 2**32 for model in served), default=300)
    values: dict[str, str | None] = {
        "OLLAMA_KEEP_ALIVE": profile.get("OLLAMA_KEEP_ALIVE", _seconds(-1 if kept == 2**32 - 1 else kept)),
        "OLLAMA_NUM_PARALLEL": str(max((model.parallel for model in served), default=1)),
        # Three is Ollama's own limit without a graphics card.
        "OLLAMA_MAX_LOADED_MODELS": str(max(3, len(served))),
        **profile,
    }
    chosen = {
        "OLLAMA_KEEP_ALIVE": None if settings.keep_alive is None else _seconds(settings.keep_alive),
        "OLLAMA_NUM_PARALLEL": _text(settings.parallel),
        "OLLAMA_MAX_QUEUE": _text(settings.queue),
        "OLLAMA_MAX_LOADED_MODELS": _text(settings.loaded_models),
        "OLLAMA_CONTEXT_LENGTH": _text(settings.context),
        "OLLAMA_FLASH_ATTENTION": None if settings.flash_attention is None else _text(int(settings.flash_attention)),
        "OLLAMA_KV_CACHE_TYPE": settings.kv_cache,
        "OLLAMA_ORIGINS": ",".join(settings.origins) or None,
    }
    values.update({name: value for name, value in chosen.items() if value is not None})
    return {
        # That of an agent is its user's.
        **({} if box.inference.agent_user else {"HOME": state(box)}),
        "OLLAMA_HOST": f"127.0.0.1:{settings.port}",
        "OLLAMA_MODELS": STORE[box.system],
        # Models that run at the publisher's: nothing that is asked here leaves the box.
        "OLLAMA_NO_CLOUD": "1",
        # The store belongs to the process that makes models.
        "OLLAMA_NOPRUNE": "1",
        "GIN_MODE": "release",
        **{name: value for name, value in values.items() if value is not None},
        **settings.environment,
    }


def _seconds(value: int) -> str:
    return str(value) if value < 0 else f"{value}s"


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def environment_file(box: Box) -> str:
    """The environment as systemd reads it."""
    lines = []
    for name, value in environment(box).items():
        escaped = "".join(f"\\{one}" if one in '\\"`$' else one for one in value)
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def definition(box: Box, model: Model) -> ollama.Definition:
    """A model in Ollama's words."""
    parameters = {"num_ctx": model.context}
    if model.gpu_layers != "all":
        parameters["num_gpu"] = model.gpu_layers
    if box.ollama.threads is not None:
        parameters["num_thread"] = box.ollama.threads
    return ollama.Definition(
        name=model.name,
        embedding=model.kind == "embedding",
        file=model.location,
        sha256=model.sha256 or "",
        pulled=model.ollama,
        parameters=parameters,
    )


def store(box: Box) -> ollama.Store:
    """The models' store."""
    return ollama.Store(
        system=box.system,
        program=program(box),
        folder=STORE[box.system],
        records=RECORDS[box.system],
        state_directory=USER,
        user=KEEPER[box.system],
        environment_file=ENVIRONMENT,
        unit="ollama",
        url=box.ollama.base_url,
        session=box.inference.agent_user,
    )


def service(box: Box) -> Service:
    """The server: reads its store and listens on loopback."""
    exceptions: dict[str, tuple[Value, str]] = {
        "ReadOnlyPaths": (
            f"-{STORE[box.system]}",
            "models are put there by a process of its own; whoever asks changes nothing",
        ),
        "ProcSubset": ("all", "reads /proc/meminfo to see whether a model fits into memory"),
    }
    exceptions |= graphics.sandbox(box.ollama.graphics)
    return Service(
        name="ollama",
        description=f"Ollama on 127.0.0.1:{box.ollama.port}",
        command=(program(box), "serve"),
        **systems.runs_as(box.system, USER, box.inference.agent_user),
        environment_file=ENVIRONMENT,
        restart_files=(f"{folder(box)}/{WHOLE}",),
        probe=("/bin/sh", READY, box.ollama.base_url, PRELOADED),
        state_directory="" if box.inference.agent_user else USER,
        start_timeout=1800,
        # A driver may load after the services have begun to start; without a card the processor would compute.
        wait_for_files=graphics.DEVICES[box.ollama.graphics],
        sandbox_exceptions=exceptions,
    )


def updated(box: Box) -> tuple[Model, ...]:
    """The models of a registry that are fetched anew; none where that is not wanted."""
    return tuple(model for model in models(box) if model.ollama) if box.ollama.update else ()


def update_text(box: Box) -> str:
    """The program that fetches models of a registry anew; empty where there are none to fetch."""
    calls = []
    for one in (definition(box, model) for model in updated(box)):
        manifest = manifest_path(STORE[box.system], one.name)
        calls.append((shlex.join([one.name, manifest, *ollama.arguments(store(box), one)]), one.request))
    return (
        render("ollama/update.sh.j2", make=portable(ollama.MAKE) + ollama.MAKE.strip(), models=calls) if calls else ""
    )


def update_service(schedule: str = "") -> Service:
    """The scheduled update of models; `schedule` is the value of `ollama_update`."""
    return Service(
        name="ollama-update",
        description="Fetches newer models for Ollama",
        command=("/bin/sh", UPDATE),
        user="root",
        schedule=schedule,
        wants=("network-online.target",),
        after=("ollama.service",),
        # Models are large, and lines are slow.
        start_timeout=14400,
        capabilities={
            "CAP_CHOWN": "what it puts into the store belongs to Ollama",
            "CAP_DAC_OVERRIDE": "writes into the store, whose folders are Ollama's",
            "CAP_FOWNER": "keeps the modes of Ollama's files",
        },
        sandbox_exceptions={
            "ReadWritePaths": ((systems.state_folder("linux", USER), RECORDS["linux"]), "puts models there"),
            "SystemCallFilter": (("@system-service",), "changes owners of files"),
        },
    )


def dropin(unit: Service) -> str:
    """All of the unit's section [Service] once more, above the unit file.

    Ollama's own installer writes /etc/systemd/system/ollama.service anew whenever somebody runs it, and restarts the
    service. With this it comes back as it was, with this program and in this sandbox.
    """
    section = systemd_unit(unit).partition("\n[Service]\n")[2].partition("\n[Install]\n")[0]
    commands = "".join(f"{name}=\n" for name in ("ExecStart", "ExecStartPre", "ExecStartPost"))
    return (
        "# Written by boxwright: the service stays what it is when Ollama's installer writes the unit file anew.\n"
        f"[Service]\n{commands}{section}"
    )


def retire(box: Box, machine: Machine) -> None:
    """Takes it away when it is no longer declared; its models stay."""
    if not box.inference.runs("ollama") and BASE in machine.files:
        remove(box, purge=False)


def prepare(box: Box, machine: Machine) -> None:
    """Everything that is needed before it can run; another engine may still serve meanwhile."""
    if box.inference.runs("ollama"):
        install(box, machine)
        configure(box, machine)


def supply(box: Box, target: Target) -> Supply:
    """The publisher's archive, where it runs. Models of a registry are pulled from there."""
    return Supply(files=(_archive(box, target.machine),)) if box.inference.runs("ollama") else Supply()


def _archive(box: Box, architecture: str) -> Download:
    """The published program for a processor, in the kernel's words."""
    settings = box.ollama
    archive = settings.archive_for(box.system, architecture)
    published = f"https://github.com/ollama/ollama/releases/download/v{settings.version}"
    name = "ollama-darwin.tgz" if box.system == "darwin" else f"ollama-linux-{NAMES[architecture]}.tar.zst"
    return Download(
        name=f"Ollama {settings.version}",
        url=f"{published}/{name}",
        sha256=archive.sha256,
        size=archive.size,
        licence="MIT",
    )


def install(box: Box, machine: Machine) -> None:
    """The program and its account."""
    settings = box.ollama
    if box.system == "linux":
        apt.packages(PACKAGES, name="ollama: install zstd")
        ollama.account_free(USER, home=state(box), unit="ollama", name="ollama: make its account free")
    else:
        users.system_user(KEEPER[box.system], name="ollama: account that keeps the models")
    groups = graphics.groups(settings.graphics)
    account = systems.account(box.system, USER)
    users.system_user(account, home=state(box), groups=groups, name="ollama: account of the service")
    files.directory(name="ollama: folder of the program", path=BASE)
    archives.unpacked(
        name=f"ollama: install version {settings.version}",
        path=folder(box),
        artifact=_archive(box, machine.architecture),
        program=INSIDE[box.system],
        mirror=box.mirror,
    )


def configure(box: Box, machine: Machine) -> None:
    """What the server reads at start, and its unit."""
    files.directory(name="ollama: folder of settings", path="/etc/boxwright")
    # systemd makes the folder above it the service's own, with all it holds.
    store, keeper = STORE[box.system], KEEPER[box.system]
    for what, path in (("models", store), ("blobs", f"{store}/blobs"), ("manifests", f"{store}/manifests")):
        files.directory(name=f"ollama: folder of {what}", path=path, user=keeper, group=keeper, mode="0755")
    # A proxy's address may hold a password. An agent is started as its user, who must read it then.
    files.content(
        name="ollama: write the environment",
        path=ENVIRONMENT,
        text=environment_file(box),
        user=box.inference.agent_user or "root",
        mode="0600",
        secret=True,
    )
    preloaded = "".join(f"{model.kind} {model.name}\n" for model in models(box) if model.preload)
    files.content(name="ollama: write the list of models", path=PRELOADED, text=preloaded)
    files.content(name="ollama: write the question at start", path=READY, text=render("ollama/ready.sh"), mode="0755")
    unit = service(box)
    if box.system == "linux":
        files.directory(name="ollama: folder of the drop-in", path=DROPIN.rpartition("/")[0])
        files.content(name="ollama: write the drop-in", path=DROPIN, text=dropin(unit))
    services.unit(name="ollama: write the unit", service=unit)
    if update := update_text(box):
        files.content(name="ollama: write the update of models", path=UPDATE, text=update, mode="0755")
        services.unit(name="ollama: write the unit of the update", service=update_service(box.ollama.update))
    elif UPDATE in machine.files:
        _update_absent()


def activate(box: Box) -> None:
    """Running and ready, with the declared models, of which a new one restarts nothing."""
    if not box.inference.runs("ollama"):
        return
    unit = service(box)
    # A version or an environment with which it does not start is taken back.
    dropins = (DROPIN,) if box.system == "linux" else ()
    services.running(name="ollama: running", service=unit, roll_back=(unit.unit_path, *dropins, ENVIRONMENT))
    for model in models(box):
        ollama.model(name=f"ollama: model {model.name}", store=store(box), definition=definition(box, model))
    if updated(box):
        services.scheduled(name="ollama: update scheduled", service=update_service(box.ollama.update))
    archives.prune(name="ollama: remove older versions", base=BASE, keep=[folder(box)])
    if box.inference.prune:
        keep = [model.name for model in models(box)]
        ollama.models_absent(name="ollama: remove other models", store=store(box), keep=keep)


def _update_absent() -> None:
    services.unit_absent(name="ollama: stop and remove the update of models", service=update_service())
    # Last: as long as it is there, `configure` knows that something is left to remove.
    files.absent(name="ollama: remove the program of the update", path=UPDATE)


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; the models only with `purge`."""
    _update_absent()
    unit = Service(name="ollama", description="Ollama", command=(f"{BASE}/bin/ollama",))
    if box.system == "linux":
        files.files_absent(name="ollama: remove the drop-in", paths=services.with_copies(DROPIN))
    services.unit_absent(name="ollama: stop and remove the service", service=unit)
    files.files_absent(name="ollama: remove the settings", paths=[*services.with_copies(ENVIRONMENT), PRELOADED])
    if purge:
        if box.system == "darwin":
            files.absent(name="ollama: remove the store", path=STORE[box.system], recursive=True)
        files.absent(name="ollama: remove the models", path=state(box), recursive=True)
        files.absent(name="ollama: remove the notes about models", path=RECORDS[box.system], recursive=True)
    users.user_absent(systems.account(box.system, USER), name="ollama: remove the account")
    if box.system == "darwin":
        users.user_absent(KEEPER[box.system], name="ollama: remove the account that kept the models")
    else:
        apt.packages_absent(PACKAGES, name="ollama: remove zstd")
    # Last: as long as it is there, `retire` knows that something is left to remove.
    files.absent(name="ollama: remove the program", path=BASE, recursive=True)
