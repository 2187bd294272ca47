"""Tasks of the openwebui role."""

from hashlib import sha256

from boxwright.operations import docker, files
from boxwright.site_mirror.supply import Supply, Target
from boxwright.templates import render
from roles.registry import Box

FOLDER = "/opt/boxwright/openwebui"
COMPOSE = f"{FOLDER}/compose.yml"
ENVIRONMENT = f"{FOLDER}/openwebui.env"
NETWORK = "openwebui"
BRIDGE = "br-openwebui"  # a network interface name has at most 15 characters


def supply(box: Box, target: Target) -> Supply:
    """The image, where it runs."""
    return Supply(images=(box.openwebui.reference,)) if box.openwebui.enabled else Supply()


def environment(box: Box) -> dict[str, str]:
    """Environment of Open WebUI 0.12; the user's own `openwebui_environment` comes last and wins."""
    settings, main = box.openwebui, box.inference.main
    return {
        "WEBUI_URL": box.gateway.url.rstrip("/"),
        # A browser may come by any name of the box; its websocket is refused from elsewhere.
        "CORS_ALLOW_ORIGIN": ";".join(dict.fromkeys((*box.gateway.origins, *box.cloudflared.origins(box)))),
        "WEBUI_SECRET_KEY": settings.secret_key.get_secret_value(),
        "WEBUI_SESSION_COOKIE_SECURE": "true",
        "WEBUI_AUTH_COOKIE_SECURE": "true",
        # The gateway alone may say for whom it asks.
        "FORWARDED_ALLOW_IPS": settings.box_address,
        # What the environment says holds, whatever was changed in the page since the first start.
        "ENABLE_PERSISTENT_CONFIG": "false",
        "WEBUI_ADMIN_EMAIL": settings.admin_email,
        "WEBUI_ADMIN_NAME": settings.admin_name,
        "WEBUI_ADMIN_PASSWORD": settings.admin_password.get_secret_value(),
        "ENABLE_SIGNUP": "false",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_OPENAI_API": "true",
        "OPENAI_API_BASE_URL": f"http://{settings.box_address}:{box.gateway.internal_port}/v1",
        "OPENAI_API_KEY": settings.engine_key.get_secret_value(),
        "DEFAULT_MODELS": box.engine(box.inference.engine).listed(main.name) if main else "",
        # Nothing is reported to, or fetched from, anybody.
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_VERSION_UPDATE_CHECK": "false",
        "ANONYMIZED_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
        **settings.environment,
    }


def apply(box: Box) -> None:
    """All stages, in order."""
    if not box.openwebui.enabled:
        return
    install(box)
    configure(box)
    activate(box)


def install(box: Box) -> None:
    """The image."""
    docker.image(
        name=f"openwebui: pull {box.openwebui.reference}", reference=box.openwebui.reference, mirror=box.mirror
    )


def configure(box: Box) -> None:
    """The network and the Compose project; the secrets stand in a file that only root reads."""
    docker.network(
        name="openwebui: network", network=NETWORK, subnet=str(box.openwebui.subnet), bridge=BRIDGE, internal=True
    )
    files.directory(name="openwebui: folder", path=FOLDER)
    variables = render("openwebui/environment.j2", environment=environment(box))
    files.content(name="openwebui: write the environment", path=ENVIRONMENT, text=variables, mode="0600", secret=True)
    compose = render(
        "openwebui/compose.yml.j2",
        image=box.openwebui.reference,
        address=box.openwebui.container_address,
        network=NETWORK,
        environment_file=ENVIRONMENT,
        environment_digest=sha256(variables.encode()).hexdigest(),
    )
    files.content(name="openwebui: write the Compose file", path=COMPOSE, text=compose, mode="0600")


def activate(box: Box) -> None:
    """Running and healthy."""
    docker.compose_project(name="openwebui: running", project="openwebui", directory=FOLDER)


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; accounts and chats, which are in the volume, only with `purge`."""
    docker.compose_absent(name="openwebui: remove the containers", project="openwebui", volumes=purge)
    docker.network_absent(name="openwebui: remove the network", network=NETWORK)
    docker.image_absent(name="openwebui: remove the image", reference=box.openwebui.reference)
    files.absent(name="openwebui: remove the project", path=FOLDER, recursive=True)
