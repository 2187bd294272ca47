"""What Docker has on the target.

In a first run Docker is not there yet when changes are foreseen, and after a drift it may be stopped: both are said
(`unavailable`), and never taken for "no such image".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script

NOT_INSTALLED = "docker is not installed"

# Compose asks its build plugin, which makes a folder for its settings; being asked must not leave one in a home folder.
# On Linux this is /run, which a Mac has not.
COMPOSE_LEAVES_NOTHING = "export BUILDX_CONFIG=/var/run/boxwright/buildx"

# Runs docker with the arguments; prints what it prints, or `absent` or `unavailable WHY`, and then ends the script.
_ASK = f"""
command -v docker >/dev/null || {{ echo "unavailable {NOT_INSTALLED}"; exit 0; }}
"""
_ASK += """
ask() {
    if answer=$(docker "$@" 2>&1); then return; fi
    case $answer in
        *"No such image"* | *"No such network"* | *"network "*" not found"*) echo absent ;;
        *) echo "unavailable $(printf '%s' "$answer" | tr '\\n' ' ')" ;;
    esac
    exit 0
}
"""


@dataclass(frozen=True)
class ImageState:
    """An image under one of its names: `id` and the `digests` it was pulled by; or why Docker could not be asked."""

    id: str = ""
    digests: tuple[str, ...] = ()
    unavailable: str = ""


class Image(Fact[ImageState]):
    """The `ImageState` of the image called `reference`."""

    def command(self, reference: str) -> StringCommand:
        text = """
            ask image inspect --format '{{.Id}}{{range .RepoDigests}} {{.}}{{end}}' -- "$1"
            echo "image $answer"
            """
        return script(_ASK + text, reference)

    def process(self, output: Sequence[str]) -> ImageState:
        word, *rest = output[0].split(" ", 1)
        if word == "absent":
            return ImageState()
        if word == "unavailable":
            return ImageState(unavailable="".join(rest))
        if word != "image" or not rest:
            raise FactProcessError(f"not the state of an image: {output[0]!r}")
        identifier, *references = rest[0].split()
        return ImageState(identifier, tuple(reference.partition("@")[2] for reference in references))


@dataclass(frozen=True)
class NetworkState:
    """A network of Docker: address range, the box's own address, name of the bridge, whether it leads nowhere else."""

    id: str = ""
    driver: str = ""
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    bridge: str = ""
    internal: bool = False
    unavailable: str = ""


class Network(Fact[NetworkState]):
    """The `NetworkState` of the network called `network`."""

    def command(self, network: str) -> StringCommand:
        return script(
            _ASK + "ask network inspect --format '{{json .}}' -- \"$1\"; printf '%s\\n' \"network $answer\"", network
        )

    def process(self, output: Sequence[str]) -> NetworkState:
        word, *rest = output[0].split(" ", 1)
        if word == "absent":
            return NetworkState()
        if word == "unavailable":
            return NetworkState(unavailable="".join(rest))
        try:
            value = json.loads("".join(rest))
            ranges = value["IPAM"]["Config"] or ()
            return NetworkState(
                id=value["Id"],
                driver=value["Driver"],
                subnets=tuple(each.get("Subnet", "") for each in ranges),
                gateways=tuple(each.get("Gateway", "") for each in ranges),
                internal=value["Internal"],
                bridge=(value["Options"] or {}).get("com.docker.network.bridge.name", ""),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise FactProcessError(f"not the state of a network: {output[0]!r}") from error


@dataclass(frozen=True)
class Container:
    """A container of a Compose project. `image` is the id it was made from, `reference` the name it was made by.

    `networks` maps the networks it is attached to, by name, to their ids at that time; `network_mode` is the name or
    the id of the first of them, or a mode of Docker's own.
    """

    id: str
    service: str
    name: str
    status: str
    health: str
    image: str
    reference: str
    network_mode: str
    networks: Mapping[str, str]


@dataclass(frozen=True)
class ComposeState:
    """A Compose project: what its file asks for, and what there is.

    `problem` is why it could not be found out: Docker is missing or stopped, or the file is wrong. `services` are those
    of the file, `outdated` the names of containers that Compose would make anew; `images` maps names to the ids they
    have now, `networks` likewise.
    """

    problem: str = ""
    services: tuple[str, ...] = ()
    outdated: frozenset[str] = frozenset()
    containers: tuple[Container, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)


# Fields are separated by a bar, which neither names nor ids can hold.
_CONTAINER_FORMAT = (
    '{{.Id}}|{{index .Config.Labels "com.docker.compose.service"}}'
    "|{{.Name}}|{{.State.Status}}"
    '|{{with index .State "Health"}}{{.Status}}{{end}}|{{.Image}}|{{.Config.Image}}|{{.HostConfig.NetworkMode}}'
    "|{{range $name, $network := .NetworkSettings.Networks}}{{$name}}={{$network.NetworkID}},{{end}}"
    '|{{index .Config.Labels "com.docker.compose.oneoff"}}'
)


class ComposeProject(Fact[ComposeState]):
    """The `ComposeState` of the project called `project`, whose Compose file is in `directory`.

    Compose itself is asked what it would make anew: the hashes that `config --hash` prints are not those that it labels
    its containers with when a service has an `env_file` (2.26). Nothing is changed, and no value of a variable is
    printed.
    """

    def command(self, project: str, directory: str) -> StringCommand:
        text = f"""{COMPOSE_LEAVES_NOTHING}
project=$1
problem() {{ echo "problem $(printf '%s' "$1" | tr '\\n' ' ')"; exit 0; }}
command -v docker >/dev/null || problem "{NOT_INSTALLED}"
cd -- "$2" 2>/dev/null || problem "there is no folder $2"
services=$(docker compose --project-name "$project" config --services 2>&1) || problem "$services"
foreseen=$(docker compose --ansi never --dry-run --project-name "$project" up --detach --no-build --pull never 2>&1) \\
    || problem "$foreseen"
containers=$(docker ps --all --quiet --no-trunc --filter "label=com.docker.compose.project=$project" 2>&1) \\
    || problem "$containers"
printf '%s\\n' "$services" | sed '/^$/d; s/^/service /'
printf '%s\\n' "$foreseen" | sed -n 's/^.*  *Container \\(.*[^ ]\\)  *Recreate$/outdated \\1/p'
[ -n "$containers" ] || exit 0
if ! lines=$(docker inspect --type container --format '{_CONTAINER_FORMAT}' $containers 2>&1); then
    # A container may vanish between the two questions.
    case $lines in *"o such"*) lines=$(printf '%s\\n' "$lines" | grep -F '|') ;; *) problem "$lines" ;; esac
fi
printf '%s\\n' "$lines" | sed '/^$/d; s/^/container /'
printf '%s\\n' "$lines" | cut -d '|' -f 7 | sort -u | while IFS= read -r image; do
    [ -z "$image" ] || echo "image $image|$(docker image inspect --format '{{{{.Id}}}}' -- "$image" 2>/dev/null)"
done
docker network ls --no-trunc --format 'network {{{{.Name}}}}|{{{{.ID}}}}'
"""
        return script(text, project, directory)

    def process(self, output: Sequence[str]) -> ComposeState:
        services: list[str] = []
        outdated: set[str] = set()
        containers: list[Container] = []
        images: dict[str, str] = {}
        networks: dict[str, str] = {}
        for line in output:
            kind, _, rest = line.partition(" ")
            parts = rest.split("|")
            if kind == "problem":
                return ComposeState(problem=rest.strip())
            if kind == "service":
                services.append(rest)
            elif kind == "outdated":
                outdated.add(rest)
            elif kind == "container" and len(parts) == 10:
                if parts[9] != "True":
                    containers.append(_container(parts))
            elif kind == "image" and len(parts) == 2:
                images[parts[0]] = parts[1]
            elif kind == "network" and len(parts) == 2:
                networks[parts[0]] = parts[1]
            else:
                raise FactProcessError(f"not a part of a Compose project: {line!r}")
        return ComposeState("", tuple(services), frozenset(outdated), tuple(containers), images, networks)


def _container(parts: Sequence[str]) -> Container:
    attached = dict(pair.split("=", 1) for pair in parts[8].split(",") if pair)
    identifier, service, name, status, health, image, reference, network_mode = parts[:8]
    return Container(identifier, service, name.lstrip("/"), status, health, image, reference, network_mode, attached)


class ComposeTraces(Fact[tuple[str, ...]]):
    """What Docker still has of the project called `project`: lines of kind and name; also `unavailable WHY`."""

    def command(self, project: str) -> StringCommand:
        text = """
            label="label=com.docker.compose.project=$1"
            ask ps --all --quiet --filter "$label"
            containers=$answer
            ask network ls --quiet --filter "$label"
            networks=$answer
            ask volume ls --quiet --filter "$label"
            echo traces
            for each in $containers; do echo "container $each"; done
            for each in $networks; do echo "network $each"; done
            for each in $answer; do echo "volume $each"; done
            """
        return script(_ASK + text, project)

    def process(self, output: Sequence[str]) -> tuple[str, ...]:
        first, *rest = output
        if first.startswith("unavailable "):
            return (first,)
        if first != "traces":
            raise FactProcessError(f"not the traces of a Compose project: {first!r}")
        return tuple(rest)
