"""A real Headscale, control server and relay of a tailnet: of one test file, or of one molecule scenario."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import tarfile
import time
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import yaml

from boxwright.lab import tailnet
from boxwright.lab.progress import Progress

DOMAIN = "lab.internal"
# Platforms of the molecule scenario: where the control server runs, and how the tailnet calls the others.
CONTROL, NAMES = "molecule-control", {"molecule-tailnet": "llm", "molecule-laptop": "laptop"}


def free_port(address: str) -> int:
    """A TCP port of `address` that nobody listens on."""
    with socket.create_server((address, 0)) as server:
        return int(server.getsockname()[1])


class Control(ABC):
    """A Headscale that keeps everything in `folder` and listens on `address`, which boxes reach."""

    def __init__(self, program: PurePosixPath, folder: PurePosixPath, address: str, port: int, stun: int) -> None:
        self.program, self.folder = program, folder
        self.url = f"http://{address}:{port}"
        self.configuration = folder / "config.yaml"
        self.write(self.configuration, yaml.safe_dump(self._settings(address, port, stun)))
        self.start([str(program), "serve", "--config", str(self.configuration)])
        until = time.monotonic() + 60
        while self.run([str(program), "--config", str(self.configuration), "users", "list"])[0]:
            assert time.monotonic() < until, "Headscale does not answer"
            time.sleep(0.1)
        self("users", "create", "lab")

    @abstractmethod
    def start(self, command: list[str]) -> None:
        """The server, in the background."""

    @abstractmethod
    def run(self, command: list[str]) -> tuple[int, str]:
        """A command where the server is: exit status, and what it printed."""

    @abstractmethod
    def write(self, path: PurePosixPath, text: str) -> None:
        """A file where the server is."""

    def _settings(self, address: str, port: int, stun: int) -> dict[str, Any]:
        return {
            "server_url": self.url,
            "listen_addr": f"{address}:{port}",
            "metrics_listen_addr": "127.0.0.1:0",
            "grpc_listen_addr": "127.0.0.1:0",
            "noise": {"private_key_path": str(self.folder / "noise.key")},
            "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential"},
            "derp": {
                "server": {
                    "enabled": True,
                    "region_id": 999,
                    "region_code": "lab",
                    "region_name": "lab",
                    "stun_listen_addr": f"{address}:{stun}",
                    "private_key_path": str(self.folder / "derp.key"),
                    "automatically_add_embedded_derp_region": True,
                    "verify_clients": False,
                    "ipv4": address,
                },
                "urls": [],
                "paths": [],
                "auto_update_enabled": False,
            },
            "disable_check_updates": True,
            "database": {"type": "sqlite", "sqlite": {"path": str(self.folder / "db.sqlite")}},
            "log": {"level": "info", "format": "text"},
            "policy": {"mode": "database"},
            "dns": {
                "magic_dns": True,
                "base_domain": DOMAIN,
                "override_local_dns": False,
                "nameservers": {"global": []},
            },
            "unix_socket": str(self.folder / "socket"),
            "unix_socket_permission": "0700",
            "logtail": {"enabled": False},
        }

    def __call__(self, *arguments: str) -> Any:
        """What a command of Headscale answers."""
        code, said = self.run([str(self.program), "--config", str(self.configuration), "--output", "json", *arguments])
        assert code == 0, f"{arguments}: {said}"
        # What only does something says a sentence, in whatever format.
        return json.loads(said) if said[:1] in ("{", "[", "n") else None

    def key(self, *options: str) -> str:
        """A new auth key."""
        return str(self("preauthkeys", "create", "--user", "1", *options)["key"])

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The machines of the tailnet, by their names."""
        return {str(node["given_name"]): node for node in self("nodes", "list") or []}

    def policy(self, **policy: Any) -> None:
        """From now on this is the tailnet's policy."""
        path = self.folder / "policy.json"
        self.write(path, json.dumps(policy))
        self("policy", "set", "--file", str(path))


class Headscale(Control):
    """On this machine; `close` ends it."""

    def __init__(self, folder: Path, address: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = (folder / "log").open("w")
        self.process: subprocess.Popen[bytes] | None = None
        program = tailnet.build(tailnet.HEADSCALE, Progress()) / "headscale"
        try:
            super().__init__(program, folder, address, free_port(address), free_port(address))
        except BaseException:
            self.close()
            raise

    def start(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)

    def run(self, command: list[str]) -> tuple[int, str]:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout or done.stderr

    def write(self, path: PurePosixPath, text: str) -> None:
        Path(path).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """End it."""
        if self.process:
            self.process.terminate()
            self.process.wait(30)
        self.log.close()


class OnBox(Control):
    """On a lab box, with which it goes away."""

    def __init__(self, container: Any, address: str) -> None:
        self.container = container
        program = tailnet.build(tailnet.HEADSCALE, Progress()) / "headscale"
        folder = PurePosixPath("/var/lib/headscale")
        self._put(folder / "headscale", program.read_bytes(), 0o755)
        super().__init__(folder / "headscale", folder, address, 8080, 3478)

    def start(self, command: list[str]) -> None:
        code, said = self.run(["systemd-run", "--quiet", "--unit=headscale", *command])
        assert code == 0, said

    def run(self, command: list[str]) -> tuple[int, str]:
        done = self.container.exec_run(command, demux=True)
        out, err = (part.decode() if part else "" for part in done.output)
        return int(done.exit_code), out or err

    def write(self, path: PurePosixPath, text: str) -> None:
        self._put(path, text.encode(), 0o600)

    def _put(self, path: PurePosixPath, content: bytes, mode: int) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            entry = tarfile.TarInfo(str(path).removeprefix("/"))
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
        assert self.container.put_archive("/", packed.getvalue())


def main(lab: Path, inventory: Path) -> None:
    """For molecule: a tailnet for the boxes of the lab folder `lab`, and `inventory`, which has them all in it."""
    engine = docker.from_env(timeout=300)
    groups: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        tree = yaml.safe_load((lab / name / "hosts.yml").read_text(encoding="utf-8"))
        for group, found in tree["all"]["children"].items():
            groups.setdefault(group, {}).update(found["hosts"])
    boxes = groups["lab"]
    container = engine.containers.get(f"boxwright-{CONTROL}")
    control = OnBox(container, container.attrs["NetworkSettings"]["Networks"]["boxwright"]["IPAddress"])
    control.policy(tagOwners={"tag:llm": ["lab@"]}, acls=[{"action": "accept", "src": ["*"], "dst": ["*:*"]}])
    for name, called in NAMES.items():
        boxes[f"lab-{name}"] |= {
            "tailscale_login_server": control.url,
            "tailscale_auth_key": control.key("--tags", "tag:llm"),
            "tailscale_tags": ["tag:llm"],
            "tailscale_hostname": called,
            # The lab's own values lead past the tailnet.
            "gateway_bind": ["127.0.0.1"],
            "gateway_names": [boxes[f"lab-{name}"]["ansible_host"], f"{called}.{DOMAIN}"],
        }
    inventory.touch(mode=0o600)
    children = {group: {"hosts": hosts} for group, hosts in groups.items()}
    inventory.write_text(yaml.safe_dump({"all": {"children": children}}, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
