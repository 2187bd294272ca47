"""Programs from archives, fetched from a real web server on loopback and unpacked by the machine's own tar."""

import hashlib
import http.server
import io
import os
import shutil
import tarfile
import threading

import pytest
from harness import run

from boxwright.artifacts import Download
from boxwright.operations import archives

if os.geteuid() != 0 or not shutil.which("curl"):
    pytest.skip("needs root, for owners, and curl", allow_module_level=True)


def packed(program=b"#!/bin/sh\necho one\n", name="bin/tool", mode=0o755):
    """An archive with a program and a folder beside it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, data, bits in ((name, program, mode), ("lib/data", b"data", 0o666)):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode, entry.uid = len(data), bits, 4711
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def served(tmp_path):
    """Serves a folder; `served.url` is its address, `served.asked` what was asked."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    server.folder, server.asked, server.url = folder, asked, f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def unpack(served, folder):
    """Runs the operation with an archive that is served; the folder is `unpack.path`."""

    def unpack(data, sha256=None, **options):
        (served.folder / "tool.tgz").write_bytes(data)
        artifact = Download(
            name="the tool",
            url=f"{served.url}/tool.tgz",
            sha256=sha256 or hashlib.sha256(data).hexdigest(),
            size=len(data),
        )
        return run(lambda: archives.unpacked(str(unpack.path), artifact, "bin/tool"), **options)

    unpack.path = folder / "1.0-0123456789ab"
    return unpack


def test_unpacked_once_and_the_archive_is_gone(unpack, served, folder):
    data = packed()
    assert unpack(data, dry=True).changed == [True]
    assert (list(folder.iterdir()), served.asked) == ([], [])
    assert unpack(data).changed == [True]
    program = unpack.path / "bin/tool"
    assert program.read_text() == "#!/bin/sh\necho one\n"
    assert (program.stat().st_uid, program.stat().st_mode & 0o777) == (0, 0o755)
    assert (unpack.path / "lib/data").stat().st_mode & 0o777 == 0o644
    assert list(folder.iterdir()) == [unpack.path]
    assert unpack(data).changed == [False]
    assert len(served.asked) == 1


@pytest.mark.parametrize(
    "drift",
    [
        lambda path: (path / "bin/tool").unlink(),
        lambda path: (path / "bin/tool").write_text("exit 1\n"),
        lambda path: (path / "bin/tool").chmod(0o777),
        lambda path: os.chown(path / "bin/tool", 1, 1),
        lambda path: (path / ".boxwright-complete").unlink(),
        shutil.rmtree,
    ],
)
def test_drift_is_repaired(unpack, drift):
    data = packed()
    unpack(data)
    drift(unpack.path)
    assert unpack(data).changed == [True]
    assert (unpack.path / "bin/tool").read_text() == "#!/bin/sh\necho one\n"
    assert unpack(data).changed == [False]


def test_what_was_left_half_made_is_made_anew(unpack, folder):
    new = unpack.path.with_name(unpack.path.name + ".new")
    (new / "old").mkdir(parents=True)
    assert unpack(packed()).changed == [True]
    assert not (unpack.path / "old").exists()
    assert not new.exists()


@pytest.mark.parametrize(
    ("data", "sha256", "words"),
    [
        (packed(), "0" * 64, "wrong checksum"),
        (b"no archive", None, "could not be unpacked"),
        (packed()[:-200], None, "could not be unpacked"),
        (packed(name="bin/other"), None, "has no program bin/tool"),
        (packed(mode=0o644), None, "has no program bin/tool"),
    ],
)
def test_what_is_not_the_program_takes_nothing_away(unpack, folder, data, sha256, words):
    unpack(packed())
    result = unpack(data, sha256)
    assert not result.ok
    assert words in result.printed
    assert (unpack.path / "bin/tool").read_text() == "#!/bin/sh\necho one\n"
    assert not unpack.path.with_name(unpack.path.name + ".new").exists()


def test_only_what_it_made_is_pruned(folder):
    ours = ["1.0-0123456789ab", "2.0-0123456789ab", "3.0-0123456789ab.new", "3.0-0123456789ab.archive.part"]
    for name in (*ours, "ready", "notes-by-hand"):
        (folder / name).mkdir()

    def prune(**options):
        return run(lambda: archives.prune(str(folder), [f"{folder}/2.0-0123456789ab"]), **options).changed

    assert prune(dry=True) == [True]
    assert prune() == [True]
    assert sorted(path.name for path in folder.iterdir()) == ["2.0-0123456789ab", "notes-by-hand", "ready"]
    assert prune() == [False]
