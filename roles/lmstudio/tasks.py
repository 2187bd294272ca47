"""Tasks of the lmstudio role."""

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import PurePosixPath

from boxwright import graphics, strays, systems
from boxwright.errors import Problem
from boxwright.facts.lmstudio import MARKER
from boxwright.operations import apt, files, lmstudio, python_packages, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import Service, Value
from boxwright.site_mirror.supply import Supply, Target
from boxwright.templates import render
from roles.registry import Box

# What the publisher's script asks for; python3 runs the program that watches.
PACKAGES = ("libatomic1", "libgomp1", "python3")
USER = "lmstudio"
BASE = "/opt/boxwright/lmstudio"
PROGRAM = f"{BASE}/supervise.py"
SETTINGS = "/etc/boxwright/lmstudio.json"
MODELS = "/etc/boxwright/lmstudio-models.json"
# The bundles: a folder for each, with a name of 16 hexadecimal digits. On a Mac that is where a service has its data.
BUNDLES = {"linux": "/var/lib/boxwright/lmstudio", "darwin": "/var/lib/boxwright/lmstudio-bundles"}
# What may listen on its port already: names of its own processes.
PROCESSES = ("llmster", "node", "lms", "python3")
ARCHITECTURES = {"x64": "x86_64", "arm64": "aarch64"}


def need(box: Box) -> Need:
    """Its port, room for the bundle and for what it becomes, and whether it is there."""
    if not box.inference.runs("lmstudio"):
        return Need(files=(BASE,))
    # Packed, unpacked and installed: a bundle grows to about twice its size.
    size = box.lmstudio.download(box.system).size
    downloads = {bundle(box): size, f"{home(box)}/.lmstudio": 4 * size}
    if box.system == "darwin":
        free = strays.condition({box.lmstudio.port: "lmstudio_port"})
        return Need(downloads=downloads, files=(BASE,), conditions=(free,))

    def fits(machine: Machine) -> Iterable[Problem]:
        wanted = ARCHITECTURES[box.lmstudio.bundle.partition("+")[0]]
        if machine.architecture and machine.architecture != wanted:
            yield Problem(
                code="BW026",
                variable="lmstudio_bundle",
                message=f"the bundle {box.lmstudio.bundle} is for {wanted}, and the box is {machine.architecture}",
                help=f"set `lmstudio_bundle` to {'arm64' if machine.architecture == 'aarch64' else 'x64'}",
            )

    return Need(
        ports={box.lmstudio.port: ("lmstudio_port", PROCESSES)},
        downloads=downloads,
        files=(BASE,),
        conditions=(fits,),
    )


def digits(box: Box) -> str:
    """Names the bundle's folders."""
    return sha256(box.lmstudio.download(box.system).digest.encode()).hexdigest()[:16]


def bundle(box: Box) -> str:
    """The fetched bundle."""
    name = PurePosixPath(box.lmstudio.download(box.system).url).name
    return f"{BUNDLES[box.system]}/{digits(box)}/{name}"


def home(box: Box) -> str:
    """The home that is made from it."""
    return f"{homes(box)}/{digits(box)}"


def homes(box: Box) -> str:
    """Where the homes that were made from bundles are: a folder for each, of the same name."""
    return systems.state_folder(box.system, USER)


def state(box: Box) -> str:
    """What the program notes about itself."""
    return f"{systems.runtime_folder(box.system, USER)}/state"


def service(box: Box) -> Service:
    """LM Studio as a service: the program that starts and watches it."""
    return Service(
        name="lmstudio",
        description=f"LM Studio on 127.0.0.1:{box.lmstudio.port}",
        command=(*_program(box), "run", SETTINGS, MODELS, state(box)),
        user=systems.account(box.system, USER),
        group=systems.account(box.system, USER),
        environment={"HOME": home(box)},
        restart_files=(PROGRAM, SETTINGS, f"{home(box)}/{MARKER}"),
        # A model that is added, changed or taken away is loaded or unloaded, while the others go on. Nothing of the
        # unit may depend on the models; that a file of theirs has changed is seen by the program itself.
        reload_files=(MODELS,),
        reload_command=(*_program(box), "reload", "$MAINPID", state(box)),
        # systemd hears it from the program itself.
        notify=box.system == "linux",
        probe=(*_program(box), "ready", "$MAINPID", state(box)) if box.system == "darwin" else (),
        start_timeout=1800,
        wait_for_files=graphics.DEVICES[_card(box)],
        stop_timeout=60,
        state_directory=USER,
        runtime_directory=USER,
        sandbox_exceptions=_exceptions(box),
        # LM Studio ends in order when its own command is called, and the rest goes with the group.
        settings={"KillMode": "mixed"},
    )


def _program(box: Box) -> tuple[str, str]:
    return systems.python(box.system), PROGRAM


def _card(box: Box) -> str:
    """The maker of the graphics cards that its bundle computes on."""
    return "nvidia" if box.lmstudio.on_graphics else "none"


def _exceptions(box: Box) -> dict[str, tuple[Value, str]]:
    exceptions: dict[str, tuple[Value, str]] = {
        "MemoryDenyWriteExecute": (None, "LM Studio is JavaScript, which is compiled while it runs"),
        "ProcSubset": ("all", "it asks how many processors and how much memory there are"),
        "RestrictAddressFamilies": (
            "AF_INET AF_INET6 AF_UNIX AF_NETLINK",
            "its runtime asks for the network's interfaces",
        ),
    }
    return {**graphics.sandbox(_card(box)), **exceptions}


def settings(box: Box) -> str:
    """What the program reads at its start, as JSON."""
    values = {"home": home(box), "port": box.lmstudio.port, "graphics": box.lmstudio.on_graphics}
    return json.dumps(values, indent=2) + "\n"


def _computes_there(box: Box) -> bool:
    return box.lmstudio.on_graphics or box.system == "darwin"


def models(box: Box) -> str:
    """What is to be loaded, as JSON."""
    values = [
        {
            "name": model.name,
            "file": model.location,
            "kind": model.kind,
            "context": model.context,
            "parallel": model.parallel,
            # Without a card there is nothing to put there, whatever is declared. A Mac has one.
            "gpu": "max" if _computes_there(box) and model.gpu_layers == "all" else "off",
        }
        for model in box.inference.models_of("lmstudio")
    ]
    return json.dumps(values, indent=2) + "\n"


def retire(box: Box, machine: Machine) -> None:
    """Takes it away where it is no longer declared, before another engine starts. Libraries stay: others use them."""
    if not box.inference.runs("lmstudio") and BASE in machine.files:
        _absent(box)


def prepare(box: Box) -> None:
    """Everything that is needed before it can run; another engine may still serve meanwhile."""
    if box.inference.runs("lmstudio"):
        install(box)
        configure(box)


def supply(box: Box, target: Target) -> Supply:
    """The publisher's bundle, where it runs."""
    return Supply(files=(box.lmstudio.download(box.system),)) if box.inference.runs("lmstudio") else Supply()


def install(box: Box) -> None:
    """The bundle, verified before it is unpacked, in a home of its own."""
    if box.system == "linux":
        apt.packages(PACKAGES, name="lmstudio: install libraries")
    account = systems.account(box.system, USER)
    users.system_user(account, name="lmstudio: account of the service", home=homes(box))
    folder = str(PurePosixPath(bundle(box)).parent)
    files.directory(name="lmstudio: folder of the program", path=BASE)
    files.directory(name="lmstudio: folder of bundles", path=BUNDLES[box.system])
    files.directory(name="lmstudio: folder of the bundle", path=folder)
    files.download(
        name=f"lmstudio: fetch version {box.lmstudio.version}",
        path=bundle(box),
        artifact=box.lmstudio.download(box.system),
        mirror=box.mirror,
    )
    lmstudio.installed(
        name=f"lmstudio: install version {box.lmstudio.version}",
        home=home(box),
        bundle=bundle(box),
        digest=box.lmstudio.download(box.system).digest,
        user=account,
    )


def configure(box: Box) -> None:
    """What the program reads, and its unit."""
    files.content(name="lmstudio: write the program", path=PROGRAM, text=render("lmstudio/supervise.py"))
    files.directory(name="lmstudio: folder of settings", path="/etc/boxwright")
    files.content(name="lmstudio: write the settings", path=SETTINGS, text=settings(box))
    files.content(name="lmstudio: write the list of models", path=MODELS, text=models(box))
    services.unit(name="lmstudio: write the unit", service=service(box))


def activate(box: Box) -> None:
    """Running with the declared models; models that cannot be loaded are taken back, and those before go on."""
    if not box.inference.runs("lmstudio"):
        return
    unit = service(box)
    services.running(name="lmstudio: running", service=unit, roll_back=(unit.unit_path, MODELS))
    python_packages.prune(name="lmstudio: remove other versions", base=homes(box), keep=[home(box)])
    folder = str(PurePosixPath(bundle(box)).parent)
    python_packages.prune(name="lmstudio: remove other bundles", base=BUNDLES[box.system], keep=[folder])


def remove(box: Box, purge: bool) -> None:
    """Takes everything back."""
    _absent(box)
    if box.system == "linux":
        apt.packages_absent(PACKAGES, name="lmstudio: remove libraries")


def _absent(box: Box) -> None:
    unit = Service(name="lmstudio", description="LM Studio", command=_program(box))
    services.unit_absent(name="lmstudio: stop and remove the service", service=unit)
    if box.system == "darwin":
        lmstudio.ended(systems.account(box.system, USER), name="lmstudio: end its daemon")
        # systemd takes it away with the service.
        files.absent(name="lmstudio: remove its notes", path=str(PurePosixPath(state(box)).parent), recursive=True)
    files.files_absent(
        name="lmstudio: remove the settings",
        paths=[SETTINGS, *services.with_copies(MODELS)],
    )
    files.absent(name="lmstudio: remove LM Studio", path=homes(box), recursive=True)
    files.absent(name="lmstudio: remove the bundles", path=BUNDLES[box.system], recursive=True)
    users.user_absent(systems.account(box.system, USER), name="lmstudio: remove the account")
    # Last: as long as it is there, `retire` knows that something is left to remove.
    files.absent(name="lmstudio: remove the program", path=BASE, recursive=True)
