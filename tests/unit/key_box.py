"""A box behind a real SSH server on loopback, and `boxwright key`, or another command, for it in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from boxwright import cli
from boxwright.errors import BoxwrightError
from tests.unit.admin_api import SECRET

HERE = Path(__file__).parent
LOGIN = "login-word-of-the-box"
HOST = """
      ansible_host: 127.0.0.1
      ansible_port: {ssh.port}
      ansible_user: operator
      ansible_ssh_private_key_file: {ssh.folder}/key
      ansible_ssh_common_args: -F none -o UserKnownHostsFile={ssh.folder}/known_hosts
      gateway_names: [llm.test]
      inference_models: [{{name: m, url: "https://models.test/one.gguf", sha256: {sha}, size: 98362432}}]
      api_port: {port}
      api_admin_secret: {secret}
"""


class Run:
    """A command that ended."""

    def __init__(self, code: int, out: str, err: str, problems: tuple[Any, ...] = ()) -> None:
        self.code, self.out, self.err, self.problems = code, out, err, problems
        assert SECRET not in out + err
        assert not any(SECRET in f"{problem.message}{problem.help}" for problem in problems)

    def json(self) -> Any:
        return json.loads(self.out)


class Ssh:
    """A running SSH server on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        (folder / "authorized.pub").write_text((folder / "key.pub").read_text())
        self.process = subprocess.Popen(
            [sys.executable, HERE / "ssh_server.py", folder, "--password", LOGIN], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        key = " ".join((folder / "host_key.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n")


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    server = Ssh(tmp_path_factory.mktemp("ssh"))
    yield server
    server.process.kill()
    server.process.communicate()


class Here:
    """The command in this process."""

    def __init__(
        self, folder: Path, ssh: Ssh, port: int, capfd: pytest.CaptureFixture[str], command: str = "key"
    ) -> None:
        self.command = command
        self.inventory, self.ssh, self.port, self.capfd = folder / "hosts.yml", ssh, port, capfd
        self.write()

    def host(self, secret: str = SECRET, enabled: str = "true", more: str = "") -> str:
        text = HOST.format(ssh=self.ssh, sha="ab" * 32, port=self.port, secret=secret)
        return f"{text}      api_enabled: {enabled}\n{more}"

    def write(self, **variables: str) -> None:
        self.inventory.write_text(f"linux:\n  hosts:\n    box:{self.host(**variables)}")

    def __call__(self, *arguments: str) -> Run:
        code, problems = 0, ()
        self.capfd.readouterr()
        try:
            cli.cli.main([self.command, *arguments], standalone_mode=False)
        except BoxwrightError as failed:
            code, problems = failed.exit_code, failed.problems
        except click.ClickException as wrong:
            code = wrong.exit_code
            wrong.show()
        except click.Abort:
            code = 130
        out, err = self.capfd.readouterr()
        return Run(code, out, err, problems)
