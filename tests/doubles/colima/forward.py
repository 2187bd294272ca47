"""Hands on connections: `forward.py LISTENS LEADS`, each `unix:PATH` or `tcp:ADDRESS:PORT`."""

import contextlib
import socket
import sys
import threading
from pathlib import Path


def end(text):
    """Family and address of a socket."""
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return socket.AF_UNIX, rest
    address, _, port = rest.rpartition(":")
    return socket.AF_INET, (address, int(port))


def copy(source, target):
    """All that comes, and then its end."""
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def serve(client, leads):
    """One connection."""
    family, address = end(leads)
    with client, socket.socket(family) as server:
        try:
            server.connect(address)
        except OSError:
            return
        back = threading.Thread(target=copy, args=(server, client))
        back.start()
        copy(client, server)
        back.join()


family, address = end(sys.argv[1])
if family == socket.AF_UNIX:
    Path(address).unlink(missing_ok=True)
with socket.socket(family) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(64)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0], sys.argv[2]), daemon=True).start()
