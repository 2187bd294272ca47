"""A name server for tests: a few zones, answered over UDP and TCP from a table that a test changes at any time."""

from __future__ import annotations

import ipaddress
import socketserver
import struct
import threading
from types import TracebackType

A, NS, SOA, TXT, AAAA, CAA = 1, 2, 6, 16, 28, 257


def _name(name: str) -> bytes:
    labels = [label.encode() for label in name.rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _text(value: str) -> bytes:
    data = value.encode()
    pieces = [data[start : start + 255] for start in range(0, len(data), 255)] or [b""]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces)


class DnsServer:
    """Names below `zone`, on `address` and a port that the system chooses, or `port`."""

    def __init__(self, address: str, zone: str, port: int = 0) -> None:
        self.address, self.zone = address, zone.rstrip(".").lower()
        # Values by lower-case name and type. A test or a double changes it as it likes.
        self.records: dict[tuple[str, int], list[str]] = {(self.zone, NS): [f"ns.{self.zone}"]}
        self.records[f"ns.{self.zone}", A] = [address]
        self.asked: list[tuple[str, int]] = []
        server = self

        class Udp(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, socket = self.request
                socket.sendto(server.answer(data), self.client_address)

        class Tcp(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                (length,) = struct.unpack("!H", self.rfile.read(2))
                answer = server.answer(self.rfile.read(length))
                self.wfile.write(struct.pack("!H", len(answer)) + answer)

        # One number for both: what is free for the one may be in use for the other.
        for last in (False,) * 20 + (True,):
            self._udp = socketserver.ThreadingUDPServer((address, port), Udp)
            self.port = int(self._udp.server_address[1])
            try:
                self._tcp = socketserver.ThreadingTCPServer((address, self.port), Tcp)
                break
            except OSError:
                self._udp.server_close()
                if port or last:
                    raise

    def __enter__(self) -> DnsServer:
        for server in (self._udp, self._tcp):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self._udp, self._tcp):
            server.shutdown()
            server.server_close()

    def answer(self, query: bytes) -> bytes:
        """The answer to a query of one question (RFC 1035, section 4)."""
        number, flags, *_ = struct.unpack("!HHHHHH", query[:12])
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode().lower())
            at += length + 1
        (kind,) = struct.unpack("!H", query[at + 1 : at + 3])
        question = query[12 : at + 5]
        name = ".".join(labels)
        self.asked.append((name, kind))

        ours = name == self.zone or name.endswith(f".{self.zone}")
        known = {there for there, _ in self.records}
        exists = name == self.zone or any(there == name or there.endswith(f".{name}") for there in known)
        code = 0 if ours and exists else 3 if ours else 5  # no error, no such name, refused
        data = [self._data(kind, value) for value in self.records.get((name, kind), [])] if ours else []
        if name == self.zone and kind == SOA:
            data = [self._soa()]
        records = [b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 1, len(one)) + one for one in data]
        authority = b""
        if ours and not records:
            soa = self._soa()
            authority = _name(self.zone) + struct.pack("!HHIH", SOA, 1, 1, len(soa)) + soa
        head = struct.pack("!HHHHHH", number, 0x8480 | flags & 0x0100 | code, 1, len(records), 1 if authority else 0, 0)
        return head + question + b"".join(records) + authority

    def _soa(self) -> bytes:
        return _name(f"ns.{self.zone}") + _name(f"admin.{self.zone}") + struct.pack("!IIIII", 1, 60, 60, 60, 1)

    def _data(self, kind: int, value: str) -> bytes:
        if kind in (A, AAAA):
            return ipaddress.ip_address(value).packed
        return _text(value) if kind == TXT else _name(value)
