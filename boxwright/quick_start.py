"""Starts pyinfra without work that nobody needs.

pyinfra runs hosts side by side on gevent, which replaces the blocking calls of the standard library as soon as
pyinfra_cli is imported (pyinfra_cli/__init__.py). Importing this module does that. What is spared is a fifth of the
processor time of a run in which nothing changes (docs/decisions.md).
"""

from __future__ import annotations

import functools
import inspect

from gevent import events

# For each module that it patches, gevent searches all installed packages anew for plugins of its patching
# (gevent/events.py). Nothing that is installed here has one.
events.notify_and_call_entry_points = events.notify

import pyinfra_cli  # noqa: E402, F401
from pyinfra.api import util  # noqa: E402

# For each operation pyinfra looks at the lines that led to it (pyinfra/api/util.py) and uses their numbers alone;
# without a context, inspect reads no source files for that.
util.stack = functools.partial(inspect.stack, context=0)
util.getframeinfo = functools.partial(inspect.getframeinfo, context=0)
