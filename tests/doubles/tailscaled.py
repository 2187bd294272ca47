"""A double of tailscaled: the part of its LocalAPI that programs on its machine ask for certificates, no more.

It answers as ipn/localapi of tailscale 1.x does: `/localapi/v0/status` to everybody, `/localapi/v0/cert/NAME` to root
and to the account in TS_PERMIT_CERT_UID, and nobody who does not write the one name of its host. What a certificate
authority and Tailscale's servers do behind it, a test does: it puts certificates where the double finds them.

This file is both sides. On the box it is a program with the standard library alone, a service like the real one: with
the real socket and the real file of environment variables.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import socketserver
import struct
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.doubles.authority import Authority

SOCKET = "/run/tailscale/tailscaled.sock"
SETTINGS = "/etc/default/tailscaled"
HOST = "local-tailscaled.sock"
STATUS, CERTIFICATE = "/localapi/v0/status", "/localapi/v0/cert/"
# On the box: this program, the names for which there are certificates, the certificates, and what was asked.
FOLDER = "/var/lib/tailscaled-double"
UNIT = "tailscaled"


class Tailscaled:
    """The double on `box`, a lab box; it is in a tailnet where the box is called `name`."""

    def __init__(self, box: Any, authority: Authority, name: str) -> None:
        self.box, self.authority, self.name = box, authority, name

    def start(self, *, permitted: str = "", domains: list[str] | None = None) -> None:
        """Run it anew, with a file of settings in which `permitted` may ask for certificates; `domains` are the names
        for which the tailnet has some, the box's own unless told otherwise."""
        self.stop()
        self.box.put(f"{FOLDER}/tailscaled.py", Path(__file__).read_text(encoding="utf-8"))
        self.box.put(f"{FOLDER}/domains.json", json.dumps([self.name] if domains is None else domains))
        self.box.put(SETTINGS, f'PORT="41641"\nFLAGS=""\n{f"TS_PERMIT_CERT_UID={permitted}" if permitted else ""}\n')
        properties = ("RuntimeDirectory=tailscale", "RuntimeDirectoryMode=0755", f"EnvironmentFile={SETTINGS}")
        options = " ".join(f"--property={one}" for one in (*properties, "Type=notify", "NotifyAccess=all"))
        self.box.sh(f"systemd-run --quiet --collect --unit={UNIT} {options} /usr/bin/python3 {FOLDER}/tailscaled.py")

    def stop(self) -> None:
        """End it, as `systemctl stop tailscaled` does."""
        self.box.sh(f"systemctl stop {UNIT} 2>/dev/null; systemctl reset-failed {UNIT} 2>/dev/null; true")

    def renew(self, label: str) -> None:
        """From now on the certificate is another one, in which `label` is the subject."""
        certificate, key = self.authority.issue(label, self.name)
        for path, kind in ((certificate, "crt"), (key, "key")):
            self.box.put(f"{FOLDER}/{self.name}.{kind}", path.read_text(encoding="utf-8"), 0o600)

    def asked(self) -> list[tuple[str, str, int]]:
        """Account, target and status of each request, in their order."""
        lines = self.box.sh(f"cat {FOLDER}/asked 2>/dev/null", check=False).splitlines()
        return [(str(account), str(target), int(status)) for account, target, status in map(json.loads, lines)]

    def close(self) -> None:
        """End it and take away all of it."""
        self.stop()
        self.box.sh(f"rm -rf {FOLDER} {SETTINGS}")


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        number = struct.unpack("3i", credentials)[1]
        status, kind, body = self._answer(number)
        with Path(FOLDER, "asked").open("a") as file:
            file.write(json.dumps([pwd.getpwuid(number).pw_name, self.path, status]) + "\n")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, number: int) -> tuple[int, str, bytes]:
        """Status, type and body of the answer to the account `number`."""
        target = urlsplit(self.path)
        text = "text/plain; charset=utf-8"
        domains = json.loads(Path(FOLDER, "domains.json").read_text(encoding="utf-8"))
        if self.headers.get("Host") != HOST:
            return 403, text, b"invalid localapi request\n"
        if target.path == STATUS:
            state = {"Version": "1.0.0-double", "BackendState": "Running", "CertDomains": domains}
            return 200, "application/json", json.dumps(state).encode()
        if not target.path.startswith(CERTIFICATE):
            return 404, text, b"404 not found\n"
        if number not in (0, _permitted()):
            return 403, text, b"cert access denied\n"
        name = target.path.removeprefix(CERTIFICATE)
        if name not in domains:
            return 500, text, f"invalid domain {json.dumps(name)}\n".encode()
        key, certificate = (Path(FOLDER, f"{name}.{kind}").read_bytes() for kind in ("key", "crt"))
        wanted = parse_qs(target.query).get("type", ["cert"])[0]
        return 200, "text/plain", {"pair": key + certificate, "key": key, "cert": certificate}[wanted]

    def address_string(self) -> str:
        return "somebody on this machine"


def _permitted() -> int | None:
    """The number of the account in TS_PERMIT_CERT_UID, which is a number or a name."""
    account = os.environ.get("TS_PERMIT_CERT_UID", "")
    if account.isdecimal():
        return int(account)
    return pwd.getpwnam(account).pw_uid if account else None


def _ready() -> None:
    """Tell systemd, as the real one does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
        notify.send(b"READY=1")


if __name__ == "__main__":
    with _Server(SOCKET, _Handler) as server:
        # Everybody may ask; who it is decides what is answered.
        Path(SOCKET).chmod(0o666)
        _ready()
        sys.exit(server.serve_forever())
