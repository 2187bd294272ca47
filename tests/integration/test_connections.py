"""The ways to a box: every kind of login, a jump host, strict host keys, and a box that provisions itself."""

from __future__ import annotations

import hashlib
import io
import os
import pty
import select
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml
from kit import LIGHT, ROOT, Box, Done, Lab, eventually

pytestmark = pytest.mark.lab

CADDYFILE = "/etc/boxwright/caddy/Caddyfile"
REPAIRED = ["gateway: write the Caddyfile", "gateway: running"]


def password_of(box: Box) -> str:
    return (box.lab.state / "lab" / box.name / "secured_password").read_text(encoding="utf-8").strip()


def spoil(box: Box) -> None:
    """A drift whose repair needs root, a file written by standard input, and a reload."""
    box.settled = False
    box.sh(f"printf '# spoilt\\n' >>{CADDYFILE}; systemctl reload caddy")


@pytest.mark.parametrize("login", ["root", "operator", "secured"])
def test_a_login_of_each_kind_repairs_a_box(light: Box, login: str) -> None:
    more: dict[str, object] = {"ansible_become": None} if login == "root" else {}
    if login == "secured":
        more["ansible_become_password"] = password_of(light)
    inventory = light.with_variables(login, ansible_user=login, **more)
    spoil(light)
    assert light.changes(inventory) == REPAIRED
    assert light.changes(inventory) == []
    # The checks reach it by the same login.
    light.run("boxwright", "verify", "-k", "settings_are_for_the_gateway_alone", inventory=inventory).expect()


def test_a_sudo_password_that_is_missing_is_refused_without_a_terminal(light: Box) -> None:
    done = light.apply(inventory=light.with_variables("asks", ansible_user="secured"))
    assert done.code in (1, 2)
    assert "BW106" in done.text
    assert "ansible_become_password" in done.text
    assert "Traceback" not in done.text


def test_a_wrong_sudo_password_is_said(light: Box) -> None:
    wrong = light.with_variables("wrong", ansible_user="secured", ansible_become_password="not-the-word")
    done = light.apply(inventory=wrong)
    assert done.code in (1, 2)
    assert "BW105" in done.text
    assert "not-the-word" not in done.text


def test_a_sudo_password_is_asked_for_on_a_terminal(light: Box) -> None:
    inventory = light.with_variables("asks", ansible_user="secured")
    spoil(light)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execvpe("boxwright", ["boxwright", "apply", "--no-check"], light.lab.environment(inventory))
    said, answered = b"", False
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        said += piece
        if not answered and b"assword" in said:
            os.write(terminal, f"{password_of(light)}\n".encode())
            answered = True
    _, status = os.waitpid(child, 0)
    assert answered
    assert os.waitstatus_to_exitcode(status) == 0, said.decode()
    assert password_of(light).encode() not in said
    assert "# spoilt" not in light.sh(f"cat {CADDYFILE}")


def test_through_a_jump_host(light: Box, full: Box) -> None:
    public = (light.lab.state / "lab" / light.name / "id_ed25519.pub").read_text(encoding="utf-8")
    folder = light.lab.folder
    keys = [(light.lab.state / "lab" / box.name / "known_hosts").read_text(encoding="utf-8") for box in (light, full)]
    (folder / "both_known_hosts").write_text("".join(keys), encoding="utf-8")
    home = "/home/operator/.ssh/authorized_keys"
    before = full.sh(f"cat {home}")
    full.sh(f"printf '%s' '{public}' >>{home}")
    try:
        arguments = f"-o UserKnownHostsFile={folder / 'both_known_hosts'} -J operator@{full.address}"
        inventory = light.with_variables("jump", ansible_ssh_common_args=arguments)
        spoil(light)
        assert light.changes(inventory) == REPAIRED
        # sshd of the box says where the login came from.
        accepted = light.sh(
            "journalctl --quiet --output=cat --unit=ssh | grep 'Accepted publickey for operator' | tail -n 1"
        )
        assert f"from {full.address} " in accepted
        # A hop whose key is not known is refused like any other machine.
        target_only = light.lab.state / "lab" / light.name / "known_hosts"
        arguments = f"-o UserKnownHostsFile={target_only} -J operator@{full.address}"
        refused = light.apply(inventory=light.with_variables("unknown-hop", ansible_ssh_common_args=arguments))
        assert refused.code == 1
        assert "BW101" in refused.text
        assert full.address in refused.text
    finally:
        full.sh(f"cat >{home} <<'END'\n{before}END")


def test_an_unknown_host_key_is_an_error_that_says_what_to_do(light: Box) -> None:
    empty = light.lab.folder / "empty_known_hosts"
    empty.write_text("", encoding="utf-8")
    inventory = light.with_variables("unknown", ansible_ssh_common_args=f"-o UserKnownHostsFile={empty}")
    done = light.apply(inventory=inventory)
    assert done.code == 1
    assert "BW101" in done.text
    assert f"ssh-keyscan {light.address}" in done.text or "ssh-keyscan" in done.text
    assert empty.read_text(encoding="utf-8") == ""
    plain = light.run("pyinfra", "inventory.py", "deploys/stack.py", "--dry", inventory=inventory)
    assert plain.code == 1
    assert "ssh-keyscan" in plain.text
    assert "Traceback" not in plain.text


def test_a_changed_host_key_is_refused(light: Box, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    key = " ".join((tmp_path / "other.pub").read_text(encoding="utf-8").split()[:2])
    (tmp_path / "known_hosts").write_text(f"{light.address} {key}\n", encoding="utf-8")
    inventory = light.with_variables(
        "changed", ansible_ssh_common_args=f"-o UserKnownHostsFile={tmp_path / 'known_hosts'}"
    )
    done = light.apply(inventory=inventory)
    assert done.code == 1
    assert "BW102" in done.text
    assert "Traceback" not in done.text


def wheels_for_the_box(box: Box) -> Path:
    """A folder with the control machine's packages for the Python of the box; kept in the user's cache by content."""
    version = box.sh("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").strip()
    lock = ROOT / "requirements.lock"
    digest = hashlib.sha256(lock.read_bytes() + version.encode()).hexdigest()[:16]
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "boxwright" / "tests" / f"wheels-{digest}"
    )
    if not cache.is_dir():
        new = cache.with_name(f"{cache.name}.{os.getpid()}")
        new.mkdir(parents=True)
        # Markers are read for this machine's Python, so exact names are given for that of the box.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--python-version", version, "--dest", str(new), *pins(lock, version)]
        subprocess.run(command, check=True, timeout=600)
        new.rename(cache)
    return cache


def pins(lock: Path, version: str) -> list[str]:
    """`name==version` of every line of the lock file that counts for Python `version` on Linux."""
    from packaging.requirements import Requirement

    environment = {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": "linux"}
    lines = [line.rstrip(" \\") for line in lock.read_text(encoding="utf-8").splitlines() if line[:1].isalpha()]
    required = [Requirement(line) for line in lines]
    return [f"{r.name}{r.specifier}" for r in required if r.marker is None or r.marker.evaluate(environment)]


def copy(box: Box, files: dict[str, Path], to: str) -> None:
    """Put files of this machine, by their names there, below the folder `to` of the box."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, path in files.items():
            archive.add(path, arcname=f"{to.lstrip('/')}/{name}", recursive=False)
    assert box.container.put_archive("/", buffer.getvalue())


def test_a_box_that_provisions_itself(lab: Lab) -> None:
    box = lab.up("self", LIGHT)
    box.sh("apt-get -qq update && apt-get -qq install -y --no-install-recommends python3 python3-venv >/dev/null")
    wheels = wheels_for_the_box(box)
    copy(box, {path.name: path for path in wheels.iterdir()}, "/opt/control/wheels")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    tracked = {name: ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    copy(box, tracked, "/opt/control/boxwright")
    variables = {name: value for name, value in box.variables.items() if not name.startswith("ansible_")}
    variables |= {"ansible_connection": "local", "gateway_names": ["127.0.0.1"], "gateway_bind": ["127.0.0.1"]}
    inventory = {"all": {"children": {"lab": {"hosts": {"itself": variables}}}}}
    box.put("/opt/control/boxwright/inventory/hosts.yml", yaml.safe_dump(inventory))
    box.sh(
        "cd /opt/control/boxwright && python3 -m venv .venv && .venv/bin/pip install --quiet --no-index "
        "--find-links ../wheels --no-deps ../wheels/*.whl && "
        ".venv/bin/pip install --quiet --no-index --no-deps --no-build-isolation -e ."
    )

    def boxwright(*arguments: str) -> Done:
        command = ["sh", "-c", f"cd /opt/control/boxwright && .venv/bin/boxwright {' '.join(arguments)}"]
        code, (out, err) = box.container.exec_run(command, demux=True)
        return Done(("boxwright", *arguments), code, (out or b"").decode(), (err or b"").decode(), 0)

    # The door is open to the box alone; the command asks it from there and finds it good.
    boxwright("apply").expect()
    assert boxwright("apply", "--json", "--no-check").expect().json["changed"] == 0
    refused = "curl --silent --output /dev/null --write-out '%{http_code}' --cacert"
    ca = "/root/.local/state/boxwright/ca/itself.crt"
    assert box.sh(f"{refused} {ca} https://127.0.0.1/v1/models") == "401"
    eventually("the box verifies itself", lambda: boxwright("verify", "-k", "gateway").code == 0)
