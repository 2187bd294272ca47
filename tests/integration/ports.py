"""Which TCP ports of a box another machine can reach."""

from __future__ import annotations

import errno
import ipaddress
import select
import socket

AT_ONCE = 200
PATIENCE = 5


def open_ports(address: str) -> set[int]:
    """TCP ports of `address` that accept a connection from here, of all 65,535. Only addresses of the lab are asked.

    Fails the test where a port says nothing at all: it is not known to be closed.
    """
    assert ipaddress.ip_address(address).is_private
    found: set[int] = set()
    ports = iter(range(1, 65536))
    waiting: dict[int, tuple[socket.socket, int]] = {}
    poll = select.epoll()

    def answered(port: int, code: int) -> None:
        if code == 0:
            found.add(port)
        else:
            assert code == errno.ECONNREFUSED, f"port {port} of {address}: {errno.errorcode[code]}"

    def ask(port: int) -> None:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        code = connection.connect_ex((address, port))
        if code == errno.EINPROGRESS:
            waiting[connection.fileno()] = (connection, port)
            poll.register(connection, select.EPOLLOUT)
        else:
            connection.close()
            answered(port, code)

    try:
        while True:
            while len(waiting) < AT_ONCE and (port := next(ports, None)):
                ask(port)
            if not waiting:
                return found
            events = poll.poll(PATIENCE)
            assert events, f"ports of {address} say nothing: {sorted(port for _, port in waiting.values())}"
            for number, _ in events:
                connection, port = waiting.pop(number)
                poll.unregister(number)
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                connection.close()
                answered(port, code)
    finally:
        for connection, _ in waiting.values():
            connection.close()
        poll.close()
