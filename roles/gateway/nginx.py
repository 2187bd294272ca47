"""The gateway as nginx, from the distribution's own package. What both servers share is in common.py.

The package's unit and its settings in /etc/nginx are not used: nginx runs under a unit of ours, in the same sandbox as
every service of the box, with one configuration file. Nothing of it is root.
"""

import re
from collections.abc import Iterable
from typing import Any

from pyinfra import host
from pyinfra.operations import files as pyinfra_files

from boxwright.errors import Problem
from boxwright.facts.files import File
from boxwright.operations import apt, files, folders, services, users
from boxwright.preflight import Machine
from boxwright.services import UNITS, Service, http_probe
from boxwright.templates import render
from roles.gateway import authority
from roles.gateway.common import HIDDEN, Way, answers, errors, shared_values, ways
from roles.gateway.settings import NGINX_AUTHORITY
from roles.registry import Box

# logrotate rotates the access log; openssl, which makes certificates, comes with the host's ca-certificates. `nginx`
# has every module that is used here in all supported releases, and in Debian no other.
PACKAGES = ("logrotate", "nginx")
PROGRAM = "/usr/sbin/nginx"
USER = "nginx"
FOLDER = "/etc/boxwright/nginx"
CONFIGURATION = f"{FOLDER}/nginx.conf"
USERS = f"{FOLDER}/users"
CERTIFICATE, CERTIFICATE_KEY = f"{FOLDER}/certificate.pem", f"{FOLDER}/certificate.key"
# With `gateway_tls: files`, both in one file, so that neither is ever there without the other.
GIVEN = f"{FOLDER}/given.pem"
# nginx's files while it works; its logs; the keys with which the box signs its own certificate.
STATE, LOGS, AUTHORITY = "/var/lib/gateway", "/var/log/gateway", "/var/lib/boxwright/authority"
ROOT_CERTIFICATE = NGINX_AUTHORITY
ROTATION = "/etc/logrotate.d/boxwright-gateway"
UNIT = f"{UNITS}/nginx.service"

# Statuses that nginx itself answers with inside a location and that have no text of their own in common.py.
OTHERS = (400, 403, 405, 408, 500)

# Response headers of the protocol CORS: those of an engine are not handed on.
CORS_HEADERS = (
    "Access-Control-Allow-Origin",
    "Access-Control-Allow-Credentials",
    "Access-Control-Allow-Headers",
    "Access-Control-Allow-Methods",
    "Access-Control-Allow-Private-Network",
    "Access-Control-Expose-Headers",
    "Access-Control-Max-Age",
)

# nginx reads its files again after the signal has been sent, and keeps the old ones when it does not like the new: wait
# until every worker that was there is told to end and another one has taken over. $1 process number of the master.
_RELOAD = """
workers() { cat "/proc/$1/task/$1/children"; }
old=$(workers "$1") && kill -HUP "$1" || exit 1
for turn in $(seq 100); do
    sleep 0.1
    new=
    for pid in $(workers "$1"); do
        case " $old " in *" $pid "*) ;; *) new=yes ;; esac
    done
    [ -n "$new" ] || continue
    waiting=
    for pid in $old; do
        [ ! -e "/proc/$pid" ] || grep -q "shutting down" "/proc/$pid/cmdline" 2>/dev/null || waiting=yes
    done
    [ -n "$waiting" ] || exit 0
done
echo "nginx goes on with its old configuration" >&2
exit 1
"""


def quoted(text: str) -> str:
    """`text` as one word of nginx's configuration. nginx has no way to write a dollar sign where variables count."""
    if any(ord(character) < 32 for character in text):
        raise ValueError("a control character cannot be written into nginx's configuration")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def bearer(token: str) -> str:
    """The source of a map that is `token` in the header Authorization and nothing else.

    nginx compares plain strings without regard to case, so it must be a regular expression; `\\z`, because `$` would
    let a line break follow.
    """
    return quoted(f"~^(?i:bearer) +{re.escape(token)}\\z")


def offered(way: Way) -> tuple[str, ...]:
    """Sources of a map: the paths of `way` that may be called, as clients write them."""
    prefix = re.escape(way.strip)
    return tuple(
        quoted(f"~(?s)^{prefix}{re.escape(path.removesuffix('*'))}{'.*' if path.endswith('*') else ''}\\z")
        for path in way.allow
    )


def listening(box: Box) -> list[str]:
    """The addresses of the door."""
    return [f"{a if a.version == 4 else f'[{a}]'}:{box.gateway.port}" for a in box.gateway.bind]


def configuration(box: Box) -> str:
    """The gateway's configuration. It holds tokens, so only root and nginx may read it."""
    gateway, found, given = box.gateway, ways(box), certificates(box)
    values: dict[str, Any] = {
        **shared_values(box),
        "internal_key": bearer(box.openwebui.engine_key.get_secret_value().strip()) if box.openwebui.enabled else "",
        "listen": listening(box),
        "certificate": given[0],
        "certificate_key": given[-1],
        "users": USERS,
        "tokens": [(bearer(token.get_secret_value()), name) for name, token in sorted(gateway.tokens.items())],
        "cors_origins": [quoted(f"~^{re.escape(origin)}\\z") for origin in gateway.cors_origins],
        "cors_headers": CORS_HEADERS,
        "ways": [
            {
                **vars(way),
                "patterns": offered(way),
                "rewrite": f"(?s)^{way.strip}/?(.*)$ /$1" if way.strip else "(?s)^(.*)$ $1",
            }
            for way in found
        ],
        "errors": [error for error in errors(box) if error.caught != 429],
        "others": OTHERS,
        "access_log": gateway.access_log(box),
        "hidden": HIDDEN,
        "state": STATE,
    }
    return render("gateway/nginx.conf.j2", **values)


def rotation(box: Box) -> str:
    """How logrotate, which Debian runs once a day, rotates the access log."""
    return f"""\
# Written by boxwright: changes made here are overwritten by the next run.
{box.gateway.access_log(box)} {{
    su {USER} {USER}
    size {int(box.gateway.log_size)}
    rotate {box.gateway.log_keep}
    compress
    delaycompress
    missingok
    notifempty
    nocreate
    postrotate
        systemctl kill --signal=USR1 --kill-who=main nginx.service
    endscript
}}
"""


def certificates(box: Box) -> tuple[str, ...]:
    """The files that hold the certificate and its key, in this order."""
    return (GIVEN,) if box.gateway.tls == "files" else (CERTIFICATE, CERTIFICATE_KEY)


def secret_files(box: Box) -> dict[str, str]:
    """What is kept in files of their own, for root and nginx alone, by path."""
    gateway = box.gateway
    found = {USERS: f"{gateway.user}:{gateway.password_hash.get_secret_value()}\n"}
    if gateway.tls == "files" and gateway.certificate_key:
        found[GIVEN] = f"{gateway.certificate.strip()}\n{gateway.certificate_key.get_secret_value().strip()}\n"
    return found


def service(box: Box) -> Service:
    """The gateway as a service. It has the name of the package's own, and so its place: there is one nginx on a box."""
    port = box.gateway.port
    return Service(
        name="nginx",
        description="Gateway: the only door of this box",
        command=(PROGRAM, "-c", CONFIGURATION, "-g", "pid /run/nginx/nginx.pid;"),
        reload_command=("/bin/sh", "-c", _RELOAD, "reload", "$MAINPID"),
        reload_files=(CONFIGURATION, USERS, *certificates(box)),
        user=USER,
        group=USER,
        probe=http_probe(f"http://127.0.0.1:{box.gateway.metrics_port}/metrics"),
        state_directory="gateway",
        runtime_directory="nginx",
        logs_directory="gateway",
        capabilities={"CAP_NET_BIND_SERVICE": f"the door is port {port}"} if port < 1024 else {},
        sandbox_exceptions={
            "IPAddressDeny": (None, "clients come from any address; what may be reached is decided by where it listens")
        },
        # The Compose network's address appears when Docker is up.
        wait_for_address=box.openwebui.box_address(box) if box.openwebui.on_a_network(box) else "",
        start_timeout=90,
        # Two descriptors for each stream.
        settings={"LimitNOFILE": "65536"},
    )


def fits(box: Box, machine: Machine) -> Iterable[Problem]:
    """Refuses to take the place of an nginx that serves something else on the box."""
    others = sorted(port for port, names in machine.listeners.items() if "nginx" in names)
    if others and CONFIGURATION not in machine.files:
        yield Problem(
            code="BW113",
            variable="gateway_server",
            message="an nginx that boxwright did not set up runs on the box, on TCP port "
            + ", ".join(map(str, others)),
            help="stop and remove it, or set `gateway_server: caddy`",
        )


def install(box: Box) -> None:
    """The program and its account. The package would start its own service on port 80 of all addresses."""
    found = host.get_fact(File, path=UNIT)
    if found is not None and found.kind == "absent":
        pyinfra_files.link(name="gateway: keep the package's own service from starting", path=UNIT, target="/dev/null")
    apt.packages(list(PACKAGES), name="gateway: install the program")
    users.system_user(USER, home=STATE, name="gateway: account of the service")


def configure(box: Box) -> None:
    """Certificate, secrets, the configuration -- accepted by nginx before it replaces the old one -- and the unit."""
    files.directory(name="gateway: folder of settings", path="/etc/boxwright")
    files.directory(name="gateway: folder of the gateway", path=FOLDER, group=USER, mode="0750")
    for what, path in (("its own files", STATE), ("the access log", LOGS)):
        folders.belongs_to(name=f"gateway: folder of {what}", path=path, user=USER)
    wanted = secret_files(box)
    files.content(name="gateway: write users", path=USERS, text=wanted[USERS], group=USER, mode="0640", secret=True)
    if GIVEN in wanted:
        files.content(
            name="gateway: write the certificate",
            path=GIVEN,
            text=wanted[GIVEN],
            group=USER,
            mode="0640",
            secret=True,
            # A reload with a certificate that is of another key is one that nginx refuses, a start one that fails.
            validate="key=$(openssl pkey -in {path} -pubout -passin pass:) && "
            '[ "$key" = "$(openssl x509 -in {path} -noout -pubkey)" ]',
        )
    else:
        files.absent(name="gateway: no other certificate", path=GIVEN)
    if box.gateway.tls == "internal":
        files.directory(name="gateway: folder of data", path="/var/lib/boxwright")
        authority.certificate(
            name="gateway: certificate of the box",
            authority=AUTHORITY,
            path=CERTIFICATE,
            key=CERTIFICATE_KEY,
            group=USER,
            names=list(box.gateway.names),
        )
    write_configuration(box)
    files.content(name="gateway: rotate the access log", path=ROTATION, text=rotation(box))
    services.unit(name="gateway: write the unit", service=service(box))


def write_configuration(box: Box) -> None:
    """The configuration, accepted by nginx before it replaces the old one."""
    files.content(
        name="gateway: write the configuration",
        path=CONFIGURATION,
        text=configuration(box),
        group=USER,
        mode="0640",
        secret=True,
        # As the account that will run it: what root tries out, nginx leaves behind as root's.
        validate=f"setpriv --reuid={USER} --regid={USER} --init-groups --inh-caps=+net_bind_service "
        f"--ambient-caps=+net_bind_service {PROGRAM} -t -q -c {{path}} -g 'pid /dev/null;'",
    )


def admit(box: Box) -> None:
    """Tokens as they are declared now, without a restart."""
    write_configuration(box)
    services.reloaded(
        name="gateway: load the configuration", service=service(box), answers=answers(box), roll_back=(CONFIGURATION,)
    )


def activate(box: Box) -> None:
    """Running, with the declared configuration."""
    services.running(name="gateway: running", service=service(box), answers=answers(box), roll_back=(CONFIGURATION,))


def remove(box: Box, purge: bool) -> None:
    """Takes everything back; the access log and the certificate authority only with `purge`."""
    services.unit_absent(name="gateway: stop and remove nginx", service=service(box))
    files.absent(name="gateway: remove the rotation of nginx's log", path=ROTATION)
    files.absent(name="gateway: remove nginx's own files", path=STATE, recursive=True)
    if purge:
        files.absent(name="gateway: remove nginx's access log", path=LOGS, recursive=True)
        files.absent(name="gateway: remove nginx's certificate authority", path=AUTHORITY, recursive=True)
    else:
        folders.belongs_to(name="gateway: keep nginx's access log for root", path=LOGS, user="root", make=False)
    # Purged, since nobody used the package's settings in /etc/nginx. With another server somebody may want these
    # packages on the box.
    unwanted = [name for name in PACKAGES if name not in box.host.packages]
    apt.packages_absent(unwanted, purge=True, name="gateway: remove nginx")
    users.user_absent(USER, name="gateway: remove nginx's account")
    # Last: as long as it is there, `tasks` knows that something is left to remove.
    files.absent(name="gateway: remove nginx's settings", path=FOLDER, recursive=True)
