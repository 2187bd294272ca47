"""What the `pyinfra` command itself prints of operations that write secrets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYINFRA = Path(sys.executable).parent / "pyinfra"
SECRET = "the-secret-of-this-test"

DEPLOY = """
from boxwright.operations import files

# Without a name pyinfra prints every argument.
files.content("{folder}/positional", "{secret}\\n", user=None, group=None, secret=True)
files.content(path="{folder}/keyword", text="{secret}\\n", user=None, group=None, mode="0600", secret=True)
files.content(name="Named", path="{folder}/named", text="{secret}\\n", user=None, group=None, secret=True)
files.content(path="{folder}/public", text="a public line\\n", user=None, group=None)
"""


@pytest.fixture
def pyinfra(tmp_path):
    """Runs `pyinfra` on this machine; returns its exit code, standard output and standard error."""
    folder = tmp_path / "target"
    folder.mkdir()
    (tmp_path / "deploy.py").write_text(DEPLOY.format(folder=folder, secret=SECRET))

    def pyinfra(*options):
        ended = subprocess.run(
            [PYINFRA, *options, "@local", "deploy.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYINFRA_PROGRESS": "off"},
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    pyinfra.folder = folder
    return pyinfra


@pytest.mark.parametrize(
    "options", [("--dry", "-vv", "--diff"), ("-y",), ("-y", "-vv", "--diff"), ("-y", "--json", "-vv", "--diff")]
)
def test_no_secret_is_printed(pyinfra, options):
    for name in ("positional", "keyword", "named"):
        (pyinfra.folder / name).write_text(f"older-{SECRET}\n")
    code, out, err = pyinfra(*options)
    assert code == 0, out + err
    assert SECRET not in out + err
    if "--json" in options:
        json.loads(out)
    if "-y" in options:
        assert (pyinfra.folder / "positional").read_text() == SECRET + "\n"
        assert (pyinfra.folder / "keyword").stat().st_mode & 0o777 == 0o600
    if "--diff" in options:
        assert "+a public line" in err, "--diff shows nothing at all"


def test_an_ordinary_pyinfra_command_can_call_an_operation(tmp_path):
    """`pyinfra HOST module.operation arguments`, as in any pyinfra project."""
    path = tmp_path / "x"
    path.touch()
    ended = subprocess.run(
        [PYINFRA, "-y", "@local", "boxwright.operations.files.absent", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert not path.exists()
