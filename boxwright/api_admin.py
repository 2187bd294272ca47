"""The admin API of the service on a box (services/api), asked over SSH.

The connection is ssh's own standard input and output (ssh(1), -W): no port is opened on this machine, where a program
of another user could wait for the administrator's secret. The secret is in a header of the request and nowhere else.
"""

from __future__ import annotations

import difflib
import getpass
import http.client
import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from boxwright import openssh
from boxwright.connection import Connection, from_variables
from boxwright.errors import BoxwrightError, Failed, Problem, Refused
from boxwright.inventory import InventoryHost, located
from boxwright.key_text import clean

if TYPE_CHECKING:
    from subprocess import Popen

# Of silence: ssh's own time to connect, the login, and a sum over many rows.
TIMEOUT = 90.0
# The same where a model reads a book.
LONG = 3600.0
_LARGEST = 64 * 1024**2


class _Line(http.client.HTTPConnection):
    """HTTP to a port of the box's loopback; a closed connection is opened again the same way by the next request."""

    def __init__(self, way: Connection, port: int) -> None:
        super().__init__("127.0.0.1", port, timeout=TIMEOUT)
        self._way = way
        self._ssh: Popen[bytes] | None = None
        # A file and not a pipe, which a talkative ssh could fill until it waits for a reader.
        self._said: IO[bytes] | None = None

    def connect(self) -> None:
        if self._way.kind == "local":
            super().connect()
            return
        self._end()
        ours, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
        with theirs:
            self._ssh = subprocess.Popen(
                # Whatever the user's own configuration says: below INFO ssh does not tell why the box refused.
                openssh.command(self._way, "-o", "LogLevel=INFO", "-W", f"127.0.0.1:{self.port}"),
                env=openssh.environment(self._way),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._said,
                start_new_session=True,  # no terminal: ssh must not open /dev/tty
            )
        ours.settimeout(self.timeout)
        self.sock = ours

    def patience(self, seconds: float) -> None:
        """Wait so long for an answer from now on."""
        self.timeout = seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)

    def end(self) -> None:
        """Close the connection for good. Not `close`, which http.client calls before one could ask why it broke."""
        self.close()
        self._end()

    def ended(self) -> tuple[int | None, str]:
        """How ssh ended, None when it runs or there is none, and what it said."""
        if self._ssh is None or self._said is None:
            return None, ""
        try:
            self._ssh.wait(timeout=2)  # it has closed the connection, and is about to say why
        except subprocess.TimeoutExpired:
            return None, ""
        self._said.seek(0)
        return self._ssh.returncode, self._said.read().decode(errors="replace").strip()

    def _end(self) -> None:
        if self._ssh is not None:
            self._ssh.terminate()
            self._ssh.wait()
            self._ssh = None
        if self._said is not None:
            self._said.close()
            self._said = None


class AdminApi:
    """The admin API of one host's service. Use as a context manager. Methods raise BoxwrightError.

    `development` is the second instance; `look` the command that tells whether something was done. Raises Refused when
    the settings have no such service.
    """

    def __init__(self, host: InventoryHost, *, development: bool = False, look: str = "boxwright key list") -> None:
        box: Any = host.box  # the roles are not known to this package
        api = box.api
        self.host, self.development, self._look_for = host, development, look
        # Whether it was asked for something whose answer has not come.
        self.pending = False
        if not api.enabled:
            raise self._refused(
                "BW042", f"{host.name} has no API service", "api_enabled", "api_enabled: true, and `boxwright apply`"
            )
        if development and not api.development:
            raise self._refused(
                "BW042",
                f"the API service of {host.name} has no development instance",
                "api_development",
                "api_development: true, and `boxwright apply`; or leave --development out",
            )
        self.port: int = api.development_port if development else api.port
        secret = api.development_admin_secret if development else api.admin_secret
        # As the role writes it to the box; bytes, since http.client would refuse what is not Latin-1.
        self._bearer: bytes = f"Bearer {secret.get_secret_value().strip()}".encode()
        self._line = _Line(from_variables(host.name, host.variables), self.port)

    def __enter__(self) -> AdminApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.end()

    # What it can do

    def all(self) -> list[dict[str, Any]]:
        """All keys, as the service has them: never the secret."""
        return self._rows("GET", "/admin/keys")

    def key(self, id: str) -> dict[str, Any]:
        """The key `id`. Raises Refused (BW172) when there is none, with what was perhaps meant."""
        known = self.all()
        for key in known:
            if key["id"] == id:
                return key
        of_owner = [key["id"] for key in known if key["owner"] == id]
        if of_owner:
            help = f"{clean(id)} is an owner: {_listed(of_owner)}"
        elif near := difflib.get_close_matches(id, [key["id"] for key in known], n=1, cutoff=0.5):
            help = f"did you mean `{near[0]}`?"
        else:
            help = f"it has: {_listed([key['id'] for key in known])}" if known else "boxwright key add OWNER"
        raise self._refused("BW172", f"the API service of {self.host.name} has no key `{clean(id)}`", None, help)

    def add(self, owner: str, more: Mapping[str, Any]) -> dict[str, Any]:
        """Make a key; the answer's `key` is the secret, which the service does not know any more."""
        return self._one("POST", "/admin/keys", {"owner": owner, **more})

    def change(self, id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change `owner`, `expires_at`, `models`, `collections` or `limits` of a key."""
        return self._one("PATCH", f"/admin/keys/{quote(id)}", changes)

    def rotate(self, id: str, overlap: float) -> dict[str, Any]:
        """Give a key another secret (`key` of the answer); the old one is accepted `overlap` seconds longer."""
        return self._one("POST", f"/admin/keys/{quote(id)}/rotate", {"overlap_seconds": int(overlap)})

    def revoke(self, id: str) -> dict[str, Any]:
        """Refuse a key from now on."""
        return self._one("POST", f"/admin/keys/{quote(id)}/revoke", {})

    def usage(self, **query: str) -> list[dict[str, Any]]:
        """Sums by span, key and model: `since`, `until`, `span` and `key_id`."""
        return self._rows("GET", f"/admin/usage?{urlencode(query)}")

    def audit(self, **query: str) -> list[dict[str, Any]]:
        """The newest entries of the audit log first: `limit` and `before`."""
        return self._rows("GET", f"/admin/audit?{urlencode(query)}")

    def collections(self) -> list[dict[str, Any]]:
        """All collections of documents, with counts."""
        return self._rows("GET", "/admin/collections")

    def documents(self, collection: str) -> list[dict[str, Any]]:
        """The documents of a collection."""
        return self._rows("GET", f"{_collection(collection)}/documents")

    def put_document(self, collection: str, name: str, text: bytes) -> dict[str, Any]:
        """Add a document, or replace it."""
        return self._one("PUT", f"{_collection(collection)}/documents/{quote(name, safe='')}", text, "name")

    def remove_document(self, collection: str, name: str) -> None:
        """Take a document away."""
        self._one("DELETE", f"{_collection(collection)}/documents/{quote(name, safe='')}", None, "name")

    def remove_collection(self, collection: str) -> None:
        """Take a collection away, with its documents."""
        self._one("DELETE", _collection(collection), None, "name")

    # How it is asked

    def _rows(self, method: str, path: str) -> list[dict[str, Any]]:
        found = self._ask(method, path)
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise self._strange(f"no list for {method} {path}")
        return found

    def _one(
        self, method: str, path: str, body: Mapping[str, Any] | bytes | None, member: str = "id"
    ) -> dict[str, Any]:
        found = self._ask(method, path, body)
        if not isinstance(found, dict) or member not in found:
            raise self._strange(f"no {member} for {method} {path}")
        return found

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | bytes | None = None) -> Any:
        headers: dict[str, str | bytes] = {
            "Authorization": self._bearer,
            "X-Boxwright-Actor": actor(),
        }
        if isinstance(body, bytes):
            headers["Content-Type"] = "text/plain; charset=utf-8"
            self._line.patience(LONG)
        elif body is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(body).encode()
        self.pending = method != "GET"
        try:
            self._line.request(method, path, body, headers)
            answer = self._line.getresponse()
            text = answer.read(_LARGEST)
        except (OSError, http.client.HTTPException) as error:
            raise self._no_answer(error) from error
        self.pending = False
        try:
            found = json.loads(text)
        except ValueError:
            raise self._strange(f"status {answer.status} and no JSON for {method} {path}") from None
        if answer.status >= 400:
            raise self._said_no(answer.status, found, method, path)
        return found

    # What went wrong

    def _no_answer(self, error: Exception) -> BoxwrightError:
        """There was no answer, or no whole one."""
        name, place = self.host.name, f"127.0.0.1:{self.port}"
        code, text = self._line.ended()
        said = next(reversed(text.splitlines()), "").strip()
        if "administratively prohibited" in text:
            return self._refused(
                "BW170",
                f"the SSH server of {name} forwards no connection to {place}",
                None,
                "allow it for this account: AllowTcpForwarding local (sshd_config(5))",
            )
        if "open failed" in text or isinstance(error, ConnectionRefusedError):
            return self._refused("BW170", f"no API service answers on {name} at {place}", None, self._look())
        if self.pending:
            return Failed(
                Problem(
                    code="BW205",
                    message=f"the API service of {name} gave no answer ({said or _named(error)}); "
                    "whether it did what it was asked for is not known",
                    host=name,
                    help=self._look_for,
                )
            )
        if code == 255:  # ssh(1): an error of ssh itself
            return Failed(Problem(code="BW104", message=f"no SSH connection to {name}: {said}", host=name))
        return self._refused(
            "BW170", f"the API service of {name} at {place} gave no answer: {said or _named(error)}", None, self._look()
        )

    def _said_no(self, status: int, found: Any, method: str, path: str) -> BoxwrightError:
        """The service's own error, as people need it."""
        told = found.get("error") if isinstance(found, dict) else None
        told = told if isinstance(told, dict) else {}
        code, message = told.get("code"), clean(str(told.get("message")))
        name = self.host.name
        if status == 401:
            variable = "api_development_admin_secret" if self.development else "api_admin_secret"
            return self._refused(
                "BW171",
                f"the API service of {name} does not accept the administrator's secret of this machine",
                variable,
                f"boxwright apply --limit {name}    (it was not applied since the secret changed)",
            )
        if status == 503:
            return self._refused(
                "BW174",
                f"the API service of {name} cannot do it now: {message} ({code})",
                None,
                f"`boxwright verify --limit {name}` says whether its database runs; then do it again",
            )
        if code is None or status >= 500:
            return self._strange(f"status {status} for {method} {path}" + (f": {message} ({code})" if code else ""))
        return self._refused("BW173", f"the API service of {name} refused it: {message} ({code})", None, None)

    def _strange(self, what: str) -> BoxwrightError:
        return Failed(
            Problem(
                code="BW205",
                message=f"what answers on {self.host.name} at 127.0.0.1:{self.port} gave {what}",
                host=self.host.name,
                help=self._look(),
            )
        )

    def _look(self) -> str:
        name = f"boxwright-api-{'development' if self.development else 'production'}"
        log = f"in /var/log/boxwright/{name}/" if self.host.box.system == "darwin" else f"journalctl -u {name}"
        return f"boxwright apply --limit {self.host.name}    (starts it; its log on the box: {log})"

    def _refused(self, code: str, message: str, variable: str | None, help: str | None) -> Refused:
        problem = Problem(code=code, message=message, variable=variable, help=help)
        return Refused(located(problem, self.host.name, self.host.locate))


def _collection(name: str) -> str:
    return f"/admin/collections/{quote(name, safe='')}"


def actor() -> str:
    """Who acts, for the audit log: the user of this machine and its name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name
        user = "unknown"
    # What the service takes for a name: it begins with a letter or digit.
    return re.sub(r"[^A-Za-z0-9._@-]", "_", f"{user}@{socket.gethostname()}").lstrip("._@-")[:64] or "unknown"


def _named(error: Exception) -> str:
    return str(error) or type(error).__name__


def _listed(ids: Sequence[str], most: int = 12) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")
