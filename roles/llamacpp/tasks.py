"""Tasks of the llamacpp role."""

import json
from functools import partial

from boxwright import graphics, strays, systems
from boxwright.artifacts import Wheel, requirements
from boxwright.engines import Server
from boxwright.operations import apt, files, python_packages, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import Service, http_probe
from boxwright.site_mirror.supply import Supply, Target, pinned_wheels
from boxwright.templates import render
from roles.registry import Box

XLLAMACPP = Wheel(
    name="xllamacpp",
    version="2026.10.11549",
    sha256={
        "x86_64": "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",
        "aarch64": "e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e",
        # macOS, of which it needs nothing but the system's own libraries; computes by Metal.
        "arm64": "4ecda27a308b2403aa13c9d04b270befab95edc556c24ed00b2f8a98bd7f6781",
    },
    licence="MIT",
)
# libgomp1 is the one library that the wheel expects of a Debian.
PACKAGES = ("libgomp1",)
USER = "llamacpp"
BASE = "/opt/boxwright/llamacpp"
PROGRAM = f"{BASE}/server.py"
CHECK = f"{BASE}/check.py"
# Every service it may have, and what operations call what belongs to it.
UNITS = {"llamacpp": "", "llamacpp-embedding": " for embeddings"}


def need(box: Box) -> Need:
    """The ports that it listens on, and whether it is there."""
    files = (BASE, *map(configuration, UNITS))
    if box.system == "darwin":
        free = strays.condition({port: f"llamacpp_{field}" for field, port in box.llamacpp.ports(box).items()})
        return Need(files=files, conditions=(free,) if box.llamacpp.ports(box) else ())
    ports = {port: (f"llamacpp_{field}", ("python", "python3")) for field, port in box.llamacpp.ports(box).items()}
    card = box.llamacpp.graphics
    devices = graphics.DEVICES[card] if ports else ()
    follows = box.nvidia.enabled
    fits = partial(
        graphics.missing, card, "llamacpp_graphics", "llama.cpp", "set it to `none`", installs_nvidia=follows
    )
    return Need(ports=ports, files=(*files, *devices), conditions=(fits,) if devices else ())


def configuration(name: str) -> str:
    """What the service `name` reads at its start."""
    return f"/etc/boxwright/{name}.json"


def packages(box: Box) -> str:
    """The requirements file of its packages."""
    return box.llamacpp.requirements or requirements([XLLAMACPP])


def supply(box: Box, target: Target) -> Supply:
    """The server's wheels, where it runs."""
    return Supply(wheels=pinned_wheels(packages(box))) if box.inference.runs("llamacpp") else Supply()


def environment(box: Box) -> str:
    """Folder of the virtual environment."""
    return python_packages.venv_path(BASE, packages(box), systems.python(box.system))


def service(box: Box, server: Server) -> Service:
    """A server as a service: reads its model and listens on loopback, nothing else."""
    name, model, card = server.unit, server.model, box.llamacpp.graphics
    groups = graphics.groups(card)
    marker = python_packages.venv_marker(environment(box))
    return Service(
        name=name,
        description=f"llama.cpp server on 127.0.0.1:{server.port}",
        command=(f"{environment(box)}/bin/python", PROGRAM, configuration(name)),
        **systems.runs_as(box.system, USER, box.inference.agent_user),
        # The model is mapped into the process: one that was fetched again is served only after a restart.
        restart_files=(PROGRAM, CHECK, configuration(name), model.location, marker),
        probe=http_probe(f"http://127.0.0.1:{server.port}/health", server.start_question),
        start_timeout=600,
        wait_for_files=graphics.DEVICES[card],
        sandbox_exceptions=graphics.sandbox(card),
        settings={"SupplementaryGroups": " ".join(groups)} if groups else {},
    )


def settings(server: Server) -> str:
    """What a server reads at its start, as JSON."""
    model = server.model
    values = {
        "model": model.location,
        "alias": model.name,
        "port": server.port,
        "context": model.context,
        "parallel": model.parallel,
        "gpu_layers": 999 if model.gpu_layers == "all" else model.gpu_layers,
        "embedding": model.kind == "embedding",
    }
    return json.dumps(values, indent=2) + "\n"


def retire(box: Box, machine: Machine) -> None:
    """Takes away what is no longer declared, before another engine starts; the library stays, which others use too."""
    wanted = {server.unit for server in box.llamacpp.servers(box)}
    if not wanted and BASE in machine.files:
        _absent(box)
    elif wanted:
        for name in UNITS:
            if name not in wanted and configuration(name) in machine.files:
                _server_absent(name)


def prepare(box: Box) -> None:
    """Everything that is needed before it can run; another engine may still serve meanwhile."""
    if box.inference.runs("llamacpp"):
        install(box)
        configure(box)


def install(box: Box) -> None:
    """The server's program and its account."""
    if box.system == "linux":
        apt.packages(PACKAGES, name="llamacpp: install OpenMP")
    users.system_user(systems.account(box.system, USER), name="llamacpp: account of the service")
    python_packages.venv(
        name="llamacpp: install the server",
        base=BASE,
        requirements=packages(box),
        mirror=box.mirror,
        python=systems.python(box.system),
        index=box.llamacpp.index,
    )


def configure(box: Box) -> None:
    """What the servers read at start, and their units."""
    files.content(name="llamacpp: write the program", path=PROGRAM, text=render("llamacpp/server.py"))
    files.content(name="llamacpp: write the check of models", path=CHECK, text=render("llamacpp/check.py"))
    files.directory(name="llamacpp: folder of settings", path="/etc/boxwright")
    for server in box.llamacpp.servers(box):
        more, path = UNITS[server.unit], configuration(server.unit)
        files.content(
            name=f"llamacpp: write the settings{more}",
            path=path,
            text=settings(server),
            # Before the engine that serves is touched.
            validate=f"{systems.python(box.system)} -I {CHECK} {{path}}",
        )
        services.unit(name=f"llamacpp: write the unit{more}", service=service(box, server))


def activate(box: Box) -> None:
    """Running and ready: the start returns when the model answers."""
    if not box.inference.runs("llamacpp"):
        return
    for server in box.llamacpp.servers(box):
        unit = service(box, server)
        # A version or a model with which it does not start is taken back: the one before serves on.
        services.running(
            name=f"llamacpp: running{UNITS[server.unit]}",
            service=unit,
            roll_back=(unit.unit_path, configuration(server.unit)),
        )
    python_packages.prune(name="llamacpp: remove older versions", base=BASE, keep=[environment(box)])


def _server_absent(name: str) -> None:
    more = UNITS[name]
    unit = Service(name=name, description="llama.cpp server", command=(f"{BASE}/bin/python",))
    services.unit_absent(name=f"llamacpp: stop and remove the service{more}", service=unit)
    paths = services.with_copies(configuration(name))
    files.files_absent(name=f"llamacpp: remove the settings{more}", paths=paths)


def remove(box: Box, purge: bool) -> None:
    """Takes everything back."""
    _absent(box)
    if box.system == "linux":
        apt.packages_absent(PACKAGES, name="llamacpp: remove OpenMP")


def _absent(box: Box) -> None:
    for name in UNITS:
        _server_absent(name)
    users.user_absent(systems.account(box.system, USER), name="llamacpp: remove the account")
    # Last: as long as it is there, `retire` knows that something is left to remove.
    files.absent(name="llamacpp: remove the server", path=BASE, recursive=True)
