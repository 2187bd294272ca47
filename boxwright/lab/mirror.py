"""The lab's mirror: a web server with files and wheels, and a container registry, each in a container of its own.

What they serve lies in `<cache>/mirror` and is made once. The containers have fixed addresses on the lab's network and
come back with the engine. Every user of this machine fills a mirror of their own; the containers serve that of whoever
came last, which holds the same pinned content.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwright.artifacts import Wheel
from boxwright.errors import BoxwrightError, Failed, Problem, Refused
from boxwright.lab import image, machine, network, openwebui, wheels
from boxwright.lab.boxes import BOX_LABEL, Mirror
from boxwright.lab.locks import locked
from boxwright.lab.oci import Registry
from boxwright.lab.progress import Progress
from boxwright.paths import cache_dir, state_dir

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container


#: Puts something into the mirror's folder; the variables by which a box knows it.
Fill = Callable[[Path, Progress], Mapping[str, Any]]

REPOSITORY = "boxwright-mirror"
FILES_PORT = 8000
REGISTRY_PORT = 5000
START_TIMEOUT = 30.0
SPEC_LABEL = "boxwright.spec"

DOCKERFILE = """\
FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends nginx docker-registry && rm -rf /var/lib/apt/lists/*
COPY nginx.conf registry.yml /etc/boxwright/
"""

# The packaged configurations want more than a lab needs (modules, a password file). nginx runs as the container's root,
# so that it can read the files whatever the umask of the person who fetched them.
NGINX = f"""\
user root;
worker_processes 1;
daemon off;
error_log stderr warn;
pid /run/nginx.pid;
events {{ worker_connections 256; }}
http {{
    types {{ text/html html; }}
    default_type application/octet-stream;
    access_log off;
    sendfile on;
    client_body_temp_path /run/nginx-body;
    proxy_temp_path /run/nginx-proxy;
    fastcgi_temp_path /run/nginx-fastcgi;
    uwsgi_temp_path /run/nginx-uwsgi;
    scgi_temp_path /run/nginx-scgi;
    server {{
        listen {FILES_PORT};
        root /srv/mirror;
        location = /ready {{ return 204; }}
    }}
}}
"""

REGISTRY = f"""\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: /srv/registry}}
  maintenance: {{readonly: {{enabled: true}}}}
http: {{addr: ":{REGISTRY_PORT}", secret: none-is-uploaded}}
"""


@dataclass(frozen=True)
class Server:
    """A container of the mirror: `folder` of this machine is served at `mount`; `probe` is a path that answers."""

    name: str
    host: int
    port: int
    command: tuple[str, ...]
    folder: Path
    mount: str
    probe: str

    def spec(self, tag: str, address: str) -> str:
        """What decides whether an existing container is this one."""
        return image.digest({**{key: str(value) for key, value in asdict(self).items()}, "tag": tag, "at": address})


def mirror_dir() -> Path:
    """What the mirror serves."""
    return cache_dir() / "mirror"


def servers() -> tuple[Server, Server]:
    """The web server and the registry."""
    files = Server(
        "boxwright-mirror-files",
        network.FILES_HOST,
        FILES_PORT,
        ("nginx", "-c", "/etc/boxwright/nginx.conf"),
        mirror_dir() / "files",
        "/srv/mirror",
        "/ready",
    )
    registry = Server(
        "boxwright-mirror-registry",
        network.REGISTRY_HOST,
        REGISTRY_PORT,
        ("docker-registry", "serve", "/etc/boxwright/registry.yml"),
        mirror_dir() / "registry",
        "/srv/registry",
        "/v2/",
    )
    return files, registry


def prepare(
    client: DockerClient,
    progress: Progress,
    needed: Callable[[], Sequence[Wheel]],
    programs: Sequence[Fill] = (),
) -> tuple[str, Mirror]:
    """The name of the box image and a running, filled mirror; what is missing is made, several things at once.

    `needed` tells which wheels the boxes install; it is called in a thread, as finding out may take a while. `programs`
    put what only some boxes need into the mirror.
    """
    image.authorise(image.box_recipe(), openwebui.recipe())
    pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="lab")
    try:
        jobs: list[Future[None]] = [
            pool.submit(_fill_registry, progress),
            pool.submit(fill_wheels, progress, needed),
            pool.submit(_fill_model, progress),
        ]
        made = [pool.submit(fill, mirror_dir() / "files", progress) for fill in programs]
        box_image = image.ensure_box(client, progress)
        mirror = _serve(client, progress, box_image)
        _all([*jobs, *made])
    except KeyboardInterrupt:
        machine.stop_running()
        raise
    finally:
        # What still runs after a failure is only waited for; the next command would wait for its locks anyway.
        pool.shutdown(cancel_futures=True)
    variables = {name: value for job in made for name, value in job.result().items()}
    return box_image, replace(mirror, variables=variables)


def _all(jobs: Iterable[Future[Any]]) -> None:
    """Wait for all jobs, and raise what went wrong in them as one error, so that one run shows every cause."""
    errors = [error for job in jobs if (error := job.exception()) is not None]
    known = [error for error in errors if isinstance(error, BoxwrightError)]
    if len(known) == len(errors) and known:
        kind = Failed if any(isinstance(error, Failed) for error in known) else Refused
        raise kind([problem for error in known for problem in error.problems]) from known[0]
    if errors:
        raise next(error for error in errors if not isinstance(error, BoxwrightError))


def _fill_registry(progress: Progress) -> None:
    """Open WebUI's image in the registry, of the present recipe."""
    folder = mirror_dir() / "registry"
    registry, marker = Registry(folder), folder / "open-webui"
    with locked(cache_dir() / "lab" / "registry.lock"):
        wanted = openwebui.digest()
        known = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
        if known.get("recipe") == wanted and registry.has(known["reference"]):
            return
        with progress.step("Open WebUI image", "putting together") as step:
            shutil.rmtree(registry.temporary("").parent, ignore_errors=True)
            reference = openwebui.build(registry)
            registry.prune()
            marker.write_text(json.dumps({"recipe": wanted, "reference": reference}), encoding="utf-8")
            step.result = "in the mirror"


def fill_wheels(
    progress: Progress,
    needed: Callable[[], Sequence[Wheel]],
    what: str = "wheels",
    python: str = wheels.BOX_PYTHON,
) -> None:
    """Make the mirror hold the wheels that `needed` names, which may take a while to find out, for `python`."""
    with locked(cache_dir() / "lab" / "wheels.lock"), progress.step(what, "downloading", quiet=True) as step:
        folder = mirror_dir() / "files" / "wheels"
        if wheels.fill_wheels(needed(), folder, mirror_dir() / "partial-wheels", python):
            step.say("in the mirror")


def _fill_model(progress: Progress) -> None:
    with locked(cache_dir() / "lab" / "model.lock"), progress.step("model", "downloading", quiet=True) as step:
        if wheels.fill_model(mirror_dir() / "files", mirror_dir() / "partial-model"):
            step.say("in the mirror")


def _build_image(client: DockerClient, progress: Progress, box_image: str) -> str:
    """The image of both servers: a box's file system with two packages more."""
    context = {"Dockerfile": DOCKERFILE.format(base=box_image), "nginx.conf": NGINX, "registry.yml": REGISTRY}
    tag = f"{REPOSITORY}:{image.digest(context)}"
    with locked(image.images_dir() / "mirror.lock"):
        if image.has_image(client, tag):
            return tag
        with progress.step("mirror image", "building") as step:
            from docker.errors import BuildError

            try:
                client.images.build(fileobj=_tar(context), custom_context=True, tag=tag, rm=True, forcerm=True)
            except BuildError as error:
                said = "".join(str(line.get("stream", "")) for line in error.build_log if isinstance(line, dict))
                log = state_dir() / "log" / "mirror-image.log"
                log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                log.touch(mode=0o600)
                log.write_text(said, encoding="utf-8")
                raise Failed(
                    Problem(
                        code="BW307",
                        message=f"building the mirror's image failed: {error.msg}",
                        help=f"the whole output is in {log}",
                    )
                ) from error
            step.result = "built"
    return tag


def _tar(files: dict[str, str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    buffer.seek(0)
    return buffer


def _serve(client: DockerClient, progress: Progress, box_image: str) -> Mirror:
    """Both servers running and answering; the addresses for an inventory."""
    lab_network = network.ensure(client)
    subnet = network.subnet_of(lab_network)
    tag = _build_image(client, progress, box_image)
    urls = []
    with locked(cache_dir() / "lab" / "servers.lock"), progress.step("mirror", "starting", quiet=True) as step:
        for server in servers():
            address = str(subnet[server.host])
            if _ensure_running(client, server, tag, address):
                step.say("running")
            urls.append(f"http://{address}:{server.port}")
    return Mirror(url=urls[0], registry=urls[1])


def _ensure_running(client: DockerClient, server: Server, tag: str, address: str) -> bool:
    """One server running and answering; False when it was. Raises Failed (BW313) when it does not answer."""
    from docker.errors import NotFound

    lab_network = network.ensure(client)
    server.folder.mkdir(parents=True, exist_ok=True)
    spec = server.spec(tag, address)
    changed = True
    try:
        container = client.containers.get(server.name)
        if container.labels.get(SPEC_LABEL) != spec:
            container.remove(force=True)
            raise NotFound("it was another one")
        network.attach(lab_network, container, address)
        changed = container.status != "running"
        if changed:
            container.start()
    except NotFound:
        host_config = client.api.create_host_config(
            binds={str(server.folder): {"bind": server.mount, "mode": "ro"}},
            tmpfs={"/run": "", "/tmp": "", "/var/log": ""},  # noqa: S108 - paths inside the container
            read_only=True,
            restart_policy={"Name": "unless-stopped"},
            network_mode=network.NAME,
        )
        end = client.api.create_endpoint_config(ipv4_address=address)
        created = client.api.create_container(
            tag,
            command=list(server.command),
            name=server.name,
            hostname=server.name,
            labels={**network.OWNER_LABELS, SPEC_LABEL: spec, network.ADDRESS_LABEL: address},
            stop_signal="SIGTERM",
            host_config=host_config,
            networking_config=network.only_end(client, end),
        )
        container = client.containers.get(created["Id"])
        container.start()
    _wait(f"http://{address}:{server.port}{server.probe}", server.name, container)
    return changed


def _wait(url: str, name: str, container: Container) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    reason = "no answer"
    # Proxies of this machine have nothing to do with its own containers.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            reason = str(error)
        time.sleep(0.1)
    last = network.last_words(container)
    raise Failed(
        Problem(
            code="BW313",
            message=f"the lab's mirror does not answer at {url}: {reason}" + (f"\n{last}" if last else ""),
            help=f"read `docker logs {name}`; `docker rm -f {name}` lets the next `boxwright lab up` make it anew",
        )
    )


def down(client: DockerClient) -> bool:
    """Take the servers and the lab's network away; what they serve stays in the cache.

    False, and nothing is done, while a box is there that may use them: another user's.
    """
    from docker.errors import APIError, NotFound

    if any(BOX_LABEL in container.labels for container in network.containers(client)):
        return False
    for server in servers():
        try:
            client.containers.get(server.name).remove(force=True)
        except NotFound:
            continue
    lab_network = network.find(client)
    if lab_network is not None:
        try:
            lab_network.remove()
        except APIError:
            return False  # something else was put on it
    return True
