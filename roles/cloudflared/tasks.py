"""Tasks of the cloudflared role."""

from boxwright import systems
from boxwright.artifacts import AptRepository
from boxwright.operations import apt, apt_repositories, cloudflared, files, homebrew, programs, services, users
from boxwright.preflight import Machine, Need
from boxwright.services import Service, http_probe
from boxwright.site_mirror.supply import Supply, Target, packages_of
from boxwright.templates import render
from roles.cloudflared.settings import NOTHING
from roles.registry import Box

# Cloudflare's own, one suite for every release: https://pkg.cloudflare.com/index.html. The key is that of October 2025,
# `CloudFlare Software Packaging 2025 <help@cloudflare.com>`; the one before it was to be retired in April 2026.
REPOSITORY = AptRepository(
    name="cloudflared",
    url="https://pkg.cloudflare.com/cloudflared",
    suite="any",
    key_url="https://pkg.cloudflare.com/cloudflare-main.gpg",
    key_fingerprint="CC94B39C77AE7342A68B89628A682D308D4E5E73",
    licence="Apache-2.0",
)
PACKAGES = ("cloudflared",)
PROGRAM = "/usr/bin/cloudflared"
# On a Mac: Homebrew's formula, what is in it, root's own copy of that, and the account of the service.
FORMULA = "cloudflared"
HOMEBREW = f"/opt/homebrew/opt/{FORMULA}/bin/cloudflared"
MAC_FOLDER = "/opt/boxwright/cloudflared"
MAC_PROGRAM = f"{MAC_FOLDER}/cloudflared"
MAC_ACCOUNT = "_cloudflared"
# A name of its own: a tunnel that somebody has set up by `cloudflared service install` is cloudflared.service, and goes
# on; whoever works on the box through it is not cut off.
NAME = "boxwright-cloudflared"
FOLDER = "/etc/boxwright/cloudflared"
CONFIGURATION = f"{FOLDER}/config.yml"
TOKEN, CREDENTIALS = f"{FOLDER}/token", f"{FOLDER}/credentials.json"
# The gateway's certificate, where that is one of the user's own.
CERTIFICATE = f"{FOLDER}/gateway.pem"

# `ingress validate` ends with 0 for a key that it does not know, and says so (cloudflared 2026.8.2).
VALIDATE = f"""said=$({PROGRAM} tunnel --config {{path}} ingress validate 2>&1) || {{ echo "$said"; exit 1; }}
case $said in *'unused keys'*) echo "$said"; exit 1 ;; esac"""


def need(box: Box) -> Need:
    """The port of its metrics; and whether there is something to take away."""
    settings = box.cloudflared
    ports = {settings.metrics_port: ("cloudflared_metrics_port", ("cloudflared",))} if settings.enabled else {}
    return Need(ports=ports, files=(FOLDER,))


def supply(box: Box, target: Target) -> Supply:
    """Cloudflare's package, where there is a tunnel."""
    if box.system == "darwin" or not box.cloudflared.enabled:
        return Supply()
    return Supply(packages=(packages_of(REPOSITORY, PACKAGES, target),))


def authority(box: Box) -> str:
    """The file on the box by which the gateway's certificate is known; empty where the system's authorities do."""
    if box.gateway.tls == "files":
        return CERTIFICATE
    return box.gateway.own_authority(box)


def program(box: Box) -> str:
    """Path of the program on the box."""
    return MAC_PROGRAM if box.system == "darwin" else PROGRAM


def shown(box: Box, path: str) -> str:
    """Where the service reads the file that is kept at `path`."""
    name = "gateway.pem" if path == authority(box) else path.rpartition("/")[2]
    return f"{systems.credentials_folder(box.system, NAME)}/{name}"


def secrets(box: Box) -> dict[str, str]:
    """What only root and the service may read, by path."""
    settings = box.cloudflared
    found = {TOKEN: settings.token, CREDENTIALS: settings.credentials}
    return {path: secret.get_secret_value().strip() + "\n" for path, secret in found.items() if secret}


def configuration(box: Box) -> str:
    """cloudflared's configuration. It holds no secret."""
    settings = box.cloudflared
    return render(
        "cloudflared/config.yml.j2",
        tunnel=settings.tunnel_id,
        credentials=shown(box, CREDENTIALS),
        authority=shown(box, authority(box)) if authority(box) else "",
        metrics=f"127.0.0.1:{settings.metrics_port}",
        protocol=settings.protocol,
        rules=settings.rules(box),
    )


def service(box: Box) -> Service:
    """The tunnel as a service: on Linux nobody in particular, on a Mac an account of its own, which has nothing of the
    box but what it is shown.
    """
    read = (*secrets(box), *((authority(box),) if authority(box) else ()))
    token = ("--token-file", shown(box, TOKEN)) if TOKEN in secrets(box) else ()
    mac = box.system == "darwin"
    return Service(
        name=NAME,
        description="Cloudflare Tunnel to the gateway",
        command=(program(box), "--config", CONFIGURATION, "--no-autoupdate", "tunnel", "run", *token),
        restart_files=(CONFIGURATION,),
        credentials={shown(box, path).rpartition("/")[2]: path for path in read},
        user=MAC_ACCOUNT if mac else "",
        group=MAC_ACCOUNT if mac else "",
        # It says so when the first connection to Cloudflare stands.
        notify=True,
        probe=http_probe(f"http://127.0.0.1:{box.cloudflared.metrics_port}/ready") if mac else (),
        start_timeout=60,
        # It gives requests that are under way 30 seconds.
        stop_timeout=40,
        wants=("network-online.target",),
        after=("caddy.service", "nginx.service"),
        sandbox_exceptions={
            "IPAddressDeny": (None, "Cloudflare's servers and the box's name servers have any address")
        },
    )


def apply(box: Box, machine: Machine) -> None:
    """All stages, in order; where it is not wanted, the box is no end of a tunnel any more."""
    if not box.cloudflared.enabled:
        if FOLDER in machine.files:
            _absent(box)
        return
    install(box)
    configure(box)
    activate(box)


def install(box: Box) -> None:
    """The program, from its publisher's repository; on a Mac by Homebrew."""
    if box.system == "darwin":
        users.system_user(MAC_ACCOUNT, name="cloudflared: account of the service")
        homebrew.packages((FORMULA,), name="cloudflared: install the program")
        programs.copied(HOMEBREW, MAC_PROGRAM, name="cloudflared: root's copy of the program")
        return
    apt_repositories.repository(REPOSITORY, mirror=box.mirror, name="cloudflared: Cloudflare's package repository")
    apt.packages(PACKAGES, name="cloudflared: install the program")


def configure(box: Box) -> None:
    """Secrets, the rules -- accepted by the program before they replace the old ones -- and the unit."""
    files.directory(name="cloudflared: folder of settings", path="/etc/boxwright")
    files.directory(name="cloudflared: folder of the tunnel", path=FOLDER)
    wanted = secrets(box)
    for path, text in wanted.items():
        files.content(name=f"cloudflared: write {_WORDS[path]}", path=path, text=text, mode="0600", secret=True)
    if box.gateway.tls == "files":
        files.content(
            name="cloudflared: write the gateway's certificate",
            path=CERTIFICATE,
            text=box.gateway.certificate.strip() + "\n",
        )
    others = [path for path in _WORDS if path not in wanted]
    files.files_absent(name="cloudflared: no other secrets", paths=[one for path in others for one in _copies(path)])
    files.content(
        name="cloudflared: write the rules",
        path=CONFIGURATION,
        text=configuration(box),
        validate=VALIDATE.replace(PROGRAM, program(box)),
    )
    services.unit(name="cloudflared: write the unit", service=service(box))


_WORDS = {TOKEN: "the token", CREDENTIALS: "the credentials"}


def _copies(path: str) -> tuple[str, ...]:
    return services.with_copies(path)


def activate(box: Box) -> None:
    """Connected, with rules that lead to the gateway. What does not connect is taken back."""
    settings = box.cloudflared
    services.running(
        name="cloudflared: running",
        service=service(box),
        answers=cloudflared.ready(settings.metrics_port),
        roll_back=(CONFIGURATION, *secrets(box)),
    )
    cloudflared.leads_to(
        settings.metrics_port,
        (*settings.gateway_urls(box), NOTHING),
        elsewhere=settings.token is not None,
        name="cloudflared: the rules lead to the gateway alone",
    )


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; the package and the repository only when boxwright added them."""
    _absent(box)
    if box.system == "darwin":
        users.user_absent(MAC_ACCOUNT, name="cloudflared: remove the account")
        files.absent(name="cloudflared: remove root's copy of the program", path=MAC_FOLDER, recursive=True)
        homebrew.packages_absent((FORMULA,), name="cloudflared: remove the program")
        return
    apt.packages_absent(PACKAGES, purge=purge, name="cloudflared: remove the program")
    apt_repositories.repository_absent(REPOSITORY.name, name="cloudflared: remove Cloudflare's package repository")


def _absent(box: Box) -> None:
    unit = Service(name=NAME, description="Cloudflare Tunnel to the gateway", command=(program(box),))
    services.unit_absent(name="cloudflared: stop and remove the tunnel", service=unit)
    files.absent(name="cloudflared: remove the settings and secrets", path=FOLDER, recursive=True)
