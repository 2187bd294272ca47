"""Where boxwright keeps things on the control machine. Only computes paths; creates nothing."""

import os
from pathlib import Path
from urllib.parse import quote


def _base(variable: str, xdg: str, fallback: str) -> Path:
    if own := os.environ.get(variable):
        return Path(own).expanduser().absolute()
    # The XDG base directory specification says that a relative path in these variables must be ignored.
    if (shared := os.environ.get(xdg)) and Path(shared).is_absolute():
        return Path(shared) / "boxwright"
    return Path.home() / fallback / "boxwright"


def state_dir() -> Path:
    """What must survive between runs: generated secrets, certificate authorities, ssh files, labs, logs.

    `$BOXWRIGHT_STATE_DIR`, else `$XDG_STATE_HOME/boxwright`, else `~/.local/state/boxwright`.
    """
    return _base("BOXWRIGHT_STATE_DIR", "XDG_STATE_HOME", ".local/state")


def ca_file(host: str) -> Path:
    """The root certificate of the inventory host `host`, kept here when its gateway is its own authority."""
    return state_dir() / "ca" / f"{quote(host, safe='')}.crt"


def cache_dir() -> Path:
    """What can be fetched again: downloads, the lab's mirror.

    `$BOXWRIGHT_CACHE_DIR`, else `$XDG_CACHE_HOME/boxwright`, else `~/.cache/boxwright`.
    """
    return _base("BOXWRIGHT_CACHE_DIR", "XDG_CACHE_HOME", ".cache")


def repository_root() -> Path:
    """The checkout that this package is part of: where inventory/, group_vars/, roles/ and deploys/ are."""
    return Path(__file__).resolve().parent.parent
