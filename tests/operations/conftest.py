"""What the tests of this folder share."""

import grp
import os
import pwd
from types import SimpleNamespace

import pytest


@pytest.fixture
def me():
    """Owner and group of files that this process makes, as arguments of an operation."""
    return {"user": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}


@pytest.fixture
def folder(tmp_path):
    """A folder whose name a careless command would trip over."""
    path = tmp_path / "a 'quoted' $HOME `id` \"folder\" ü;*"
    path.mkdir()
    return path


@pytest.fixture
def somebody():
    """Another account of this machine; the test needs root to hand files to it."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another account")
    entry = pwd.getpwnam("nobody")
    return SimpleNamespace(name=entry.pw_name, group=grp.getgrgid(entry.pw_gid).gr_name)
