"""A double of Cloudflare's API (https://developers.cloudflare.com/api/): zones and their DNS records, no more.

It answers the calls that libdns/cloudflare 0.2 makes -- list zones by name, and list, make and delete records -- with
the envelope and the fields of the documentation, and puts the records into a test's name server.
"""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.doubles.dns_server import TXT, DnsServer

BASE = "/client/v4"
ZONE_ID = "023e105f4ecef8ad9ca31a8372d0c353"


class Cloudflare:
    """The API on `address`; as at Cloudflare on port 443, unless the test leads there otherwise."""

    def __init__(self, address: str, certificate: tuple[Path, Path], port: int = 443) -> None:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                double.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
                status, result = double.handle(self.command, self.path, self.headers.get("Authorization", ""), body)
                errors = [] if status == 200 else [{"code": 10000, "message": str(result)}]
                envelope = {"success": status == 200, "errors": errors, "messages": [], "result": result}
                data = json.dumps(envelope).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _answer

            def log_message(self, *arguments: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer((address, port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def begin(self, dns: DnsServer, token: str) -> None:
        """Begin anew: without records, for the zone of `dns`, which whoever has `token` may change."""
        self.dns, self.token = dns, token
        self.records: dict[str, dict[str, Any]] = {}
        # Method, path and the header Authorization of each request.
        self.asked: list[tuple[str, str, str]] = []
        # Names that had a record at some time.
        self.made: list[tuple[str, str]] = []

    def handle(self, method: str, target: str, authorization: str, body: bytes) -> tuple[int, Any]:
        """Status and result of a request."""
        url = urlsplit(target)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        if authorization != f"Bearer {self.token}":
            return 403, "Authentication error"
        records = f"{BASE}/zones/{ZONE_ID}/dns_records"
        if (method, url.path) == ("GET", f"{BASE}/zones"):
            return 200, [{"id": ZONE_ID, "name": self.dns.zone}] if _bare(
                asked.get("name", "")
            ) == self.dns.zone else []
        if (method, url.path) == ("GET", records):
            return 200, [one for one in self.records.values() if self._matches(one, asked)]
        if (method, url.path) == ("POST", records):
            record = json.loads(body)
            record["name"] = self._full(record["name"])
            record["id"] = f"{len(self.made):032x}"
            self.records[record["id"]] = record
            self.made.append((record["type"], record["name"]))
            self._publish()
            return 200, record
        if method == "DELETE" and url.path.startswith(f"{records}/"):
            gone = self.records.pop(url.path.rpartition("/")[2], None)
            self._publish()
            return (200, {"id": gone["id"]}) if gone else (404, "Record does not exist")
        return 400, f"the double does not know {method} {url.path}"

    def _full(self, name: str) -> str:
        # Cloudflare takes a name without its zone for one in the zone, and tells it in full.
        bare = _bare(name)
        return bare if bare == self.dns.zone or bare.endswith(f".{self.dns.zone}") else f"{bare}.{self.dns.zone}"

    def _matches(self, record: dict[str, Any], asked: dict[str, str]) -> bool:
        wanted = {key: asked.get(key) or asked.get(f"{key}.exact") for key in ("type", "name", "content")}
        if wanted["name"]:
            wanted["name"] = self._full(wanted["name"])
        return all(value is None or _bare(value) == _bare(record[key]) for key, value in wanted.items())

    def _publish(self) -> None:
        texts: dict[tuple[str, int], list[str]] = {}
        for record in self.records.values():
            if record["type"] == "TXT":
                texts.setdefault((_bare(record["name"]), TXT), []).append(record["content"].strip('"'))
        for key in [key for key in self.dns.records if key[1] == TXT and key not in texts]:
            del self.dns.records[key]
        self.dns.records.update(texts)

    def __enter__(self) -> Cloudflare:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _bare(text: str) -> str:
    """As Cloudflare compares: names also with the root's dot, texts also without their quotation marks."""
    return text.strip('"').rstrip(".").lower()
