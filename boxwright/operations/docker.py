"""Docker: images from the mirror under their own names, networks, Compose projects that are touched only on drift."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network

from pyinfra import host
from pyinfra.api.exceptions import OperationValueError

from boxwright.artifacts import MirrorSettings
from boxwright.facts.docker import (
    COMPOSE_LEAVES_NOTHING,
    NOT_INSTALLED,
    ComposeProject,
    ComposeState,
    ComposeTraces,
    Container,
    Image,
    Network,
    NetworkState,
)
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script

# $1 name on the box, $2 where it is pulled from, $3 "keep" when the pulled name holds the digest that is asked for
_PULL = """
name=$1 source=$2
from=
[ "$source" = "$name" ] || from=" from the mirror, as $source"
if ! said=$(docker pull --quiet -- "$source" 2>&1); then
    echo "cannot pull $name$from: $said" >&2
    case $said in
        *"HTTP response to HTTPS"*)
            echo "the registry answers without TLS: Docker must list it in insecure-registries" >&2 ;;
        *"connection refused"* | *"no such host"* | *"timeout"* | *"no route to host"*)
            echo "is the registry running, and can this box reach it?" >&2 ;;
    esac
    exit 1
fi
[ "$source" = "$name" ] && exit 0
docker tag "$source" "$name" || exit 1
[ "$3" = keep ] || docker image rm -- "$source" >/dev/null
"""


@operation()
def image(reference: str, mirror: MirrorSettings | None = None, digest: str | None = None) -> Commands:
    """The image `reference` (registry, name and tag) is on the box under this name, pulled from `mirror` when set.

    An image that is there is kept, whatever its tag means elsewhere now. With `digest` (`sha256:...`) it must be the
    one that was pulled by that digest.
    """
    if "@" in reference:
        raise OperationValueError(f"give the digest of {reference} apart from its name")
    found = host.get_fact(Image, reference=reference)
    if found is None:
        yield refuse(f"the image {reference} could not be examined")
        return
    if found.id and (digest is None or digest in found.digests):
        return
    source = mirror.image(reference) if mirror else reference
    if digest:
        # A pull by digest takes no tag.
        head, _, tail = source.rpartition("/")
        source = f"{head}/{tail.partition(':')[0]}@{digest}" if head else f"{tail.partition(':')[0]}@{digest}"
    yield script(_PULL, reference, source, "keep" if digest else "")


@operation()
def image_absent(reference: str) -> Commands:
    """The box has no image called `reference`; its layers go when no other name needs them."""
    found = host.get_fact(Image, reference=reference)
    if found is None:
        yield refuse(f"the image {reference} could not be examined")
    elif found.id:
        # What is left then of an image that was pulled by digest has no name of its own.
        text = """
            docker image rm -- "$1" >/dev/null || exit 1
            if [ "$(docker image inspect --format '{{len .RepoTags}}' -- "$2" 2>/dev/null)" = 0 ]; then
                docker image rm --force -- "$2" >/dev/null
            fi
            """
        yield script(text, reference, found.id)
    else:
        yield from _refuse_if_stopped(found.unavailable, f"the image {reference}")


def _refuse_if_stopped(unavailable: str, what: str) -> Commands:
    """Nothing is known to be gone while Docker is stopped; where it is not installed nothing is left to remove."""
    if unavailable and NOT_INSTALLED not in unavailable:
        yield refuse(f"cannot remove {what}: {unavailable}")


def _network_matches(found: NetworkState, subnet: IPv4Network, bridge: str, internal: bool) -> bool:
    return (
        found.driver == "bridge"
        and found.subnets == (str(subnet),)
        and found.gateways == (str(next(subnet.hosts())),)
        and (not bridge or found.bridge == bridge)
        and found.internal == internal
    )


# $1 network, $2 subnet, $3 gateway, $4 bridge, $5 "internal" or empty
_CREATE_NETWORK = """
set -- "$1" "$2" "$3" ${4:+--opt "com.docker.network.bridge.name=$4"} ${5:+--internal}
name=$1 subnet=$2 gateway=$3
shift 3
docker network create --driver bridge --subnet "$subnet" --gateway "$gateway" "$@" -- "$name" >/dev/null
"""

# Containers of Compose projects are taken off the network: compose_project attaches them again.
_REMOVE_NETWORK = """
attached=$(docker network inspect --format '{{range $id, $each := .Containers}}{{$id}} {{end}}' -- "$1") || exit 1
for container in $attached; do
    label='{{index .Config.Labels "com.docker.compose.project"}}'
    if [ -z "$(docker inspect --type container --format "$label" "$container")" ]; then
        name=$(docker inspect --type container --format '{{.Name}}' "$container")
        echo "the network $1 is used by the container ${name#/}, which no Compose project manages: remove it first" >&2
        exit 1
    fi
done
for container in $attached; do
    docker network disconnect --force "$1" "$container" || exit 1
done
docker network rm -- "$1" >/dev/null
"""


@operation()
def network(network: str, subnet: str, bridge: str = "", internal: bool = False) -> Commands:
    """The bridge network `network` has the IPv4 range `subnet`, whose first address is the box itself.

    `bridge` is the name of the network interface (at most 15 characters). An `internal` network joins the box and its
    containers alone: Docker forwards nothing between it and other networks, in either direction. A network that differs
    is made anew; containers of Compose projects are detached from it first, and `compose_project` attaches them again.
    """
    wanted = ip_network(subnet)
    if not isinstance(wanted, IPv4Network) or len(bridge) > 15:
        raise OperationValueError(f"not an IPv4 range and the name of an interface: {subnet!r}, {bridge!r}")
    found = host.get_fact(Network, network=network)
    if found is None:
        yield refuse(f"the network {network} could not be examined")
        return
    if found.id and _network_matches(found, wanted, bridge, internal):
        return
    if found.id:
        yield script(_REMOVE_NETWORK, network)
    yield script(
        _CREATE_NETWORK, network, str(wanted), str(next(wanted.hosts())), bridge, "internal" if internal else ""
    )


@operation()
def network_absent(network: str) -> Commands:
    """There is no network called `network`. One that a foreign container uses is an error that names the container."""
    found = host.get_fact(Network, network=network)
    if found is None:
        yield refuse(f"the network {network} could not be examined")
    elif found.id:
        yield script(_REMOVE_NETWORK, network)
    else:
        yield from _refuse_if_stopped(found.unavailable, f"the network {network}")


def _broken(container: Container, state: ComposeState) -> str:
    """Why starting `container` again is not enough and it must be made anew; empty when it is not so."""
    if container.status in ("paused", "restarting", "dead", "removing"):
        return f"it is {container.status}"
    if container.health == "unhealthy":
        return "it is unhealthy"
    mode = container.network_mode
    attached = {*container.networks, *container.networks.values()}
    if mode not in ("host", "none", "bridge", "default") and ":" not in mode and mode not in attached:
        return f"it is not attached to the network {mode}"
    for name, identifier in container.networks.items():
        if identifier and state.networks.get(name) != identifier:
            return f"the network {name} was made anew"
    return ""


@dataclass(frozen=True)
class Drift:
    """What differs from a Compose file: `reasons` by service (or container), empty when nothing does.

    Compose would leave the containers of the services `anew` as they are, so they are made anew in any case; `orphans`
    are containers that the file does not have.
    """

    reasons: Mapping[str, str]
    anew: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()


def drift(state: ComposeState) -> Drift:
    """What differs between `state` and its Compose file."""
    if state.problem:
        return Drift({"": state.problem})
    reasons: dict[str, str] = {}
    anew = []
    orphans = []
    for service in state.services:
        mine = [container for container in state.containers if container.service == service]
        if not mine:
            reasons[service] = "it has no container"
        for container in mine:
            broken = _broken(container, state)
            if broken:
                reasons[service] = broken
                anew.append(service)
            elif container.name in state.outdated:
                reasons[service] = "its configuration changed"
            elif state.images.get(container.reference) not in (container.image, ""):
                reasons[service] = "its image changed"
            elif container.status != "running":
                reasons[service] = f"it is {container.status}"
            elif container.health == "starting":
                # By the boot, or by a run that was killed: what is running may be relied on when this run ends.
                reasons[service] = "it is not ready yet"
    for container in state.containers:
        if container.service not in state.services:
            reasons[container.service or container.id] = "the Compose file does not have it"
            orphans.append(container.id)
    return Drift(reasons, tuple(dict.fromkeys(anew)), tuple(orphans))


# $1 project, $2 directory, $3 seconds to wait, $4 ids of orphans, then services to make anew
_UP = f"""{COMPOSE_LEAVES_NOTHING}
"""
_UP += """
project=$1 directory=$2 seconds=$3 orphans=$4
shift 4
cd -- "$directory" || exit 1
compose() { docker compose --ansi never --progress quiet --project-name "$project" "$@"; }
up() { compose up --detach --no-build --pull never "$@" || failed; }
failed() {
    echo "the containers of $project and their last messages:" >&2
    compose ps --all --format 'table {{.Service}}\\t{{.State}}\\t{{.Status}}' >&2
    compose logs --no-color --tail 20 2>&1 | sed "s/$(printf '\\033')\\[[0-9;]*[A-Za-z]//g" >&2
    for container in $(compose ps --all --quiet); do
        docker inspect --type container --format '{{$name := .Name}}{{with index .State "Health"}}{{range .Log}}\
health check of {{$name}}: {{.ExitCode}} {{.Output}}{{println}}{{end}}{{end}}' "$container" | grep . | tail -n 3 >&2
    done
    exit 1
}
if [ -n "$orphans" ]; then docker rm --force $orphans >/dev/null || exit 1; fi
if [ "$#" -gt 0 ]; then
    up --no-deps --force-recreate "$@"
fi
up --wait --wait-timeout "$seconds"
"""


@operation()
def compose_project(project: str, directory: str, wait: int = 300) -> Commands:
    """The containers of the Compose file in `directory` run as it says, under the project name `project`.

    Compose is called only when something differs: a container is missing, stopped, restarting, paused, unhealthy, not
    ready yet or off its network, its configuration or its image changed, or a service is no longer in the file. Then it
    waits up to `wait` seconds until all run and are healthy; a failure shows their last messages. Images must be there
    (see `image`).
    """
    found = host.get_fact(ComposeProject, project=project, directory=directory)
    if found is None:
        yield refuse(f"the Compose project {project} could not be examined")
        return
    differs = drift(found)
    if differs.reasons:
        yield script(_UP, project, directory, wait, " ".join(differs.orphans), *differs.anew)


@operation()
def compose_absent(project: str, volumes: bool = False) -> Commands:
    """Containers and networks of the Compose project `project` are gone; its volumes too, but only with `volumes`.

    Needs no Compose file. Networks that the file calls external stay.
    """
    found = host.get_fact(ComposeTraces, project=project)
    if found is None:
        yield refuse(f"the Compose project {project} could not be examined")
        return
    traces: dict[str, list[str]] = {}
    for line in found:
        kind, _, name = line.partition(" ")
        traces.setdefault(kind, []).append(name)
    yield from _refuse_if_stopped("".join(traces.get("unavailable", ())), f"the Compose project {project}")
    yield from _remove(traces, volumes)


def _remove(traces: dict[str, list[str]], volumes: bool) -> Commands:
    def names(kind: str) -> Sequence[str]:
        return traces.get(kind, ())

    if names("container"):
        yield script('docker stop -- "$@" >/dev/null; docker rm --force -- "$@" >/dev/null', *names("container"))
    if names("network"):
        yield script('docker network rm -- "$@" >/dev/null', *names("network"))
    if volumes and names("volume"):
        yield script('docker volume rm -- "$@" >/dev/null', *names("volume"))
