"""Tasks of the mlx role."""

import json
from collections.abc import Iterable
from pathlib import Path

from boxwright import strays, systems
from boxwright.engines import Server, model_files
from boxwright.errors import Problem
from boxwright.models import Model
from boxwright.operations import files, python_packages, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import Service, http_probe
from boxwright.site_mirror.supply import Supply, Target, pinned_wheels
from boxwright.templates import render
from roles.registry import Box

# Made by `make lock`: mlx-lm, and MLX for the processor of a Linux machine, or for Metal. The latter's files differ
# between releases of macOS: pip takes the newest that fits.
REQUIREMENTS = {
    "linux": Path(__file__).with_name("requirements.txt"),
    "darwin": Path(__file__).with_name("requirements-darwin.txt"),
}
# Distributions whose Python is older than 3.12, which the pinned numpy wants.
TOO_OLD = {("debian", "12"): "3.11", ("ubuntu", "22.04"): "3.10"}
USER = "mlx"
BASE = "/opt/boxwright/mlx"
PROGRAM = f"{BASE}/server.py"
CONFIGURATION = "/etc/boxwright/mlx.json"


def need(box: Box) -> Need:
    """The port that it listens on, a Python for its packages, and whether it is there."""
    if server(box) is None:
        return Need(files=(BASE,))
    if box.system == "darwin":
        return Need(files=(BASE,), conditions=(strays.condition({box.mlx.port: "mlx_port"}),))

    def fits(machine: Machine) -> Iterable[Problem]:
        python = TOO_OLD.get((machine.distribution, machine.release))
        if python and not box.mlx.requirements:
            yield Problem(
                code="BW114",
                variable="inference_models",
                message=f"the pinned packages of MLX need Python 3.12, and "
                f"{machine.distribution.capitalize()} {machine.release} has {python}",
                help="take Debian 13 or Ubuntu 24.04, or packages of your own by `mlx_requirements`",
            )

    return Need(ports={box.mlx.port: ("mlx_port", ("python", "python3"))}, files=(BASE,), conditions=(fits,))


def server(box: Box) -> Server | None:
    """The service and the model it serves; None where it serves none."""
    return next(iter(box.mlx.servers(box)), None)


def requirements(box: Box) -> str:
    """The requirements file of its packages."""
    return box.mlx.requirements or REQUIREMENTS[box.system].read_text(encoding="utf-8")


def supply(box: Box, target: Target) -> Supply:
    """The server's wheels, where it runs."""
    return Supply(wheels=pinned_wheels(requirements(box))) if box.inference.runs("mlx") else Supply()


def environment(box: Box) -> str:
    """Folder of the virtual environment."""
    return python_packages.venv_path(BASE, requirements(box), systems.python(box.system))


def service(box: Box, server: Server) -> Service:
    """The server as a service: reads its model and listens on loopback, nothing else."""
    return Service(
        name=server.unit,
        description=f"MLX on 127.0.0.1:{box.mlx.port}",
        command=(f"{environment(box)}/bin/python", PROGRAM, CONFIGURATION),
        **systems.runs_as(box.system, USER, box.inference.agent_user),
        # Without it MLX compiles parts of a model with the C++ compiler of a Linux machine, where there is one. On a
        # Mac, Metal does that by itself.
        environment={"MLX_DISABLE_COMPILE": "1"} if box.system == "linux" else {},
        restart_files=(
            PROGRAM,
            CONFIGURATION,
            *model_files(server.model),
            python_packages.venv_marker(environment(box)),
        ),
        probe=http_probe(f"{box.mlx.base_url}/health", server.start_question),
        start_timeout=600,
    )


def settings(box: Box, model: Model) -> str:
    """What the server reads at its start, as JSON."""
    values = {
        "name": model.name,
        "model": model.location,
        "port": box.mlx.port,
        "context": model.context,
        "parallel": model.parallel,
        "max_tokens": box.mlx.max_tokens,
        "prompt_cache": int(box.mlx.cache),
    }
    return json.dumps(values, indent=2) + "\n"


def retire(box: Box, machine: Machine) -> None:
    """Takes it away where it is no longer declared, before another engine starts."""
    if server(box) is None and BASE in machine.files:
        remove(box, purge=False)


def prepare(box: Box) -> None:
    """Everything that is needed before it can run; another engine may still serve meanwhile."""
    if served := server(box):
        install(box)
        configure(box, served)


def install(box: Box) -> None:
    """The server's program and its account."""
    users.system_user(systems.account(box.system, USER), name="mlx: account of the service")
    python_packages.venv(
        name="mlx: install the server",
        base=BASE,
        requirements=requirements(box),
        mirror=box.mirror,
        python=systems.python(box.system),
    )


def configure(box: Box, server: Server) -> None:
    """What the server reads at its start -- accepted only with a model that can be loaded -- and its unit."""
    reader = systems.as_user(box.system, box.inference.agent_user or systems.account(box.system, USER))
    files.content(name="mlx: write the program", path=PROGRAM, text=render("mlx/server.py"))
    files.directory(name="mlx: folder of settings", path="/etc/boxwright")
    files.content(
        name="mlx: write the settings",
        path=CONFIGURATION,
        text=settings(box, server.model),
        # As the account that will read the model, so that a folder which is closed to it is found here.
        validate=f"{reader} {environment(box)}/bin/python {PROGRAM} {{path}} --check",
    )
    services.unit(name="mlx: write the unit", service=service(box, server))


def activate(box: Box) -> None:
    """Running and ready: the start returns when the model answers."""
    served = server(box)
    if served is None:
        return
    unit = service(box, served)
    # A version or a model with which it does not start is taken back: the one before serves on.
    services.running(name="mlx: running", service=unit, roll_back=(unit.unit_path, CONFIGURATION))
    python_packages.prune(name="mlx: remove older versions", base=BASE, keep=[environment(box)])


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; the model belongs to the inference role."""
    unit = Service(name="mlx", description="MLX server", command=(f"{environment(box)}/bin/python",))
    services.unit_absent(name="mlx: stop and remove the service", service=unit)
    paths = services.with_copies(CONFIGURATION)
    files.files_absent(name="mlx: remove the settings", paths=paths)
    users.user_absent(systems.account(box.system, USER), name="mlx: remove the account")
    # Last: as long as it is there, `retire` knows that something is left to remove.
    files.absent(name="mlx: remove the server", path=BASE, recursive=True)
