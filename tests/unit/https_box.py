"""A stand-in for the door of a box: HTTPS on loopback with a certificate of its own authority, basic auth on /v1.

It is a double: real TLS and HTTP, no model behind it. Answers follow the OpenAI API as the gateway passes it on.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """Make an authority and a certificate for `names`; returns (root certificate, certificate with its key)."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])

    def build(subject: x509.Name, key: Any, authority: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )

    def general(name: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            return x509.DNSName(name)

    root = build(root_name, keys[0], True).sign(keys[0], hashes.SHA256())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    leaf = (
        build(subject, keys[1], False)
        .add_extension(x509.SubjectAlternativeName([general(name) for name in names]), critical=False)
        .sign(keys[0], hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "root.crt").write_bytes(root.public_bytes(pem))
    private = keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "leaf.pem").write_bytes(leaf.public_bytes(pem) + private)
    return folder / "root.crt", folder / "leaf.pem"


class Door:
    """The running server. `first_piece_read` is waited for before the second piece of a streamed answer is sent."""

    def __init__(self, folder: Path, *names: str, user: str = "someone", password: str = "pass word") -> None:
        self.root, leaf = certificate(folder, *names)
        self.user, self.password = user, password
        self.first_piece_read = threading.Event()
        self.seen: list[dict[str, Any]] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                door.answer(self, None)

            def do_POST(self) -> None:
                door.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf)
        # The handshake belongs to the thread of a request: one silent client must not hold up the others.
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, body: Any) -> None:
        self.seen.append({"path": request.path, "host": request.headers["Host"], "body": body})
        expected = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if request.path.startswith("/v1") and request.headers.get("Authorization") != expected:
            self.send(request, 401, b"no")
        elif request.path == "/v1/models":
            self.send(request, 200, json.dumps({"data": [{"id": "local-llm"}]}).encode())
        elif request.path == "/":
            self.send(request, 200, b"<title>Open WebUI</title>")
        elif body and body.get("stream"):
            request.send_response(200)
            request.send_header("Content-Type", "text/event-stream")
            request.send_header("Connection", "close")
            request.end_headers()
            for number, text in enumerate(("one", "two")):
                if number == 1 and not self.first_piece_read.wait(30):
                    return
                piece = {"choices": [{"delta": {"content": text}}]}
                request.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
                request.wfile.flush()
            request.wfile.write(b"data: [DONE]\n\n")
            request.close_connection = True
        elif body:
            self.send(request, 200, json.dumps({"choices": [{"message": {"content": "hello"}}]}).encode())
        else:
            self.send(request, 404, b"nothing")

    @staticmethod
    def send(request: BaseHTTPRequestHandler, status: int, content: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def settings(name: str, url_name: str, port: int, bind: tuple[str, ...] = ("0.0.0.0",), auth: str = "basic") -> Any:
    """What the client reads of a box's settings."""
    loopback = all(ipaddress.ip_address(address).is_loopback for address in bind)
    return SimpleNamespace(
        name=name,
        gateway=SimpleNamespace(
            url=f"https://{url_name}:{port}/",
            port=port,
            bind=bind,
            public_addresses=() if loopback else bind,
            auth=auth,
            asks_for_password=auth in ("any", "basic"),
            user="someone",
            password=SecretStr("pass word"),
            tls="internal",
        ),
        inference=SimpleNamespace(main=SimpleNamespace(name="local-llm")),
        openwebui=SimpleNamespace(enabled=True, admin_email="admin@box.test"),
    )
