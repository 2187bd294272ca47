"""Open WebUI without a container: a service with an account of its own, on loopback, from pinned packages."""

from collections.abc import Iterable
from pathlib import Path

from boxwright import systems
from boxwright.errors import Problem
from boxwright.facts.homebrew import PREFIX
from boxwright.operations import files, folders, homebrew, python_packages, services, users
from boxwright.preflight import Machine
from boxwright.services import Service, http_probe
from boxwright.templates import render
from roles.openwebui.environment import environment
from roles.registry import Box

# Made by `uv pip compile --generate-hashes` for Python 3.11 with overrides that exclude sentence-transformers and
# accelerate, which bring PyTorch (several GB). Python 3.12 and macOS need no other packages.
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# Distributions whose Python this release does not work with: below 3.11 its packages are refused, in 3.13 modules are
# gone that they import (`audioop`, PEP 594).
UNFIT = {("debian", "13"): "3.13", ("ubuntu", "22.04"): "3.10", ("ubuntu", "26.04"): "3.14"}
# What Homebrew calls the newest Python that it works with, and where that is.
FORMULA = "python@3.12"
FORMULA_PYTHON = f"{PREFIX}/opt/{FORMULA}/bin/python3.12"
BASE = "/opt/boxwright/open-webui"
FOLDER = "/etc/boxwright/openwebui"
ENVIRONMENT = f"{FOLDER}/openwebui.env"
DATA = "/var/lib/boxwright/openwebui"


def account(box: Box) -> str:
    """The account that it runs as."""
    return systems.account(box.system, "openwebui")


def fits(box: Box, machine: Machine) -> Iterable[Problem]:
    """Refuses a distribution whose Python it does not work with."""
    python = UNFIT.get((machine.distribution, machine.release))
    if python and not box.openwebui.python:
        yield Problem(
            code="BW114",
            variable="openwebui_run",
            message=f"Open WebUI needs Python 3.11 or 3.12, and {machine.distribution.capitalize()} {machine.release} "
            f"has {python}",
            help="set `openwebui_run: container`, or name an interpreter that is on the box in `openwebui_python`",
        )


def interpreter(box: Box) -> str:
    """The Python that it is installed for."""
    return box.openwebui.python or (FORMULA_PYTHON if box.system == "darwin" else systems.python("linux"))


def requirements(box: Box) -> str:
    """The requirements file of its packages."""
    return box.openwebui.requirements or REQUIREMENTS.read_text(encoding="utf-8")


def folder(box: Box) -> str:
    """Folder of the virtual environment."""
    return python_packages.venv_path(BASE, requirements(box), interpreter(box))


def variables(box: Box) -> dict[str, str]:
    """Its environment: what a container has in its image is said here."""
    own = {
        # As its own command `open-webui serve` sets it: the page's files are those of the package.
        "FROM_INIT_PY": "true",
        "ENV": "prod",
        "HOME": DATA,
        "DATA_DIR": DATA,
        # It empties and fills this folder at each start.
        "STATIC_DIR": f"{DATA}/static",
        "HF_HOME": f"{DATA}/cache",
        # Without PyTorch there is no embedding on the spot: the engine is asked for it.
        "RAG_EMBEDDING_ENGINE": "openai",
    }
    return {**own, **environment(box)}


def service(box: Box) -> Service:
    """Open WebUI as a service."""
    python = f"{folder(box)}/bin/python"
    listen = ("--host", "127.0.0.1", "--port", str(box.openwebui.port))
    return Service(
        name="openwebui",
        description="Open WebUI",
        # What its own command does, which would believe anybody's X-Forwarded-For.
        command=(
            *(python, "-m", "uvicorn", "open_webui.main:app", *listen),
            *("--forwarded-allow-ips", box.openwebui.box_address(box), "--workers", "1"),
        ),
        environment_file=ENVIRONMENT,
        restart_files=(python_packages.venv_marker(folder(box)),),
        user=account(box),
        group=account(box),
        working_directory=DATA,
        probe=http_probe(f"{box.openwebui.url(box)}/health"),
        sandbox_exceptions={"ReadWritePaths": (DATA, "accounts and chats, and its copy of the page's files")},
        # The first start makes the database, step by step from its first version.
        start_timeout=600,
    )


def install(box: Box) -> None:
    """Its packages and its account; on a Mac a Python for them."""
    users.system_user(account(box), home=DATA, name="openwebui: account of the service")
    if box.system == "darwin" and not box.openwebui.python:
        homebrew.packages((FORMULA,), name="openwebui: install Python with Homebrew")
    python_packages.venv(
        name="openwebui: install the packages",
        base=BASE,
        requirements=requirements(box),
        mirror=box.mirror,
        python=interpreter(box),
    )


def configure(box: Box) -> None:
    """Its folder, its environment -- the secrets stand in a file that only root reads -- and its unit."""
    files.directory(name="openwebui: folder of the box's data", path="/var/lib/boxwright")
    folders.belongs_to(name="openwebui: folder of data", path=DATA, user=account(box))
    files.directory(name="openwebui: folder of settings", path="/etc/boxwright")
    files.directory(name="openwebui: folder of its own settings", path=FOLDER)
    text = render("openwebui/environment.j2", environment=variables(box))
    files.content(name="openwebui: write the environment", path=ENVIRONMENT, text=text, mode="0600", secret=True)
    services.unit(name="openwebui: write the unit", service=service(box))


def activate(box: Box) -> None:
    """Running and healthy."""
    services.running(name="openwebui: running", service=service(box))
    python_packages.prune(name="openwebui: remove older versions", base=BASE, keep=[folder(box)])


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; accounts and chats only with `purge`."""
    services.unit_absent(name="openwebui: stop and remove the service", service=service(box))
    files.absent(name="openwebui: remove the settings", path=FOLDER, recursive=True)
    if purge:
        files.absent(name="openwebui: remove accounts and chats", path=DATA, recursive=True)
    else:
        # The next account that is made on the box may get the number of this one.
        folders.belongs_to(name="openwebui: keep accounts and chats for root", path=DATA, user="root", make=False)
    users.user_absent(account(box), name="openwebui: remove the account")
    # Last: as long as it is there, `tasks` knows that something is left to remove.
    files.absent(name="openwebui: remove the packages", path=BASE, recursive=True)
