"""What boxwright.quick_start spares pyinfra must be spared with every version of pyinfra and gevent that is pinned."""

from __future__ import annotations

import subprocess
import sys

NO_SEARCH = """
import importlib.metadata
search = importlib.metadata.entry_points
def refuse(group):
    if group.startswith("gevent"):
        raise SystemExit("all packages are searched")
    return search(group=group)
importlib.metadata.entry_points = refuse
import boxwright.quick_start
import socket
assert socket.socket.__module__.startswith("gevent"), socket.socket
"""
NO_SOURCES = """
import boxwright.quick_start
import inspect
import types
import pyinfra
from pyinfra.api.operation import get_operation_order_from_stack
def refuse(*_):
    raise SystemExit("a source file is read")
inspect.findsource = refuse
pyinfra.is_cli = True
state = types.SimpleNamespace(current_deploy_filename="<string>", current_op_file_number=7)
found = get_operation_order_from_stack(state)
assert found == [7, 12], found
"""


def run(program: str) -> tuple[int, str]:
    """How a Python of its own ends with it, since gevent changes the standard library of a whole process."""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


def test_no_package_is_searched_for_plugins_of_gevent() -> None:
    assert run(NO_SEARCH) == (0, "")
    assert run(NO_SEARCH.replace("boxwright.quick_start", "pyinfra_cli")) == (1, "all packages are searched\n")


def test_line_numbers_are_found_without_reading_source_files() -> None:
    assert run(NO_SOURCES) == (0, "")
    assert run(NO_SOURCES.replace("boxwright.quick_start", "pyinfra_cli")) == (1, "a source file is read\n")
