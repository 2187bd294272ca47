"""Files on a real disk: this machine's, through pyinfra's local connector."""

import os
import signal
import stat
import subprocess
import time
from hashlib import sha256

import pytest
from harness import run
from pyinfra.api.exceptions import OperationTypeError, OperationValueError

from boxwright.operations import files

TEXT = "first line\n\"quotes\" and 'quotes' $HOME `id` \\n %s\nlast line with ü\n"


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


def snapshot(folder):
    """All that can be seen of a folder: what a dry run must leave as it is."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.lstat().st_mode)
        for path in sorted(folder.rglob("*"))
    }


def until(holds, seconds=10):
    """What `holds` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)
    return found


class TestContent:
    def write(self, path, me, text=TEXT, **arguments):
        options = {key: arguments.pop(key) for key in ("dry", "diff", "verbosity") if key in arguments}
        return run(lambda: files.content(path=str(path), text=text, **{**me, **arguments}), **options)

    @pytest.mark.parametrize("text", [TEXT, "", "no final line break", "\n\n", "x" * 300_000 + "\n", "tab\tand\r\n"])
    def test_again_changes_nothing(self, folder, me, text):
        path = folder / "-file name.conf"
        before = snapshot(folder)
        assert self.write(path, me, text, dry=True).changed == [True]
        assert snapshot(folder) == before
        assert self.write(path, me, text, mode="0640").changed == [True]
        assert path.read_bytes() == text.encode()
        assert mode_of(path) == 0o640
        before = snapshot(folder)
        again = self.write(path, me, text, mode="0640")
        assert (again.changed, len(again.asked)) == ([False], 1)
        assert snapshot(folder) == before
        assert list(folder.iterdir()) == [path], "something was left beside it"

    def test_only_what_drifted_changes(self, folder, me):
        path = folder / "x"
        self.write(path, me)
        was = path.stat()
        path.chmod(0o666)
        assert self.write(path, me).changed == [True]
        assert mode_of(path) == 0o644
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns), "it was written anew"
        path.write_text("edited by hand\n")
        assert self.write(path, me).changed == [True]
        assert path.read_text() == TEXT

    def test_owner(self, folder, somebody, me):
        path = folder / "x"
        run(lambda: files.content(str(path), TEXT, user=somebody.name, group=somebody.group, mode="0600"))
        assert (path.owner(), path.group(), mode_of(path)) == (somebody.name, somebody.group, 0o600)
        was = path.stat().st_ino
        os.chown(path, 0, 0)
        result = run(lambda: files.content(str(path), TEXT, user=somebody.name, group=somebody.group, mode="0600"))
        assert (result.changed, path.owner(), path.stat().st_ino) == ([True], somebody.name, was)

    @pytest.mark.parametrize(
        ("old", "new", "between"), [(0o644, "0600", "0600"), (0o600, "0640", "0600"), (0o626, "0640", "0600")]
    )
    def test_a_changed_mode_is_never_more_open_than_both(self, folder, me, old, new, between):
        path = folder / "x"
        self.write(path, me)
        path.chmod(old)
        command = self.write(path, me, mode=new).asked[-1]
        assert command.arguments[1] == between
        assert mode_of(path) == int(new, 8)

    def test_a_link_put_in_the_place_of_an_old_file_is_not_followed(self, folder, me):
        """As whoever owns the folder could do between the look at it and the change."""
        path, target = folder / "x", folder / "target"
        target.touch(mode=0o600)
        path.symlink_to(target)
        answer = f"regular file|{me['user']}|{me['group']}|600|{len(TEXT)}|{sha256(TEXT.encode()).hexdigest()}"
        _, command = run(
            lambda: files.content(str(path), TEXT, mode="0666", **me), lambda asked: (True, [answer])
        ).asked
        ended = subprocess.run(
            ["sh", "-c", command.text, "x", *command.arguments], capture_output=True, text=True, check=False
        )
        assert "was exchanged for something else" in ended.stderr
        assert ended.returncode != 0
        assert mode_of(target) == 0o600

    def test_a_link_is_replaced_and_what_it_points_to_stays(self, folder, me):
        target, path = folder / "target", folder / "x"
        target.write_text(TEXT)
        path.symlink_to(target)
        assert self.write(path, me, mode="0600").changed == [True]
        assert not path.is_symlink()
        assert mode_of(target) != 0o600
        target.write_text("other")
        assert path.read_text() == TEXT
        path.unlink()
        path.symlink_to(folder / "nowhere")
        self.write(path, me)
        assert path.read_text() == TEXT
        assert not (folder / "nowhere").exists()

    def test_a_folder_in_the_way_is_an_error(self, folder, me):
        (folder / "x").mkdir()
        result = self.write(folder / "x", me)
        assert not result.ok
        assert f"cannot write {folder}/x: a folder is in its place" in result.printed

    def test_a_missing_folder_is_an_error(self, folder, me):
        result = self.write(folder / "none" / "x", me, "x" * 300_000)
        assert not result.ok
        assert f"the folder {folder}/none does not exist" in result.printed
        assert self.write(folder / "none" / "x", me, dry=True).ok, "it may be made earlier in the same run"

    @pytest.mark.parametrize("mode", [0o644, 644, "rw", "64", "999"])
    def test_a_mode_that_is_none(self, folder, me, mode):
        with pytest.raises(OperationTypeError, match="octal"):
            self.write(folder / "x", me, mode=mode, dry=True)

    @pytest.mark.parametrize("path", ["relative", "/folder/", "/line\nbreak"])
    def test_a_path_that_is_none(self, path, me):
        with pytest.raises(OperationValueError, match="not an absolute path"):
            self.write(path, me, dry=True)

    def test_validate(self, folder, me):
        path = folder / "x"
        self.write(path, me, "good\n")
        refused = self.write(path, me, "bad\n", validate="grep -q good {path} || { echo no good in it >&2; exit 3; }")
        assert not refused.ok
        assert path.read_text() == "good\n"
        assert "no good in it" in refused.printed
        assert "was left as it is: the new text was not accepted by: grep -q good {path}" in refused.printed
        assert list(folder.iterdir()) == [path]
        assert self.write(path, me, "very good\n", validate="grep -q good {path}").changed == [True]

    def test_validate_sees_the_name_and_the_final_mode(self, folder, me):
        seen = folder / "seen"
        validate = f'{{ echo {{path}}; stat -c %a {{path}}; }} >"{seen.name}"'
        run(
            lambda: files.content(
                str(folder / "my.service"), TEXT, mode="0640", validate=validate, **me, _chdir=str(folder)
            )
        )
        name, mode = seen.read_text().splitlines()
        assert name.endswith(".my.service")
        assert mode == "640"


class TestInTheMiddle:
    """The command that writes, with its input held back, cut off, or killed."""

    def start(self, path, text=TEXT, mode=0o644):
        raw = files.write(str(path), text, "", mode).get_raw_value()
        # As an administrator's login would run it: what the umask says must not matter.
        return subprocess.Popen(["sh", "-c", f"umask 000; exec {raw}"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def temporary(self, folder):
        return until(lambda: [each for each in folder.iterdir() if each.name.startswith(".boxwright-")])[0]

    def test_nobody_else_can_read_it_at_any_moment(self, folder):
        text = "a secret " * 20_000
        process = self.start(folder / "x", text, mode=0o640)
        assert mode_of(self.temporary(folder)) == 0o600
        process.stdin.write(text[:100_000].encode())
        process.stdin.flush()
        until(lambda: self.temporary(folder).stat().st_size)
        assert mode_of(self.temporary(folder)) == 0o600
        process.communicate(text[100_000:].encode())
        assert mode_of(folder / "x") == 0o640
        assert (folder / "x").read_text() == text

    def test_a_connection_that_breaks_replaces_nothing(self, folder):
        path = folder / "x"
        path.write_text("old\n")
        process = self.start(path)
        _, said = process.communicate(TEXT.encode()[:-5])
        assert process.returncode != 0
        assert b"arrived incomplete" in said
        assert path.read_text() == "old\n"
        assert list(folder.iterdir()) == [path]

    def test_a_killed_run_is_completed_by_the_next(self, folder, me):
        path = folder / "x"
        path.write_text("old\n")
        process = self.start(path)
        left = self.temporary(folder)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert path.read_text() == "old\n"
        young = folder / f".boxwright-0123456789abcdef.{path.name}"
        young.touch()
        other = folder / ".boxwright-0123456789abcdef.other"
        for old in (left, other):
            old.touch()
            os.utime(old, (1, 1))
        run(lambda: files.content(str(path), TEXT, **me))
        assert path.read_text() == TEXT
        assert sorted(folder.iterdir()) == sorted([path, young, other]), "the leftover of the killed run alone goes"

    def test_a_link_put_in_the_place_of_the_new_file_is_not_followed(self, folder):
        """As whoever owns the folder could do: neither text, owner nor mode must reach what it points to."""
        target = folder / "target"
        target.write_text("precious\n")
        target.chmod(0o600)
        process = self.start(folder / "x", "x" * 100_000, mode=0o666)
        temporary = self.temporary(folder)
        temporary.unlink()
        temporary.symlink_to(target)
        process.communicate(b"x" * 100_000)
        assert (target.read_text(), mode_of(target)) == ("precious\n", 0o600)

    def test_a_signal_leaves_nothing_behind(self, folder):
        process = self.start(folder / "x")
        self.temporary(folder)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert list(folder.iterdir()) == []


class TestDirectory:
    def make(self, path, me, mode="0750", **options):
        return run(lambda: files.directory(path=str(path), mode=mode, **me), **options)

    def test_made_and_repaired(self, folder, me):
        path = folder / "one" / "two"
        assert self.make(path, me, dry=True).changed == [True]
        assert not path.exists()
        assert self.make(path, me).changed == [True]
        assert (mode_of(path), mode_of(path.parent)) == (0o750, 0o755)
        assert self.make(path, me).changed == [False]
        (path / "kept").touch()
        path.chmod(0o777)
        assert self.make(path, me).changed == [True]
        assert mode_of(path) == 0o750
        assert (path / "kept").exists()

    def test_something_else_in_the_way(self, folder, me):
        (folder / "file").touch()
        (folder / "link").symlink_to(folder)
        for name in ("file", "link"):
            result = self.make(folder / name, me)
            assert not result.ok
            assert f"should be a folder, but it is a {name}" in result.printed


class TestAbsent:
    def remove(self, path, **arguments):
        return run(lambda: files.absent(path=str(path), **arguments))

    def test_file_link_and_empty_folder(self, folder):
        target = folder / "target"
        target.touch()
        (folder / "-file").touch()
        (folder / "link").symlink_to(target)
        (folder / "broken").symlink_to("nowhere")
        (folder / "empty").mkdir()
        for name in ("-file", "link", "broken", "empty"):
            assert self.remove(folder / name).changed == [True]
            assert self.remove(folder / name).changed == [False]
        assert list(folder.iterdir()) == [target]

    def test_a_full_folder_goes_only_when_said(self, folder):
        (folder / "full" / "deep").mkdir(parents=True)
        (folder / "full" / "deep" / "link").symlink_to(folder)
        assert not self.remove(folder / "full").ok
        assert (folder / "full" / "deep").exists()
        assert self.remove(folder / "full", recursive=True).changed == [True]
        assert self.remove(folder / "full", recursive=True).changed == [False]
        assert folder.exists()

    def test_several_files_by_one_question(self, folder):
        paths = [str(folder / name) for name in ("one", "two", "three")]
        (folder / "one").touch()
        (folder / "three").symlink_to("nowhere")
        (folder / "other").touch()

        def remove():
            return run(lambda: files.files_absent(paths=paths))

        removed = remove()
        assert removed.changed == [True]
        assert [path.name for path in folder.iterdir()] == ["other"]
        again = remove()
        assert again.changed == [False]
        assert len(again.asked) == 1

    @pytest.mark.parametrize("path", ["/etc", "/opt/../etc"])
    def test_a_folder_near_the_root_stays(self, path):
        result = run(lambda: files.absent(path, recursive=True), lambda asked: (True, ["directory|root|root|755|1|"]))
        assert [asked for asked in result.asked if "rm -rf" in asked.text] == []
        assert "too near the root" in result.asked[-1].arguments[0]


def test_a_path_that_may_not_be_looked_at_is_not_absent(folder, me):
    """Permission denied is an error: taken for "nothing there", a file would be written over what is there."""
    answers = [(False, ["stat: cannot statx '/secret/x': Permission denied"])]
    result = run(lambda: files.content("/secret/x", TEXT, **me), lambda asked: answers.pop(0))
    assert not result.ok
    assert len(result.asked) == 1


class TestJson:
    @pytest.fixture
    def shared(self, folder, monkeypatch):
        """A file that is shared with others, and records kept in the test's own folder."""
        monkeypatch.setattr(files, "RECORDS", str(folder / "records"))
        monkeypatch.setattr(files, "_record_of", lambda path: f"{folder}/records/merged/shared")
        return folder / "etc" / "shared.json"

    @pytest.fixture(autouse=True)
    def _as_root(self):
        if os.geteuid() != 0:
            pytest.skip("the merged file belongs to root")

    def merge(self, path, values, **arguments):
        options = {key: arguments.pop(key) for key in ("dry", "diff") if key in arguments}
        return run(lambda: files.json_merge(str(path), values, **arguments), **options)

    def test_new_again_and_taken_back(self, shared, folder):
        assert self.merge(shared, {"a": [1]}, dry=True).changed == [True]
        assert not shared.exists()
        assert self.merge(shared, {"a": [1]}).changed == [True]
        assert shared.read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
        assert mode_of(shared) == 0o644
        again = self.merge(shared, {"a": [1]})
        assert (again.changed, len(again.asked)) == ([False], 1)
        assert run(lambda: files.json_take_back(str(shared))).changed == [True]
        assert not shared.exists()
        assert run(lambda: files.json_take_back(str(shared))).changed == [False]

    def test_what_others_wrote_stays(self, shared, folder):
        shared.parent.mkdir()
        shared.write_text('{\n\t"theirs": {"x": 1},\n\t"a": [0]\n}')
        shared.chmod(0o640)
        self.merge(shared, {"a": [1], "b": True})
        assert (
            shared.read_text() == '{\n\t"theirs": {\n\t\t"x": 1\n\t},\n\t"a": [\n\t\t0,\n\t\t1\n\t],\n\t"b": true\n}\n'
        )
        assert mode_of(shared) == 0o640
        self.merge(shared, {"a": [2]})
        assert '"b"' not in shared.read_text()
        run(lambda: files.json_take_back(str(shared)))
        assert shared.read_text().split() == ["{", '"theirs":', "{", '"x":', "1", "},", '"a":', "[", "0", "]", "}"]

    def test_a_file_that_needs_no_change_keeps_its_layout(self, shared):
        shared.parent.mkdir()
        text = '{"a":   [1],"b": {  }}'
        shared.write_text(text)
        self.merge(shared, {"a": [1]})
        assert shared.read_text() == text

    def test_a_killed_run_is_completed(self, shared, folder):
        """The file is written before the record of it: whichever is missing, the next run ends the same."""
        self.merge(shared, {"a": [1]})
        (folder / "records" / "merged" / "shared").unlink()
        assert self.merge(shared, {"a": [1]}).changed == [True]
        run(lambda: files.json_take_back(str(shared)))
        assert not shared.exists()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('{\n  "a": 1,\n}\n', ":3:1: not valid JSON"),
            ("[]", "no JSON object"),
            ('{"a": 1, "a": 2}', "'a' is set twice"),
        ],
    )
    def test_a_damaged_file_is_left_alone(self, shared, text, said):
        shared.parent.mkdir()
        shared.write_text(text)
        result = self.merge(shared, {"a": 1})
        assert not result.ok
        assert f"{shared}{said}" in result.printed or f"{shared}: " in result.printed
        assert said in result.printed
        assert shared.read_text() == text

    def test_validate(self, shared):
        result = self.merge(shared, {"a": 1}, validate="grep -q nothing {path}")
        assert not result.ok
        assert not shared.exists()
