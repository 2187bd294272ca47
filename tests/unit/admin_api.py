"""A double of the service's admin API, as `boxwright key` meets it: an HTTP server on loopback that keeps to
the contract.

`faults` has what it does wrong on demand, by method and the end of the path: a status with a body, or a function that
does something to the connection.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

SECRET = "the-administrator-secret-0123456789"
Fault = tuple[int, Any] | Callable[["Handler"], None]


class AdminApi:
    """The double. `port` is where it listens; `seen` is every request: method, path, query, body, actor."""

    def __init__(self) -> None:
        self.keys: dict[str, dict[str, Any]] = {}
        # Texts by collection and name.
        self.documents: dict[str, dict[str, str]] = {}
        self.usage: list[dict[str, Any]] = []
        self.audit: list[dict[str, Any]] = []
        self.seen: list[dict[str, Any]] = []
        self.connections: set[Any] = set()
        self.shown_to_others: list[str] = []
        self.faults: dict[tuple[str, str], Fault] = {}
        self.made = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.double = self  # type: ignore[attr-defined]
        self.port: int = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def put(self, id: str, owner: str, **more: Any) -> dict[str, Any]:
        self.keys[id] = {
            "id": id,
            "owner": owner,
            "created_at": "2026-11-01T08:00:00Z",
            "expires_at": None,
            "revoked_at": None,
            "old_until": None,
            "models": None,
            "collections": [],
            "limits": {},
            **more,
        }
        return self.keys[id]

    def secret(self, id: str) -> str:
        self.made += 1
        return f"bw_{id}_{self.made:043d}"

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if path == "/admin/keys" and method == "GET":
            return 200, list(reversed(self.keys.values()))
        if path == "/admin/keys" and method == "POST":
            id = f"New{len(self.keys):05d}"
            return 201, {**self.put(id, **body), "key": self.secret(id)}
        if path == "/admin/usage" and method == "GET":
            return 200, [row for row in self.usage if query.get("key_id") in (None, row["key_id"])]
        if path == "/admin/audit" and method == "GET":
            return 200, self.audit[: int(query["limit"])]
        if path.startswith("/admin/collections"):
            return self.of_documents(method, [unquote(part) for part in path.split("/")[3:]], body)
        match = re.fullmatch(r"/admin/keys/(\w+)(/rotate|/revoke)?", path)
        if not match or (key := self.keys.get(match[1])) is None:
            return 404, error("key_not_found", "There is no such key.")
        if match[2] == "/rotate" and method == "POST":
            key["old_until"] = (datetime.now(UTC) + timedelta(seconds=body["overlap_seconds"])).isoformat()
            return 200, {**key, "key": self.secret(key["id"])}
        if match[2] == "/revoke" and method == "POST":
            key["revoked_at"] = "2026-11-30T12:00:00Z"
            return 200, key
        if match[2] is None and method == "PATCH":
            limits = {**key["limits"], **body.get("limits", {})}
            key.update(body, limits=limits)
            return 200, key
        return (200, key) if match[2] is None and method == "GET" else (405, error("method", "Not that."))

    def of_documents(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        def stored(name: str, text: str) -> dict[str, Any]:
            return {
                "name": name,
                "passages": 1,
                "characters": len(text),
                "added_at": "2026-11-30T12:00:00Z",
                "model": "embed",
            }

        if not parts:
            found = self.documents.items()
            return 200, [{"name": name, "documents": len(texts), "passages": len(texts)} for name, texts in found]
        collection, *rest = parts
        if method == "PUT":
            self.documents.setdefault(collection, {})[rest[1]] = body
            return 200, {**stored(rest[1], body), "tokens": len(body)}
        if collection not in self.documents:
            return 404, error("collection_not_found", f"There is no collection {collection}.")
        if method == "GET":
            return 200, [stored(name, text) for name, text in self.documents[collection].items()]
        if not rest:
            del self.documents[collection]
            return 200, {"name": collection}
        if self.documents[collection].pop(rest[1], None) is None:
            return 404, error("document_not_found", f"There is no document {rest[1]!r} in {collection}.")
        return 200, {"name": rest[1]}


def error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        double: AdminApi = self.server.double  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        text = self.headers.get_content_type() == "text/plain" and self.command == "PUT"
        body = sent.decode() if text else json.loads(sent) if length else None
        query = dict(parse_qsl(url.query))
        double.connections.add(self.connection)
        double.seen.append(
            {
                "method": self.command,
                "path": url.path,
                "query": query,
                "body": body,
                "actor": self.headers.get("X-Boxwright-Actor"),
                "host": self.headers.get("Host"),
            }
        )
        double.shown_to_others += shown(SECRET)
        fault = next(
            (
                found
                for (method, end), found in double.faults.items()
                if self.command == method and url.path.endswith(end)
            ),
            None,
        )
        if callable(fault):
            fault(self)
            return
        if fault:
            status, answer = fault
        elif self.headers.get("Authorization") != f"Bearer {SECRET}":
            status, answer = 401, error("invalid_admin_secret", "Wrong.")
        else:
            status, answer = double.answer(self.command, url.path, query, body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any

    def log_message(self, *_: Any) -> None:
        pass


def shown(secret: str) -> list[str]:
    """Programs that have the secret in their arguments or in their environment, where others of this user see it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                if secret.encode() in (process / name).read_bytes():
                    found.append(f"{process.name}: {name}")
            except OSError:  # gone meanwhile, or of another user
                pass
    return found
