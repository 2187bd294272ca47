"""A Tailscale container beside a proxy in a Compose project of one's own: no tailscaled on the machine itself.

For machines whose stack lives in Compose, such as a Mac with an engine of its own: the proxy shares the network of the
container that is in the tailnet. Nothing of it holds a secret: the key is a file that lies beside it.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxwright.containers import Runtime, choose
from boxwright.errors import Problem, Refused
from boxwright.tailnet import Endpoint, serve_config
from boxwright.templates import render

# The container's own variables are those of cmd/containerboot of Tailscale 1.98. It watches the folder of its
# TS_SERVE_CONFIG, so the folder is mounted, not the file.
COMPOSE, SERVE, KEY = "compose.tailscale.yml", "serve/serve.json", "tailscale-key"


def files(box: Any) -> dict[str, str]:
    """Texts by the path of the file, for what `tailscale_serve` of `box` declares.

    The target `gateway` is the proxy in the container's network, on port `gateway_port` of its loopback. Raises
    Refused (BW151) where nothing is declared.
    """
    settings = box.tailscale
    served: tuple[Endpoint, ...] = settings.endpoints(box) if settings.enabled else ()
    if not served:
        raise Refused(
            Problem(
                code="BW151",
                variable="tailscale_serve",
                host=box.name,
                message="there is nothing to serve beside a proxy: `tailscale_enabled` is false, or `tailscale_serve` "
                "is empty",
                help="set both, for example `tailscale_serve: [{port: 443, target: gateway}]`",
            )
        )
    config = json.dumps(serve_config(served), indent=2) + "\n"
    compose = render(
        "tailscale/compose.yml.j2",
        hostname=settings.hostname or box.name,
        arguments=" ".join(settings.container_arguments),
        serve_folder=str(Path(SERVE).parent),
        serve_file=Path(SERVE).name,
        key=KEY,
    )
    return {COMPOSE: compose, SERVE: config}


def started_by(box: Any, found: Sequence[Runtime]) -> str:
    """In which of a Mac's container runtimes `found` the project can run and by which command; or what is to be done
    before there is one.
    """
    instead = "run the project with an engine of your own"
    chosen = choose(found, box.host.container_socket, instead)
    if isinstance(chosen, Problem):
        return f"{chosen.message}\n{chosen.help}"
    up = f"docker compose --file {COMPOSE} up --detach --wait"
    return (
        f"{box.name} has {chosen}, version {chosen.version}. It sees the home of {chosen.owner}: put the folder there, "
        f"and in it, as {chosen.owner}:\n    DOCKER_HOST={shlex.quote(f'unix://{chosen.socket}')} {up}"
    )
