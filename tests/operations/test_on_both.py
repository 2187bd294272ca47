"""The general operations on a Debian and on a Mac: the same is asked for, and the same becomes of it.

The Mac is a double (tests/doubles/macos). What is read back is read with `ls`, which both systems have.
"""

import hashlib
import io
import re
import shlex
import tarfile
import zipfile
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from harness import run
from machine import Machine
from pyinfra import host

from boxwright.artifacts import Download, MirrorSettings, Wheel, requirements
from boxwright.operations import archives, files, python_packages, system
from boxwright.preflight import MachineFact, Need, examine
from tests.doubles.macos import ROOT, MacDouble

pytestmark = pytest.mark.lab

TEXT = "first line\n\"quotes\" and 'quotes' $HOME `id` \\n %s\nlast line with ü\n"
FOLDER = "/opt/a 'quoted' $HOME `id` ü;*"

# Serves /srv/web on loopback, whole files and their ends, and lists folders; both systems have perl.
WEB = r"""
use strict; use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8077, Listen => 5, ReuseAddr => 1) or die;
while (my $client = $server->accept) {
    my ($path) = (<$client> // '') =~ m{^GET (\S*)};
    my ($start, $status) = (0, '200 OK');
    while (<$client>) { $start = $1 if /^Range: bytes=(\d+)-/i; last if /^\r?$/ }
    my ($file, $text) = ('/srv/web' . ($path // ''), '');
    if (-d $file) { opendir(my $d, $file); $text .= "<a href=\"$_\">$_</a>\n" for grep { !/^\./ } readdir($d) }
    elsif (open(my $f, '<:raw', $file)) { local $/; $text = <$f> }
    else { $status = '404 Not Found' }
    my $type = -d $file ? 'text/html' : 'application/octet-stream';
    my ($size, $last) = (length($text), length($text) - 1);
    if ($start) { $status = '206 Partial Content'; $type .= "\r\nContent-Range: bytes $start-$last/$size" }
    $text = substr($text, $start) if $start;
    my $length = length($text);
    print $client "HTTP/1.1 $status\r\nContent-Type: $type\r\nContent-Length: $length\r\n";
    print $client "Connection: close\r\n\r\n$text";
    close($client);
}
"""


@dataclass
class Target:
    """A machine, and what its system calls things."""

    machine: Any
    root_group: str
    python: str

    @property
    def system(self):
        return self.machine.system

    def run(self, deploy, **options):
        return self.machine.run(deploy, **options)

    def sh(self, text, *words):
        """What a script prints, errors included; the words are its $1, $2, ..."""
        return self.machine.sh(f"sh -c {shlex.quote(text)} sh {shlex.join(words)}")

    def put(self, path, content):
        self.machine.put(path, content)

    def ls(self, path):
        """Mode as letters, owner and group of a path, links not followed."""
        mode, _, owner, group = self.sh('ls -ld -- "$1"', path).split()[:4]
        return f"{mode[:10]} {owner}:{group}"

    def inode(self, path):
        return self.sh('ls -id -- "$1"', path).split()[0]

    def names(self, path):
        return self.sh('ls -A -- "$1"', path).split("\n")[:-1]

    def text(self, path):
        return self.sh('cat -- "$1"', path)


@pytest.fixture(scope="module", params=["linux", "darwin"])
def target(request):
    if request.param == "linux":
        found = Target(Machine(), "root", "/usr/bin/python3")
        found.sh("apt-get update --quiet=2; apt-get install --quiet=2 --assume-yes python3-venv tzdata")
    else:
        found = Target(MacDouble(), "wheel", f"{ROOT}/linux/bin/python3")
    found.sh("mkdir -p /srv/web /opt 2>/dev/null || mkdir -p /private/srv/web")
    yield found
    found.machine.close()


@pytest.fixture
def folder(target):
    """A folder whose name a careless command would trip over."""
    target.sh('rm -rf -- "$1"; mkdir -p -- "$1"', FOLDER)
    return FOLDER


class TestContent:
    def write(self, target, path, text=TEXT, **arguments):
        options = {key: arguments.pop(key) for key in ("dry", "diff") if key in arguments}
        return target.run(lambda: files.content(path=path, text=text, **arguments), **options)

    @pytest.mark.parametrize("text", [TEXT, "", "no final line break", "x" * 100_000 + "\n"])
    def test_again_changes_nothing(self, target, folder, text):
        path = f"{folder}/-file name.conf"
        assert self.write(target, path, text, dry=True).changed == [True]
        assert target.names(folder) == []
        first = self.write(target, path, text, mode="0640")
        assert first.changed == [True], first.printed
        assert target.text(path) == text
        assert target.ls(path) == f"-rw-r----- root:{target.root_group}"
        again = self.write(target, path, text, mode="0640")
        assert (again.changed, len(again.asked)) == ([False], 1)
        assert target.names(folder) == ["-file name.conf"], "something was left beside it"

    def test_only_what_drifted_changes(self, target, folder):
        path = f"{folder}/x"
        self.write(target, path)
        was = target.inode(path)
        target.sh('chmod 4666 "$1"; chown daemon:daemon "$1"', path)
        assert self.write(target, path).changed == [True]
        assert (target.ls(path), target.inode(path)) == (f"-rw-r--r-- root:{target.root_group}", was)
        assert self.write(target, path, group="daemon", user="daemon", mode="0600").changed == [True]
        assert (target.ls(path), target.inode(path)) == ("-rw------- daemon:daemon", was)
        target.sh('echo by hand >>"$1"', path)
        assert self.write(target, path).changed == [True]
        assert target.text(path) == TEXT

    def test_an_owner_that_there_is_not(self, target, folder):
        assert not self.write(target, f"{folder}/x", user="nobody-of-that-name").ok
        assert target.names(folder) == []

    def test_a_link_is_replaced_and_what_it_points_to_stays(self, target, folder):
        target.sh('cd "$1"; echo precious >target; chmod 0644 target; ln -s target x; mkdir full; ln -s full y', folder)
        for name in ("x", "y"):
            assert self.write(target, f"{folder}/{name}", mode="0600").changed == [True]
            assert target.ls(f"{folder}/{name}") == f"-rw------- root:{target.root_group}"
        assert target.text(f"{folder}/target") == "precious\n"
        assert target.ls(f"{folder}/target")[:10] == "-rw-r--r--"
        assert target.names(f"{folder}/full") == []

    def test_what_is_in_the_way(self, target, folder):
        target.sh('mkdir "$1/x"', folder)
        assert f"cannot write {folder}/x: a folder is in its place" in self.write(target, f"{folder}/x").printed
        missing = self.write(target, f"{folder}/none/x", "x" * 300_000)
        assert f"the folder {folder}/none does not exist" in missing.printed

    def test_validate(self, target, folder):
        path = f"{folder}/my.service"
        self.write(target, path, "good\n")
        refused = self.write(
            target, path, "bad\n", validate="grep -q good {path} || { echo no good in it >&2; exit 3; }"
        )
        assert not refused.ok
        assert "no good in it" in refused.printed
        assert (target.text(path), target.names(folder)) == ("good\n", ["my.service"])
        assert self.write(target, path, "very good\n", validate="grep -q good {path}").changed == [True]

    def test_difference(self, target, folder):
        self.write(target, f"{folder}/x", "one\n")
        assert "+two" in self.write(target, f"{folder}/x", "two\n", diff=True).printed

    def middle(self, target, folder, what, text="a secret " * 2000, **arguments):
        """Writes `x` while `what` is done in the folder after the first half of the text has arrived."""
        script = """
            cd "$1" || exit 1
            script=$2 half=$3
            shift 3
            rm -f /tmp/in; mkfifo /tmp/in
            sh -c "$script" boxwright "$@" </tmp/in & writer=$!
            exec 4>/tmp/in
            head -c "$half" /tmp/text >&4
            until ls -A | grep -q '^[.]boxwright-'; do sleep 0.1; done
            {what}
            tail -c +"$((half + 1))" /tmp/text >&4
            exec 4>&-
            wait "$writer"
        """.replace("{what}", what)
        said = []

        def answer(asked):
            if not asked.stdin:
                return target.machine.answer(asked)
            target.put("/tmp/text", asked.stdin.encode())
            said.append(target.sh(script, folder, asked.text, str(len(text) // 2), *asked.arguments))
            return True, []

        run(lambda: files.content(f"{folder}/x", text, **arguments), answer, system=target.system)
        return said[0]

    def test_nobody_else_can_read_it_at_any_moment(self, target, folder):
        seen = self.middle(target, folder, "umask 000; ls -l .boxwright-* .", mode="0640", group="daemon")
        modes = [line.split()[0][:10] for line in seen.splitlines() if ".boxwright-" in line]
        assert modes
        assert set(modes) == {"-rw-------"}
        assert target.ls(f"{folder}/x") == "-rw-r----- root:daemon"
        assert target.text(f"{folder}/x") == "a secret " * 2000

    def test_a_link_put_in_the_place_of_the_new_file_is_not_followed(self, target, folder):
        """As whoever owns the folder could do: neither text, owner nor mode must reach what it points to."""
        target.sh('echo precious >"$1/target"; chmod 0600 "$1/target"', folder)
        replaced = 'new=$(ls -A | grep "^[.]boxwright-"); rm -f "$new"; ln -s target "$new"'
        self.middle(target, folder, replaced, mode="0666", user="daemon", group="daemon")
        assert target.text(f"{folder}/target") == "precious\n"
        assert target.ls(f"{folder}/target") == f"-rw------- root:{target.root_group}"

    def test_a_text_that_arrives_incomplete_replaces_nothing(self, target, folder):
        target.sh('echo old >"$1/x"', folder)
        assert "arrived incomplete" in self.middle(target, folder, ": >/tmp/text")
        assert (target.text(f"{folder}/x"), target.names(folder)) == ("old\n", ["x"])

    def test_a_link_put_in_the_place_of_an_old_file_is_not_followed(self, target, folder):
        """As whoever owns the folder could do between the look at it and the change."""
        target.sh('cd "$1"; echo precious >target; chmod 0600 target; ln -s target x', folder)
        state = f"regular file|root|{target.root_group}|600|{len(TEXT)}|{hashlib.sha256(TEXT.encode()).hexdigest()}"
        states = [[state]]

        def answer(asked):
            return (True, states.pop()) if states else target.machine.answer(asked)

        result = run(lambda: files.content(f"{folder}/x", TEXT, mode="0666"), answer, system=target.system)
        assert "was exchanged for something else" in result.printed
        assert target.ls(f"{folder}/target") == f"-rw------- root:{target.root_group}"

    def test_what_a_killed_run_left_goes_when_it_is_old(self, target, folder):
        old, young, other = (f".boxwright-{number:016x}.{name}" for number, name in ((1, "x"), (2, "x"), (3, "other")))
        target.sh('cd "$1"; touch "$2" "$3" "$4"; touch -t 202001010000 "$2" "$4"', folder, old, young, other)
        self.write(target, f"{folder}/x")
        assert sorted(target.names(folder)) == sorted([young, other, "x"])


class TestFolders:
    def test_made_and_repaired(self, target, folder):
        def make():
            return target.run(lambda: files.directory(f"{folder}/one/two", group="daemon", mode="0750"))

        first = make()
        assert first.changed == [True], first.printed
        assert target.ls(f"{folder}/one/two") == "drwxr-x--- root:daemon"
        assert target.ls(f"{folder}/one") == f"drwxr-xr-x root:{target.root_group}"
        assert make().changed == [False]
        target.sh('touch "$1/one/two/kept"; chmod 1777 "$1/one/two"', folder)
        assert make().changed == [True]
        assert target.ls(f"{folder}/one/two") == "drwxr-x--- root:daemon"
        assert target.names(f"{folder}/one/two") == ["kept"]

    def test_something_else_in_the_way(self, target, folder):
        target.sh('cd "$1"; touch file; ln -s . link', folder)
        for name in ("file", "link"):
            result = target.run(lambda name=name: files.directory(f"{folder}/{name}"))
            assert f"should be a folder, but it is a {name}" in result.printed

    def test_absent(self, target, folder):
        def remove(name, **arguments):
            return target.run(lambda: files.absent(f"{folder}/{name}", **arguments))

        target.sh('cd "$1"; touch -- -file keep; ln -s keep link; ln -s none broken; mkdir -p empty full/deep', folder)
        target.sh('ln -s "$1" "$1/full/deep/link"', folder)
        for name in ("-file", "link", "broken", "empty"):
            assert remove(name).changed == [True], name
            assert remove(name).changed == [False]
        assert not remove("full").ok
        assert remove("full", recursive=True).changed == [True]
        assert remove("full", recursive=True).changed == [False]
        assert target.names(folder) == ["keep"]

    def test_several_files_and_all_but_some(self, target, folder):
        target.sh('cd "$1"; touch one three keep keep.sha256 other; mkdir -p many; touch many/x', folder)

        def gone():
            return target.run(lambda: files.files_absent([f"{folder}/{name}" for name in ("one", "two", "three")]))

        def only():
            return target.run(lambda: files.only(folder, [f"{folder}/keep"]))

        for step in (gone, only):
            assert step().changed == [True]
            assert step().changed == [False]
        assert sorted(target.names(folder)) == ["keep", "keep.sha256"]
        assert target.run(lambda: files.only(f"{folder}/none", [])).changed == [False]


class TestJson:
    def test_merged_and_taken_back(self, target):
        path = "/etc/boxwright-test/shared.json"
        target.sh("rm -rf /etc/boxwright-test")

        def merge(values):
            return target.run(lambda: files.json_merge(path, values))

        assert merge({"a": [1]}).changed == [True]
        assert target.text(path) == '{\n  "a": [\n    1\n  ]\n}\n'
        assert target.ls(path) == f"-rw-r--r-- root:{target.root_group}"
        again = merge({"a": [1]})
        assert (again.changed, len(again.asked)) == ([False], 1)
        target.put(path, b'{"theirs": 1, "a": [1]}')
        target.sh("chmod 0640 /etc/boxwright-test/shared.json; chown daemon:daemon /etc/boxwright-test/shared.json")
        assert merge({"a": [2]}).changed == [True]
        assert target.ls(path) == "-rw-r----- daemon:daemon"
        assert target.run(lambda: files.json_take_back(path)).changed == [True]
        assert "".join(target.text(path).split()) == '{"theirs":1}'
        assert target.run(lambda: files.json_take_back(path)).changed == [False]


@pytest.fixture(scope="module")
def web(target):
    """Files that are served on the machine itself."""
    web = "/srv/web"
    target.sh(f"mkdir -p {web}/wheels")
    if "No such" in target.sh(f"ls -d {web}"):
        pytest.fail("no folder for the web server")
    target.put("/tmp/web.pl", WEB.encode())
    target.sh(
        "perl /tmp/web.pl >/dev/null 2>&1 </dev/null & "
        "until curl --silent --output /dev/null http://127.0.0.1:8077/; do sleep 0.2; done"
    )
    return "http://127.0.0.1:8077"


class TestDownloads:
    BODY = bytes(range(256)) * 400

    def artifact(self, web, body=BODY, **changes):
        digest = hashlib.sha256(body).hexdigest()
        return Download(**{"name": "the file", "url": f"{web}/file", "sha256": digest, "size": len(body), **changes})

    def fetch(self, target, folder, artifact, **arguments):
        return target.run(lambda: files.download(f"{folder}/file", artifact, **arguments))

    def test_fetched_once(self, target, folder, web):
        target.put("/srv/web/file", self.BODY)
        artifact = self.artifact(web)
        first = self.fetch(target, folder, artifact)
        assert first.changed == [True], first.printed
        assert target.ls(f"{folder}/file") == f"-rw-r--r-- root:{target.root_group}"
        assert target.sh('cksum <"$1"; cksum </srv/web/file', f"{folder}/file").splitlines()[0] in target.sh(
            "cksum </srv/web/file"
        )
        again = self.fetch(target, folder, artifact)
        assert (again.changed, len(again.asked)) == ([False], 1)
        assert self.fetch(target, folder, artifact, mode="0600", group="daemon").changed == [True]
        assert self.fetch(target, folder, artifact, mode="0600", group="daemon").changed == [False]
        target.sh('printf x >>"$1"', f"{folder}/file")
        assert self.fetch(target, folder, artifact).changed == [True]
        assert self.fetch(target, folder, artifact).changed == [False]
        assert target.run(lambda: files.download_absent(f"{folder}/file")).changed == [True]
        assert target.names(folder) == []

    def test_what_arrived_of_it_is_continued(self, target, folder, web):
        target.put("/srv/web/file", self.BODY)
        target.sh('head -c 1000 /srv/web/file >"$1/file.part"', folder)
        assert self.fetch(target, folder, self.artifact(web)).changed == [True]
        assert sorted(target.names(folder)) == ["file", "file.sha256"]

    def test_sha512(self, target, folder, web):
        target.put("/srv/web/file", self.BODY)
        artifact = self.artifact(web, sha256="", sha512=hashlib.sha512(self.BODY).hexdigest())
        assert self.fetch(target, folder, artifact).changed == [True]
        assert self.fetch(target, folder, artifact).changed == [False]

    def test_another_digest_is_never_used(self, target, folder, web):
        target.put("/srv/web/file", self.BODY)
        result = self.fetch(target, folder, self.artifact(web, sha256="0" * 64))
        assert "the file has the wrong checksum and was not used" in result.printed
        assert target.names(folder) == []

    def test_more_than_the_disk_has(self, target, folder, web):
        result = self.fetch(target, folder, self.artifact(web, size=2**60))
        assert "it needs 1152921504606846976 bytes" in result.printed

    def test_two_runs_at_once(self, target, folder, web):
        """The second waits for the first, and then has nothing to fetch."""
        target.put("/srv/web/file", self.BODY)
        asked = []

        def twice(each):
            asked.append(each)
            if "curl" not in each.text:
                return target.machine.answer(each)
            arguments = shlex.join(["sh", "-c", each.text, "boxwright", *each.arguments])
            target.sh(
                'exec 9<"$1"; perl -e "use Fcntl q(:flock); flock(STDIN, LOCK_EX); sleep 2" <&9 & sleep 0.5; exec 9<&-',
                folder,
            )
            said = target.machine.sh(f"{arguments} </dev/null; echo ended $?")
            assert "another run is fetching into" in said
            assert "ended 0" in said
            return True, []

        result = run(lambda: files.download(f"{folder}/file", self.artifact(web)), twice, system=target.system)
        assert result.changed == [True], result.printed


class TestArchives:
    def packed(self, program):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path, data, bits in (("bin/tool", program, 0o755), ("lib/data", b"data", 0o666)):
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode, entry.uid = len(data), bits, 4711
                archive.addfile(entry, io.BytesIO(data))
        return buffer.getvalue()

    def test_unpacked_once(self, target, folder, web):
        data = self.packed(b"#!/bin/sh\necho one\n")
        target.put("/srv/web/tool.tgz", data)
        digest = hashlib.sha256(data).hexdigest()
        artifact = Download(name="the tool", url=f"{web}/tool.tgz", sha256=digest, size=len(data))
        path = f"{folder}/1.0-0123456789ab"

        def unpack():
            return target.run(lambda: archives.unpacked(path, artifact, "bin/tool"))

        first = unpack()
        assert first.changed == [True], first.printed
        assert target.sh('"$1/bin/tool"', path) == "one\n"
        assert target.ls(f"{path}/lib/data") == f"-rw-r--r-- root:{target.root_group}"
        assert target.names(folder) == ["1.0-0123456789ab"]
        again = unpack()
        assert (again.changed, len(again.asked)) == ([False], 1)
        target.sh('touch "$1/litter"; chmod 0700 "$1/bin/tool"', path)
        assert unpack().changed == [True]
        assert sorted(target.names(path)) == [".boxwright-complete", "bin", "lib"]
        target.sh('cd "$1"; mkdir -p 0.9-0123456789ab 1.1-0123456789ab.new data', folder)
        assert target.run(lambda: archives.prune(folder, [path])).changed == [True]
        assert target.run(lambda: archives.prune(folder, [path])).changed == [False]
        assert sorted(target.names(folder)) == ["1.0-0123456789ab", "data"]


class TestVirtualEnvironments:
    @pytest.fixture
    def wheel(self, target, web):
        """A package `sample` that prints its version."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("sample.py", "def main(): print('sample one')\n")
            archive.writestr("sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n")
            archive.writestr(
                "sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr("sample-1.0.dist-info/entry_points.txt", "[console_scripts]\nsample = sample:main\n")
            archive.writestr("sample-1.0.dist-info/RECORD", "")
        target.put("/srv/web/wheels/sample-1.0-py3-none-any.whl", packed.getvalue())
        return Wheel(
            name="sample", version="1.0", sha256={"any": hashlib.sha256(packed.getvalue()).hexdigest()}, licence="MIT"
        )

    def test_made_once_and_repaired(self, target, web, wheel):
        base, text = "/opt/a folder/sample", requirements([wheel])
        path = python_packages.venv_path(base, text, target.python)

        def venv():
            return target.run(lambda: python_packages.venv(base, text, MirrorSettings(url=web), target.python))

        first = venv()
        assert first.changed == [True], first.printed
        assert target.sh('"$1/bin/sample"', path) == "sample one\n"
        again = venv()
        assert (again.changed, len(again.asked)) == ([False], 1)
        target.sh('echo 3.1 x >"$1/.boxwright-complete"; touch "$1/litter"', path)
        assert venv().changed == [True]
        assert "litter" not in target.names(path)
        target.sh('mkdir "$1/0123456789abcdef"', base)
        assert target.run(lambda: python_packages.prune(base, [path])).changed == [True]
        assert target.names(base) == [path.rpartition("/")[2]]

    def test_no_such_python(self, target):
        result = target.run(lambda: python_packages.venv("/opt/other", "x==1\n", None, "/opt/none/python3"))
        assert "/opt/none/python3 is not installed on this box" in result.printed


def test_the_time_zone(target):
    for zone, offset in (("Asia/Tokyo", "+0900"), ("Etc/UTC", "+0000")):
        result = target.run(lambda zone=zone: system.timezone(zone))
        assert result.ok, result.printed
        assert target.run(lambda zone=zone: system.timezone(zone)).changed == [False]
        assert target.sh("date +%z").strip() == offset
    result = target.run(lambda: system.timezone("Europe/Nowhere"))
    assert "Europe/Nowhere is not in /usr/share/zoneinfo" in result.printed


def test_a_host_of_another_project_is_asked_what_it_runs(target, folder):
    def write():
        return target.run(lambda: files.content(f"{folder}/x", TEXT), system=None)

    assert write().changed == [True]
    assert write().changed == [False]
    assert target.ls(f"{folder}/x") == f"-rw-r--r-- root:{target.root_group}"


def examined(target):
    """The machine as the preflight sees it."""
    found = []
    target.run(lambda: found.append(host.get_fact(MachineFact, files=("/etc/hosts", "/etc/none"))))
    return found[0]


def test_what_the_preflight_sees(target):
    machine = examined(target)
    assert machine.kernel == {"linux": "Linux", "darwin": "Darwin"}[target.system]
    assert machine.distribution == {"linux": "debian", "darwin": "macos"}[target.system]
    assert re.fullmatch(r"[\d.]+", machine.release)
    assert machine.memory > 2**30
    assert machine.disk_free > 2**20
    assert machine.files == {"/etc/hosts"}
    assert abs(machine.clock_offset) < 30
    assert examine(machine, Need(), target.system) == []
    other = {"linux": "darwin", "darwin": "linux"}[target.system]
    assert [problem.code for problem in examine(machine, Need(), other)] == ["BW121"]
    if target.system == "darwin":
        assert (machine.chip, machine.filevault, machine.translated) == ("Apple M2 Max", "off", False)
        assert 22 in machine.listeners


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rosetta": True}, "translated by Rosetta"),
        ({"chip": "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz"}, "another processor than Apple's (x86_64)"),
    ],
)
def test_a_mac_that_is_refused(target, options, said):
    if target.system == "linux":
        pytest.skip("a Mac's")
    before = target.machine.options
    target.machine.set(**options)
    try:
        (problem,) = examine(examined(target), Need(), "darwin")
    finally:
        target.machine.set(**asdict(before))
    assert problem.code == "BW110"
    assert said in problem.message


def test_filevault(target):
    if target.system == "linux":
        pytest.skip("a Mac's")
    target.machine.set(filevault=True)
    assert examined(target).filevault == "on"
    target.machine.set(filevault=False)
    assert examined(target).filevault == "off"
