"""Downloads from a real web server on loopback that can be told to misbehave."""

import hashlib
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from harness import run

from boxwright.artifacts import Download, MirrorSettings
from boxwright.operations import files

BODY = bytes(range(256)) * 4096  # 1 MiB

if not shutil.which("curl"):
    pytest.skip("curl is not installed on this machine", allow_module_level=True)


class Server:
    """Serves `body` at every path. `cut` closes the connection after so many bytes, once for each entry of the list;
    with `stalls`, it is left open instead, and nothing comes; with `pauses`, the rest comes when that is set.
    """

    def __init__(self):
        self.body = BODY
        self.cut = []
        self.stalls = False
        self.pauses = None
        self.over = threading.Event()
        self.ranges = True
        self.status = 200
        self.requests = []
        self.authorizations = []
        self.redirect = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        asked = request.headers.get("Range")
        self.requests.append((request.path, asked))
        self.authorizations.append(request.headers.get("Authorization"))
        if self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if self.status != 200:
            request.send_response(self.status)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        part = self.body[start:]
        request.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        length = self.cut.pop(0) if self.cut else len(part)
        try:
            request.wfile.write(part[:length])
            request.wfile.flush()
        except OSError:
            pass
        if self.pauses:
            self.pauses.wait(30)
            request.wfile.write(part[length:])
        if self.stalls and length < len(part):
            self.over.wait(30)
        request.close_connection = True

    def close(self):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def fetch(server, folder, me):
    """Runs the operation; the file is `fetch.path`."""

    def fetch(body=BODY, url=None, mirror=None, size=None, mode="0644", token="", **options):
        artifact = Download(
            name="the model",
            url=url or f"{server.url}/org/model.gguf",
            sha256=hashlib.sha256(body).hexdigest(),
            size=len(body) if size is None else size,
            token=token,
        )
        path = str(fetch.path)
        return run(lambda: files.download(path=path, artifact=artifact, mirror=mirror, mode=mode, **me), **options)

    fetch.path = folder / "a model.gguf"
    return fetch


def part_of(path):
    return path.with_name(path.name + ".part")


def note_of(path):
    return path.with_name(path.name + ".sha256")


def test_fetched_once(fetch, server, folder):
    assert fetch(dry=True).changed == [True]
    assert (list(folder.iterdir()), server.requests) == ([], [])
    assert fetch(mode="0640").changed == [True]
    assert fetch.path.read_bytes() == BODY
    assert fetch.path.stat().st_mode & 0o777 == 0o640
    assert sorted(folder.iterdir()) == [fetch.path, note_of(fetch.path)]
    again = fetch(mode="0640")
    assert (again.changed, len(again.asked), len(server.requests)) == ([False], 1, 1)


def test_a_file_whose_size_nobody_tells(fetch, server, folder):
    """It is continued and compared all the same."""
    server.cut = [len(BODY) // 2]
    assert fetch(size=0).changed == [True]
    assert fetch.path.read_bytes() == BODY
    assert len(server.requests) == 2
    again = fetch(size=0)
    assert (again.changed, len(again.asked)) == ([False], 1)
    fetch.path.unlink()
    wrong = fetch(body=BODY[1:], size=0)
    assert not wrong.ok
    assert f"expected sha256 {hashlib.sha256(BODY[1:]).hexdigest()}\n" in wrong.printed
    assert [path for path in folder.iterdir() if path != note_of(fetch.path)] == []


def test_how_far_it_is_is_said_while_it_takes_its_time(fetch, server):
    """By the script itself, so that it is also seen over a slow line; and it ends with it."""
    server.pauses = threading.Event()
    server.cut = [len(BODY) // 2]
    done = threading.Timer(5, server.pauses.set)
    done.start()
    result = fetch(verbosity=3)
    assert result.changed == [True], result.printed
    assert "progress: 0 of 1 MiB" in result.printed
    assert "progress: 0 of 1 MiB, 0 MiB/s" in result.printed
    assert [
        line for line in subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines() if "arriving" in line
    ] == []


def test_a_publisher_that_tells_sha512_alone(server, folder, me):
    """It is compared as the other is, remembered, and a wrong one is named by its kind."""
    path = str(folder / "bundle")

    def fetch(digest):
        artifact = Download(name="the bundle", url=f"{server.url}/bundle", sha512=digest, size=len(BODY))
        return run(lambda: files.download(path=path, artifact=artifact, **me))

    wrong = fetch("0" * 128)
    assert not wrong.ok
    assert f"found    sha512 {hashlib.sha512(BODY).hexdigest()}" in wrong.printed
    assert list(folder.iterdir()) == []
    right = hashlib.sha512(BODY).hexdigest()
    assert fetch(right).changed == [True]
    again = fetch(right)
    assert (again.changed, len(again.asked)) == ([False], 1)
    note = folder / "bundle.sha256"
    note.unlink()
    assert fetch(right).changed == [True]
    assert note.read_text().startswith(right)
    with pytest.raises(ValueError, match="needs one digest"):
        Download(name="x", url="http://x.example/x", sha256="0" * 64, sha512="0" * 128, size=1)


def test_a_verified_file_is_not_read_again(fetch, folder):
    fetch()
    # If it were read, these bytes would give it away; size, times and inode are put back as they were noted.
    note = note_of(fetch.path).read_text()
    fetch.path.write_bytes(BODY[::-1])
    size, mtime, ctime, inode = subprocess.run(
        ["stat", "-c", "%s %.9Y %.9Z %i", fetch.path], capture_output=True, text=True, check=True
    ).stdout.split()
    note_of(fetch.path).write_text(f"{note.split()[0]} {size} {mtime} {ctime} {inode}\n")
    assert fetch().changed == [False]
    # And when it was touched since, it is read, and found out.
    os.utime(fetch.path)
    assert fetch().changed == [True]
    assert fetch.path.read_bytes() == BODY


def test_a_touched_file_is_verified_and_not_fetched(fetch, server):
    fetch()
    os.utime(fetch.path, (1, 1))
    assert fetch().changed == [True]
    assert len(server.requests) == 1
    assert fetch().changed == [False]


@pytest.mark.parametrize("damage", ["deleted", "changed", "cut", "link"])
def test_a_damaged_file_is_fetched_again(fetch, server, folder, damage):
    fetch()
    if damage == "deleted":
        fetch.path.unlink()
    elif damage == "changed":
        fetch.path.write_bytes(b"x" + BODY[1:])
    elif damage == "cut":
        os.truncate(fetch.path, 100)
    else:
        (folder / "other").write_bytes(BODY)
        fetch.path.unlink()
        fetch.path.symlink_to(folder / "other")
    assert fetch().changed == [True]
    assert fetch.path.read_bytes() == BODY
    assert not fetch.path.is_symlink()
    assert fetch().changed == [False]


def test_a_changed_mode_alone_fetches_nothing(fetch, server):
    fetch()
    fetch.path.chmod(0o600)
    assert fetch().changed == [True]
    assert fetch.path.stat().st_mode & 0o777 == 0o644
    assert fetch().changed == [False], "the note of what was verified was not renewed"
    assert len(server.requests) == 1


def test_a_broken_connection_is_resumed(fetch, server):
    server.cut = [300_000, 400_000]
    assert fetch().changed == [True]
    assert fetch.path.read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=700000-"]


@pytest.fixture
def impatient(folder, monkeypatch):
    """curl on this machine, for which a minute without a byte is a second."""
    program = folder / "bin" / "curl"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
for word; do
    shift
    [ "$last" != --speed-time ] || [ "$word" != 60 ] || word=1
    set -- "$@" "$word"
    last=$word
done
exec {shutil.which("curl")} "$@"
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("impatient")
def test_a_mirror_that_stalls_is_left_and_asked_again(fetch, server):
    server.stalls, server.cut = True, [300_000]
    assert fetch().changed == [True]
    assert fetch.path.read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-"]


@pytest.mark.usefixtures("impatient")
def test_a_mirror_that_stalls_for_good_fails_the_step_and_what_came_is_kept(fetch, server):
    server.stalls, server.cut = True, [300_000, 0, 0]
    result = fetch()
    assert not result.ok
    assert "cannot fetch the model" in result.printed
    assert part_of(fetch.path).stat().st_size == 300_000
    assert not fetch.path.exists()


def test_an_interrupted_run_is_continued_by_the_next(fetch, server):
    part_of(fetch.path).write_bytes(BODY[:500_000])
    assert fetch().changed == [True]
    assert fetch.path.read_bytes() == BODY
    assert [asked for _, asked in server.requests] == ["bytes=500000-"]


def test_a_run_killed_after_the_last_byte_fetches_nothing(fetch, server):
    part_of(fetch.path).write_bytes(BODY)
    assert fetch().changed == [True]
    assert (fetch.path.read_bytes(), server.requests) == (BODY, [])


def test_what_is_left_of_another_file_is_thrown_away(fetch, server):
    part_of(fetch.path).write_bytes(b"other" * 1000)
    assert fetch().changed == [True]
    assert fetch.path.read_bytes() == BODY
    part_of(fetch.path).write_bytes(b"x" * (len(BODY) + 1))
    fetch.path.unlink()
    assert fetch().changed == [True]
    assert fetch.path.read_bytes() == BODY


def test_a_server_that_cannot_resume(fetch, server):
    server.ranges = False
    part_of(fetch.path).write_bytes(BODY[:500_000])
    assert fetch().changed == [True]
    assert fetch.path.read_bytes() == BODY


def test_a_wrong_checksum(fetch, server, folder):
    fetch.path.write_bytes(b"the old file")
    server.body = b"?" * len(BODY)
    result = fetch()
    assert not result.ok
    found = hashlib.sha256(server.body).hexdigest()
    for words in (
        f"the model has the wrong checksum and was not used: {server.url}/org/model.gguf",
        f"expected sha256 {hashlib.sha256(BODY).hexdigest()} ({len(BODY)} bytes)",
        f"found    sha256 {found} ({len(BODY)} bytes)",
    ):
        assert words in result.printed
    assert list(folder.iterdir()) == [fetch.path], "what was fetched is still there"
    assert fetch.path.read_bytes() == b"the old file"
    server.body = BODY
    assert fetch().changed == [True]


@pytest.mark.parametrize("length", [10, 2 * len(BODY)])
def test_a_wrong_size(fetch, server, folder, length):
    server.body = b"?" * length
    result = fetch()
    assert not result.ok
    assert "wrong checksum" in result.printed or "is larger than" in result.printed
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "it wants a token, or its terms to be accepted by the token's owner (HTTP 401)"),
        (403, "it wants a token, or its terms to be accepted by the token's owner (HTTP 403)"),
        (404, "there is no such file (HTTP 404)"),
        (412, "it does not hand this file out to us now (HTTP 412)"),
        (429, "it has had too many requests from here: try again later (HTTP 429)"),
        (500, "curl: (22)"),
    ],
)
def test_a_server_that_does_not_hand_it_out(fetch, server, status, said):
    server.status = status
    result = fetch()
    assert not result.ok
    assert f"cannot fetch the model from {server.url}/org/model.gguf: {said}" in result.printed
    assert str(status) in result.printed
    assert len(server.requests) == 1, "asked again for what is not handed out"
    assert not fetch.path.exists()


def test_a_token_is_for_the_publisher_alone(fetch, server):
    """Not for whom the publisher sends us on to, and not for a mirror; and in no process's arguments."""
    token = "token-of-the-tests"
    other = Server()
    try:
        server.redirect = f"{other.url.replace('127.0.0.1', 'localhost')}/elsewhere"
        assert fetch(token=token).ok
        assert server.authorizations == [f"Bearer {token}"]
        assert other.authorizations == [None]
        server.redirect = None
        fetch.path.unlink()
        mirror = MirrorSettings(url=server.url)
        assert fetch(url="https://models.example/org/model.gguf", mirror=mirror, token=token).ok
        assert server.authorizations[1:] == [None]
    finally:
        other.close()


def test_an_unreachable_mirror_is_named_with_what_it_mirrors(fetch, folder):
    mirror = MirrorSettings(url="http://127.0.0.1:1")
    result = fetch(url="https://models.example/org/model.gguf", mirror=mirror)
    assert not result.ok
    assert (
        "cannot fetch the model from http://127.0.0.1:1/models.example/org/model.gguf "
        "(the mirror of https://models.example/org/model.gguf): curl: (7)" in result.printed
    )
    assert not fetch.path.exists()


def test_from_the_mirror(fetch, server):
    assert fetch(url="https://models.example/m.gguf", mirror=MirrorSettings(url=server.url)).changed == [True]
    assert server.requests == [("/models.example/m.gguf", None)]


def test_no_room(fetch, server, folder):
    result = fetch(size=2**60)
    assert not result.ok
    assert f"it needs {2**60} bytes ({2**40} MiB) more, and {folder} has " in result.printed
    assert server.requests == []


def test_a_missing_folder(fetch, server, folder):
    fetch.path = folder / "none" / "x"
    result = fetch()
    assert not result.ok
    assert f"the folder {folder}/none does not exist" in result.printed


def test_a_run_that_was_killed_here_goes_on_there(fetch, server, folder):
    """An ended session leaves its command at work on the box: the next run waits for it and does not fetch twice."""
    _, command, *_ = fetch(answer=lambda asked: (True, ["absent"])).asked
    holder = subprocess.Popen(["flock", folder, "cat"], stdin=subprocess.PIPE)  # holds the folder as a download does
    process = subprocess.Popen(
        ["sh", "-c", command.text, "boxwright", *command.arguments], stderr=subprocess.PIPE, text=True
    )
    assert "another run is fetching" in process.stderr.readline()
    assert server.requests == [], "it did not wait"
    fetch.path.write_bytes(BODY)
    holder.communicate()
    assert process.wait(20) == 0
    assert server.requests == [], "it was fetched although it was there by then"


def test_absent(fetch, folder):
    fetch()
    part_of(fetch.path).touch()
    assert run(lambda: files.download_absent(str(fetch.path))).changed == [True]
    assert list(folder.iterdir()) == []
    assert run(lambda: files.download_absent(str(fetch.path))).changed == [False]
