"""Imports ansible-core where gevent has replaced the sockets, without the traceback that this prints otherwise.

ansible-core 2.19 calls `socket.getaddrinfo` with an odd number on import, to see whether it must patch it
(ansible/module_utils/_internal/_patches/_socket_patch.py). gevent's replacement prints the expected error in full.
"""

from __future__ import annotations

import socket
import sys


def prepare() -> None:
    """Import the part of ansible-core that does so, while the standard library's own function is in place.

    Does nothing where gevent has replaced nothing.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("socket") or "ansible.module_utils._internal" in sys.modules:
        return
    replaced = socket.getaddrinfo
    socket.getaddrinfo = monkey.get_original("socket", "getaddrinfo")
    try:
        import ansible.module_utils._internal._datatag  # noqa: F401
    finally:
        socket.getaddrinfo = replaced
