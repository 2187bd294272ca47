"""A double of Ollama's registry: over HTTPS, the manifests and blobs that `ollama pull` asks for, with one model.

Written after what Ollama 0.24 asks (server/images.go and server/download.go): GET /v2/NAMESPACE/MODEL/manifests/TAG,
HEAD and GET of /v2/NAMESPACE/MODEL/blobs/DIGEST, of which the latter leads elsewhere, where ranges are asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from tests.doubles.authority import Authority

# Where the blobs are: Ollama wants to be led to another host for them. Clients must know that it is the same address.
BLOBS = "blobs.test"


class OllamaRegistry:
    """A registry on `address` that has the GGUF file `model` as library/tiny:135m. Use as a context manager."""

    def __init__(self, folder: Path, address: str, model: Path) -> None:
        self.authority = Authority(folder, "Root of the registry")
        self._refuses = 0
        # What was asked, as "METHOD PATH".
        self.asked: list[str] = []
        self._blobs: dict[str, Path] = {}
        self._configuration = folder / "configuration.json"
        self._configuration.write_text(json.dumps({"model_format": "gguf", "model_family": "llama"}), encoding="utf-8")
        self.offer(model)
        self._server = ThreadingHTTPServer((address, 0), self._handler())
        certificate, key = self.authority.issue("registry", address, BLOBS)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"{address}:{self._server.server_address[1]}"

    def offer(self, model: Path) -> None:
        """From now on the name stands for the GGUF file `model`."""
        layers = [
            {"mediaType": "application/vnd.ollama.image.model", **self._blob(model)},
        ]
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    **self._blob(self._configuration),
                },
                "layers": layers,
            }
        ).encode()

    @contextmanager
    def refusing(self, status: int) -> Iterator[None]:
        """While it lasts, everything that is asked for is answered with `status`."""
        self._refuses = status
        try:
            yield
        finally:
            self._refuses = 0

    @property
    def name(self) -> str:
        """The model's name, with the registry."""
        return f"{self.address}/library/tiny:135m"

    def _blob(self, path: Path) -> dict[str, str | int]:
        with path.open("rb") as handle:
            digest = f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}"
        self._blobs[digest] = path
        return {"digest": digest, "size": path.stat().st_size}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                registry.asked.append(f"{self.command} {self.path}")
                blob = registry._blobs.get(self.path.rpartition("/")[2])
                if registry._refuses:
                    self._send(registry._refuses, json.dumps({"errors": [{"message": "as the test wants"}]}).encode())
                elif self.path == "/v2/library/tiny/manifests/135m":
                    self._send(200, registry._manifest)
                elif self.path.startswith("/v2/library/tiny/blobs/") and blob and self.command == "GET":
                    port = registry.address.rpartition(":")[2]
                    self._send(307, b"", f"https://{BLOBS}:{port}/data/{self.path.rpartition('/')[2]}")
                elif blob:
                    self._file(blob)
                else:
                    self._send(404, json.dumps({"errors": [{"message": "not found"}]}).encode())

            def _file(self, path: Path) -> None:
                data = path.read_bytes()
                if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                    self._send(206, data[int(found[1]) : int(found[2]) + 1])
                else:
                    self._send(200, data)

            def _send(self, status: int, body: bytes, location: str = "") -> None:
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                if status == 401:
                    realm = f"https://{registry.address}/token"
                    self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="tiny",scope="pull"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler

    def __enter__(self) -> OllamaRegistry:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
