"""What a person wants to know when a box is up: where it answers, as whom, and the next three commands.

Made only after the box answered a request from outside. No secret is in it: the commands read them from files (0600).
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from boxwright.connection import TUNNEL_PORT, Connection, config_path
from boxwright.outside import ca_file, route
from boxwright.paths import state_dir


def write_netrc(box: Any) -> Path:
    """Write <state>/netrc/HOST with the credentials for `/v1`, mode 0600, for `curl --netrc-file`; returns its path."""
    path = state_dir() / "netrc" / quote(box.name, safe="")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # curl reads quoted words with backslash escapes since 7.84 (curl(1), --netrc-file).
    password = box.gateway.password.get_secret_value()
    if not password.replace("-", "").replace("_", "").isalnum():
        password = '"' + password.replace("\\", "\\\\").replace('"', '\\"') + '"'
    name = urlsplit(box.gateway.url).hostname
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(f"machine {name} login {box.gateway.user} password {password}\n")
    temporary.replace(path)
    return path


def curl(box: Any, connection: Connection, netrc: Path | None) -> list[str]:
    """A chat completion as a curl command. Where the box's name is not known here, it says where to connect."""
    command = ["curl", "--silent", "--show-error", "--fail-with-body"]
    if (certificate := ca_file(box)) is not None:
        command += ["--cacert", str(certificate)]
    if netrc is not None:
        command += ["--netrc-file", str(netrc)]
    way = route(box, connection)
    if way.address:
        place = f"127.0.0.1:{TUNNEL_PORT}" if way.tunnel else f"{_bracketed(way.address)}:{way.port}"
        command += ["--connect-to", f"::{place}"]
    body = {"model": box.inference.main.name, "messages": [{"role": "user", "content": "Say hello."}]}
    return [
        *command,
        "--header",
        "Content-Type: application/json",
        "--data",
        json.dumps(body),
        f"{box.gateway.url}v1/chat/completions",
    ]


def tunnel_command(box: Any, connection: Connection) -> list[str] | None:
    """The ssh command that opens the door of a box that is open to itself alone; None where none is needed."""
    way = route(box, connection)
    if not way.tunnel:
        return None
    forward = f"{TUNNEL_PORT}:{_bracketed(way.address or '')}:{way.port}"
    return ["ssh", "-F", str(config_path(connection.name)), "-f", "-N", "-L", forward, connection.target]


def summary(box: Any, connection: Connection, test_command: str) -> Iterable[str]:
    """Lines for the person. Writes the netrc file that the curl command names."""
    netrc = write_netrc(box) if box.gateway.asks_for_password and box.inference.main else None
    show = "boxwright secret show"
    yield f"{box.name} answers on {box.gateway.url}"
    if netrc:
        yield f"  API user       {box.gateway.user}"
        yield f"  API password   kept on this machine; shown by: {show} gateway_password --limit {box.name}"
    elif box.gateway.auth == "bearer" and box.inference.main:
        names = ", ".join(sorted(box.gateway.tokens))
        made = f"boxwright token add NAME --limit {box.name}"
        yield f"  API tokens     of {names}" if names else f"  API tokens     none yet; {made} makes one"
    elif box.gateway.auth == "keys":
        yield f"  API keys       boxwright key add OWNER --limit {box.name} makes one"
    if box.openwebui.enabled:
        yield f"  web login      {box.openwebui.admin_email}"
        yield (f"  web password   kept on this machine; shown by: {show} openwebui_admin_password --limit {box.name}")
    if (certificate := ca_file(box)) is not None:
        yield f"  certificate    signed by the box's own authority; browsers trust it after importing {certificate}"
    yield ""
    yield "Next:"
    address = box.gateway.url
    if (tunnel := tunnel_command(box, connection)) is not None:
        yield "  the door is open to the box alone (`gateway_bind`); this opens it to you:"
        yield f"    {shlex.join(tunnel)}"
        name = _bracketed(urlsplit(box.gateway.url).hostname or "")
        address = f"https://{name}:{TUNNEL_PORT}/ (that name must lead to 127.0.0.1 here)"
    elif (way := route(box, connection)).address:
        address = f"{box.gateway.url} (that name must lead to {way.address} here: DNS, or /etc/hosts)"
    if box.inference.main and (netrc or box.gateway.auth == "none"):
        yield "  ask the model:"
        yield f"    {shlex.join(curl(box, connection, netrc))}"
    if box.openwebui.enabled:
        yield f"  in a browser:  {address}"
    yield f"  test it:       {test_command}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
