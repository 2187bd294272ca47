"""Tasks of the api role: the program, and for each instance account, secrets, settings, migration and service."""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from pyinfra import host as target

from boxwright import paths, systems
from boxwright.errors import Problem
from boxwright.facts.launchd import SignedIn
from boxwright.operations import files, folders, homebrew, python_packages, services, trees, users
from boxwright.preflight import Machine, Need
from boxwright.services import Service, http_probe
from boxwright.site_mirror.supply import Supply, Target, pinned_wheels
from boxwright.templates import render
from roles.api.settings import Instance, engine_keys_text
from roles.registry import Box

# Where the service's own text is in this checkout, and the packages it runs with.
SOURCE = paths.repository_root() / "services" / "api"
BASE = "/opt/boxwright/api"
FOLDER = "/etc/boxwright/api"
DATA = "/var/lib/boxwright/api"
# Distributions whose Python is older than 3.11.
UNFIT = {("ubuntu", "22.04"): "3.10"}
# What may be added to the wait for a slow model before a run is told that the service is not ready.
READY_SECONDS = 900


@cache
def program_files() -> dict[str, str]:
    """What is put on the box: the service's package, and the program that prepares its database."""
    package = trees.read(SOURCE / "boxwright_api")
    return {**{f"boxwright_api/{name}": text for name, text in package.items()}, "prepare.py": render("api/prepare.py")}


def requirements() -> str:
    """The packages that it runs with."""
    return (SOURCE / "requirements.txt").read_text(encoding="utf-8")


def program() -> str:
    """Folder of the program; another text is another folder, so that a running one never changes."""
    return f"{BASE}/{trees.digest(program_files())}"


def interpreter(box: Box) -> str:
    """The Python that it is installed for."""
    return box.api.python or systems.python(box.system)


def environment_folder(box: Box) -> str:
    """Folder of the virtual environment."""
    return python_packages.venv_path(BASE, requirements(), interpreter(box))


def python(box: Box) -> str:
    """The interpreter with its packages."""
    return f"{environment_folder(box)}/bin/python"


def account(box: Box, instance: Instance) -> str:
    """The account that an instance runs as; no instance can read what is another's."""
    return systems.account(box.system, instance.unit)


def settings_path(instance: Instance) -> str:
    """The settings of an instance, which hold no secret."""
    return f"{FOLDER}/{instance.name}.json"


def secrets_folder(instance: Instance) -> str:
    """Where the secrets of an instance are, each in a file for root alone."""
    return f"{FOLDER}/{instance.name}"


def data(instance: Instance) -> str:
    """What an instance keeps."""
    return f"{DATA}/{instance.name}"


def need(box: Box) -> Need:
    """The ports, a Python for it, and what of it is there."""
    settings = box.api
    there = (BASE, *(settings_path(instance) for instance in settings.every_instance))
    if not settings.enabled:
        return Need(files=there)
    variables = {"production": "api_port", "development": "api_development_port"}
    # Many programs of others are called like the service's own, and some like its port.
    programs = ("python", "python3", "Python", "uvicorn")
    ports = {instance.port: (variables[instance.name], programs) for instance in settings.instances}
    marks = {instance.port: settings_path(instance) for instance in settings.instances}

    def fits(machine: Machine) -> Iterable[Problem]:
        found = UNFIT.get((machine.distribution, machine.release))
        if found and not settings.python:
            yield Problem(
                code="BW114",
                variable="api_enabled",
                message=f"the API service needs Python 3.11 or later, and {machine.distribution.capitalize()} "
                f"{machine.release} has {found}",
                help="name an interpreter that is on the box in `api_python`, or set `api_enabled: false`",
            )

    return Need(ports=ports, marks=marks, files=there, conditions=(fits,))


def supply(box: Box, target: Target) -> Supply:
    """The packages that it runs with; the service itself is part of this checkout."""
    return Supply(wheels=pinned_wheels(requirements())) if box.api.enabled else Supply()


def secrets(box: Box, instance: Instance) -> dict[str, str]:
    """What is secret of an instance, by the name of the service's setting."""
    settings = box.api
    found = {
        "peppers": settings.peppers(instance),
        "admin_secret": instance.admin_secret.get_secret_value(),
        "engine_keys": engine_keys_text(settings.upstream_keys(box)),
    }
    if settings.full:
        found["database_password"] = instance.database_password.get_secret_value()
        found["redis_password"] = box.redis.password.get_secret_value()
    if settings.retrieves:
        found["retrieval_key"] = box.qdrant.api_key.get_secret_value()
    return {name: text.strip() + "\n" for name, text in found.items()}


# Every secret that there can be.
SECRETS = ("peppers", "admin_secret", "engine_keys", "database_password", "redis_password", "retrieval_key")


def configuration(box: Box, instance: Instance) -> str:
    """The settings of an instance. They hold no secret."""
    settings = box.api
    if settings.full:
        database = f"postgresql://{instance.database}@127.0.0.1:{box.postgresql.port}/{instance.database}"
    else:
        database = f"sqlite:///{data(instance)}/api.sqlite3"
    values: dict[str, Any] = {
        "instance": instance.name,
        "host": "127.0.0.1",
        "port": instance.port,
        "workers": settings.processes,
        "stop_seconds": settings.stop_seconds,
        "database": database,
        "redis": f"redis://127.0.0.1:{box.redis.port}/0" if settings.full else "",
        "redis_prefix": instance.redis_prefix,
        "models": [route.model_dump(mode="json") for route in settings.routes(box)],
        "in_flight": settings.in_flight,
        "wait_ms": settings.wait,
        "breaker_requests": settings.breaker_requests,
        "visitor_requests": settings.visitor_requests,
        "visitor_header": settings.visitor_header,
        # The gateway says for whom it asks, and nobody else is believed.
        "trusted_proxies": ["127.0.0.1/32"] if box.gateway.asks_for_keys else [],
        "key_defaults": settings.key_defaults.model_dump(mode="json"),
        "fail_open": settings.fail_open,
        "max_body": int(settings.max_body),
        "max_tokens": settings.max_tokens,
        "usage_months": settings.usage_months,
        "spill": f"{data(instance)}/spill",
    }
    if settings.retrieves:
        values["retrieval"] = {
            "url": f"http://127.0.0.1:{box.qdrant.port}",
            "model": settings.retrieval_model,
            "prefix": instance.retrieval_prefix,
            "passages": settings.retrieval_passages,
        }
    values |= settings.options
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def variables(instance: Instance) -> dict[str, str]:
    """The environment of every process of an instance."""
    return {
        "BOXWRIGHT_API_SETTINGS": settings_path(instance),
        "PYTHONPATH": program(),
        # The folder is root's: nothing beside the programs is written, and nothing in the working folder is imported.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        # SQLAlchemy and others ask for a home; there is none.
        "HOME": data(instance),
    }


def _credentials(box: Box, instance: Instance) -> dict[str, str]:
    return {name: f"{secrets_folder(instance)}/{name}" for name in secrets(box, instance)}


def _prepare(box: Box, instance: Instance, *then: str) -> tuple[str, ...]:
    programs = box.postgresql.programs if box.api.full else "-"
    version = program().rpartition("/")[2]
    return (python(box), f"{program()}/prepare.py", data(instance), str(box.api.backups), programs, version, *then)


def _writes(instance: Instance) -> dict[str, tuple[Any, str]]:
    return {
        "ReadWritePaths": (data(instance), "its database, or what waits for one, and copies made before a new version")
    }


def _behind(box: Box) -> tuple[str, ...]:
    """What it builds on, for the order at boot."""
    kept = (box.postgresql, box.redis) if box.api.full else ()
    found = (box.qdrant,) if box.api.retrieves else ()
    return tuple(f"{role.unit}.service" for role in (*kept, *found))


def migration(box: Box, instance: Instance) -> Service:
    """What brings the database to the newest schema, before each start. Linux only: see `service`."""
    return Service(
        name=f"{instance.unit}-migrate",
        description=f"Database of the API service ({instance.name})",
        command=_prepare(box, instance),
        environment=variables(instance),
        credentials=_credentials(box, instance),
        user=account(box, instance),
        group=account(box, instance),
        working_directory=data(instance),
        oneshot=True,
        after=_behind(box),
        # A copy of a large database takes its time.
        start_timeout=1800,
        # The service itself is the same account's.
        sandbox_exceptions={**_writes(instance), "RemoveIPC": ("no", "the service runs as the same account")},
    )


def service(box: Box, instance: Instance) -> Service:
    """An instance as a service. launchd starts nothing before something else: there it prepares its database itself."""
    mac = box.system == "darwin"
    command = _prepare(box, instance, "serve") if mac else (python(box), "-m", "boxwright_api")
    outside: dict[str, tuple[Any, str]] = (
        {"IPAddressDeny": (None, "engines of `api_models` are on other machines")}
        if box.api.other_machines(box)
        else {}
    )
    return Service(
        name=instance.unit,
        description=f"API service ({instance.name})",
        command=command,
        environment=variables(instance),
        credentials=_credentials(box, instance),
        # A folder counts by its inode: it is another one when it was made anew.
        restart_files=(settings_path(instance), program(), python_packages.venv_marker(environment_folder(box))),
        user=account(box, instance),
        group=account(box, instance),
        working_directory=data(instance),
        requires=() if mac else (f"{instance.unit}-migrate",),
        after=() if mac else _behind(box),
        # That it runs; not that its models are warm, for which it is not stopped: `ready`.
        probe=http_probe(f"http://127.0.0.1:{instance.port}/api/v1/health"),
        start_timeout=1800 if mac else 120,
        # Streams may end, and then the log is written.
        stop_timeout=box.api.stop_seconds + 30,
        sandbox_exceptions={**_writes(instance), **outside},
        # Two for each stream.
        settings={"LimitNOFILE": systems.open_files(box.system)},
    )


def ready(instance: Instance) -> tuple[str, ...]:
    """A command on the box that succeeds as soon as the service is ready: its models have answered."""
    asked = ("/usr/bin/curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", "/dev/null")
    patience = ("--max-time", "60", "--retry", str(READY_SECONDS), "--retry-delay", "1", "--retry-all-errors")
    most = ("--retry-max-time", str(READY_SECONDS))
    return (*asked, *patience, *most, f"http://127.0.0.1:{instance.port}/api/v1/ready")


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order; an instance that is no longer wanted goes, but for its data."""
    for instance in box.api.every_instance:
        if instance not in box.api.instances and settings_path(instance) in machine.files:
            _instance_absent(box, instance, purge=False)
    if box.api.enabled:
        install(box)
        configure(box)
        activate(box)
    elif BASE in machine.files:
        _program_absent(box)


def install(box: Box) -> None:
    """The program, its packages and an account for each instance; on a Mac a Python for them."""
    for instance in box.api.instances:
        home, user = data(instance), account(box, instance)
        users.system_user(user, home=home, name=f"api: account of the {instance.name} instance")
    if box.system == "darwin" and not box.api.python:
        homebrew.packages((systems.PYTHON_FORMULA,), name="api: install Python with Homebrew")
    python_packages.venv(
        name="api: install the packages",
        base=BASE,
        requirements=requirements(),
        mirror=box.mirror,
        python=interpreter(box),
    )
    trees.installed(name="api: install the service", path=program(), files=program_files())


def configure(box: Box) -> None:
    """Secrets, settings -- accepted by the service before they replace the old ones -- and units."""
    files.directory(name="api: folder of the box's data", path="/var/lib/boxwright")
    files.directory(name="api: folder of data", path=DATA)
    files.directory(name="api: folder of the box's settings", path="/etc/boxwright")
    files.directory(name="api: folder of settings", path=FOLDER)
    for instance in box.api.instances:
        _configure(box, instance)


def _configure(box: Box, instance: Instance) -> None:
    which, user, folder = instance.name, account(box, instance), secrets_folder(instance)
    folders.belongs_to(name=f"api: folder of the {which} data", path=data(instance), user=user)
    files.directory(name=f"api: folder of the {which} secrets", path=folder, mode="0700")
    wanted = secrets(box, instance)
    for name, text in wanted.items():
        path = f"{folder}/{name}"
        files.content(name=f"api: write {which} {name}", path=path, text=text, mode="0600", secret=True)
    others = [f"{folder}/{name}" for name in SECRETS if name not in wanted]
    files.files_absent(name=f"api: no other {which} secrets", paths=others)
    given = {**variables(instance), "CREDENTIALS_DIRECTORY": folder}
    given.pop("BOXWRIGHT_API_SETTINGS")
    words = " ".join(f"{name}={value}" for name, value in given.items())
    files.content(
        name=f"api: write the {which} settings",
        path=settings_path(instance),
        text=configuration(box, instance),
        group=user,
        mode="0640",
        validate=f"cd / && env {words} BOXWRIGHT_API_SETTINGS={{path}} {python(box)} -m boxwright_api check",
    )
    if box.system == "linux":
        services.unit(name=f"api: write the unit of the {which} migration", service=migration(box, instance))
    services.unit(name=f"api: write the {which} unit", service=service(box, instance))


def activate(box: Box) -> None:
    """Running, and ready."""
    # Where the engines run in the session of somebody who is not signed in, no model can answer.
    user = box.inference.agent_user
    models = not (user and box.inference.running) or target.get_fact(SignedIn, user=user)
    for instance in box.api.instances:
        services.running(
            name=f"api: {instance.name} running",
            service=service(box, instance),
            answers=ready(instance) if models else (),
        )
    python_packages.prune(name="api: remove older versions", base=BASE, keep=[environment_folder(box), program()])


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; keys and usage only with `purge`."""
    for instance in box.api.every_instance:
        _instance_absent(box, instance, purge)
    if purge:
        files.absent(name="api: remove keys and usage", path=DATA, recursive=True)
    _program_absent(box)


def _program_absent(box: Box) -> None:
    files.absent(name="api: remove the settings", path=FOLDER, recursive=True)
    # Last: as long as it is there, `apply` knows that something is left to remove.
    files.absent(name="api: remove the program", path=BASE, recursive=True)


def _instance_absent(box: Box, instance: Instance, purge: bool) -> None:
    which = instance.name
    plain = Service(name=instance.unit, description="API service", command=("/bin/true",), user=account(box, instance))
    services.unit_absent(name=f"api: stop and remove the {which} service", service=plain)
    if box.system == "linux":
        prepared = Service(name=f"{instance.unit}-migrate", description="Migration", command=("/bin/true",))
        services.unit_absent(name=f"api: remove the unit of the {which} migration", service=prepared)
    files.absent(name=f"api: remove the {which} secrets", path=secrets_folder(instance), recursive=True)
    if purge:
        files.absent(name=f"api: remove {which} keys and usage", path=data(instance), recursive=True)
    else:
        # The next account that is made on the box may get the number of this one.
        folders.belongs_to(
            name=f"api: keep {which} keys and usage for root", path=data(instance), user="root", make=False
        )
    users.user_absent(account(box, instance), name=f"api: remove the {which} account")
    # Last: as long as it is there, `apply` knows that something is left to remove.
    files.absent(name=f"api: remove the {which} settings", path=settings_path(instance))
