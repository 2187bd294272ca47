"""Generated secrets: kept safely, never lost, never made again silently."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import bcrypt
import pytest

from boxwright.errors import Refused
from boxwright.secrets import SecretStore, kept_hash


@pytest.fixture
def store(tmp_path):
    return SecretStore(tmp_path / "state" / "secrets")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def never():
    raise AssertionError("made again")


def code(call, *arguments):
    with pytest.raises(Refused) as caught:
        call(*arguments)
    (problem,) = caught.value.problems
    return problem


def test_made_once(store):
    assert store.get("box", "door_password") is None
    assert store.get_or_create("box", "door_password", lambda: "first") == "first"
    assert store.get_or_create("box", "door_password", never) == "first"
    assert SecretStore(store.directory).get_or_create("box", "door_password", never) == "first"
    assert store.get_or_create("other", "door_password", lambda: "second") == "second"
    assert store.all("box") == {"door_password": "first"}


def test_only_the_owner_can_read_whatever_the_umask(store):
    before = os.umask(0)
    try:
        store.get_or_create("box", "x", lambda: "secret")
    finally:
        os.umask(before)
    assert mode(store.directory) == 0o700
    assert [mode(path) for path in store.directory.iterdir()] == [0o600] * len(list(store.directory.iterdir()))
    assert store.path("box").name == "box.json"


def test_nothing_is_written_by_reading(store):
    assert store.all("box") == {}
    store.delete("box")
    assert not store.directory.exists()


def test_put_replaces(store):
    store.put("box", "x", "one")
    store.put("box", "y", "two")
    store.put("box", "x", "three")
    assert json.loads(store.path("box").read_text()) == {"x": "three", "y": "two"}


def test_one_of_many(store):
    """Kept under a name of its own beside the others, and found again by it, dots or not."""
    for name in ("laptop", "ci.build"):
        store.put("box", SecretStore.member("door_tokens", name), f"of {name}")
    store.put("box", "door_tokens_x", "something else")
    store.put("box", "indoor_tokens.laptop", "something else")
    assert json.loads(store.path("box").read_text())["door_tokens.laptop"] == "of laptop"
    assert SecretStore.members(store.all("box"), "door_tokens") == {"laptop": "of laptop", "ci.build": "of ci.build"}


def test_delete_forgets_one_host(store):
    store.put("box", "x", "one")
    store.put("other", "x", "two")
    store.delete("box")
    assert (store.all("box"), store.all("other")) == ({}, {"x": "two"})


@pytest.mark.parametrize("host", ["../../etc/passwd", "a/b", "fe80::1", "..", "höst"])
def test_any_host_name_is_one_file_in_the_folder(store, host):
    store.put(host, "x", "one")
    assert store.path(host).parent == store.directory
    assert store.get(host, "x") == "one"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', '{"x": ""}', '{"x": null}', "\x00\xff"])
def test_a_damaged_file_is_refused_and_left_alone(store, content):
    store.put("box", "x", "one")
    path = store.path("box")
    path.write_bytes(content.encode("latin-1"))
    for call in (
        lambda: store.get("box", "x"),
        lambda: store.get_or_create("box", "new", never),
        lambda: store.put("box", "x", "two"),
    ):
        problem = code(call)
        assert problem.code == "BW030"
        assert str(path) in problem.message
        assert "restore it from a backup; or delete it" in problem.help
    assert path.read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize("wrong", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused_with_the_cure(store, wrong):
    store.put("box", "x", "one")
    store.path("box").chmod(wrong)
    problem = code(store.get_or_create, "box", "x", never)
    assert problem.code == "BW031"
    assert f"{wrong:04o}" in problem.message
    assert problem.help.startswith(f"chmod 600 {store.path('box')} ")
    store.path("box").chmod(0o600)  # what the help says
    assert store.get("box", "x") == "one"


def test_a_folder_that_others_can_enter_is_refused_with_the_cure(store):
    store.put("box", "x", "one")
    store.directory.chmod(0o755)
    problem = code(store.get, "box", "x")
    assert problem.code == "BW031"
    assert problem.help.startswith(f"chmod 700 {store.directory} ")
    store.directory.chmod(0o700)
    assert store.get("box", "x") == "one"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    problem = code(SecretStore(tmp_path / "file" / "secrets").get_or_create, "box", "x", lambda: "one")
    assert problem.code == "BW032"
    assert "BOXWRIGHT_STATE_DIR" in problem.help
    problem = code(SecretStore(Path("/proc/boxwright/secrets")).put, "box", "x", "one")
    assert problem.code == "BW032"


def test_a_write_that_fails_leaves_the_old_file(store, monkeypatch):
    store.put("box", "x", "one")
    before = store.path("box").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert code(store.put, "box", "x", "two").code == "BW032"
    assert store.path("box").read_bytes() == before
    assert sorted(path.name for path in store.directory.iterdir()) == [".lock", "box.json"]


def _make(directory, number, queue):
    queue.put(SecretStore(directory).get_or_create("box", "shared", lambda: f"made by {number}"))


def _add(directory, number):
    SecretStore(directory).put("box", f"variable{number}", str(number))


def test_processes_at_the_same_time_agree(store):
    queue = multiprocessing.Queue()
    together = [multiprocessing.Process(target=_make, args=(store.directory, n, queue)) for n in range(4)]
    together += [multiprocessing.Process(target=_add, args=(store.directory, n)) for n in range(4)]
    for process in together:
        process.start()
    answers = {queue.get(timeout=60) for _ in range(4)}
    for process in together:
        process.join(60)
        assert process.exitcode == 0
    assert len(answers) == 1
    assert store.all("box") == {"shared": answers.pop(), **{f"variable{n}": str(n) for n in range(4)}}


def test_bcrypt_hash_is_stable_and_follows_the_password(store):
    first = kept_hash(store, "box", "door_password_hash", "pässword")
    assert bcrypt.checkpw("pässword".encode(), first.encode())
    assert first.startswith("$2b$10$")
    assert kept_hash(store, "box", "door_password_hash", "pässword") == first
    second = kept_hash(store, "box", "door_password_hash", "other")
    assert bcrypt.checkpw(b"other", second.encode())
    assert store.all("box") == {"door_password_hash": second}


def test_bcrypt_hash_replaces_what_is_no_hash(store):
    store.put("box", "door_password_hash", "rubbish")
    assert bcrypt.checkpw(b"password", kept_hash(store, "box", "door_password_hash", "password").encode())


def test_bcrypt_refuses_what_it_would_cut(store):
    with pytest.raises(ValueError, match="72 bytes"):
        kept_hash(store, "box", "x", "a" * 73)
    kept_hash(store, "box", "x", "a" * 72)


def test_argon2id_is_kept_and_another_kind_makes_another_hash(store):
    from argon2 import PasswordHasher

    first = kept_hash(store, "box", "x", "pässword", "argon2id")
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert PasswordHasher().verify(first, "pässword")
    assert kept_hash(store, "box", "x", "pässword", "argon2id") == first
    assert kept_hash(store, "box", "x", "other", "argon2id") != first
    assert kept_hash(store, "box", "x", "other", "bcrypt").startswith("$2b$10$")
    assert kept_hash(store, "box", "x", "a" * 100, "argon2id").startswith("$argon2id$")
