"""A double of a Mac as a whole box: its inventory, what Homebrew has there, and who asks it from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from kit import MODEL_ENTRY, ROOT, Done, Lab

from tests.doubles.macos import ROOT as DOUBLE
from tests.doubles.macos import MacDouble

PORT = 8443
TOKEN = "token-of-the-tests-0123456789"
NAME = "llm.example.com"
TUNNEL = "6ff42ae2-765d-4adf-8112-31c55c1551ef"
TUNNEL_SECRET = "c2VjcmV0LW9mLXRoZS10dW5uZWwtMTIzNDU2Nzg5MDE="
CREDENTIALS = json.dumps({"AccountTag": "account", "TunnelSecret": TUNNEL_SECRET, "TunnelID": TUNNEL})
QUESTION = {"model": "local-llm", "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 24}


class Studio:
    """The Mac, its inventory, and who asks it from outside."""

    def __init__(self, lab: Lab, mac: MacDouble, url: str) -> None:
        self.lab, self.mac = lab, mac
        self.variables: dict[str, Any] = {
            "gateway_names": [mac.address, NAME],
            "gateway_bind": ["0.0.0.0"],
            "gateway_port": PORT,
            "gateway_tokens": {"tests": TOKEN},
            "inference_models": [MODEL_ENTRY],
            "openwebui_enabled": False,
            "cloudflared_enabled": True,
            "cloudflared_credentials": CREDENTIALS,
            "mirror_url": url,
        }
        self.inventory = mac.inventory(**self.variables)

    def run(self, *command: str) -> Done:
        """A command pointed at it."""
        return self.lab.run(*command, inventory=self.inventory, timeout=600)

    def apply(self) -> list[str]:
        """What a run changes; it must succeed."""
        done = self.run("boxwright", "apply", "--json", "--no-check").expect()
        found: list[str] = done.json["hosts"][self.mac.name]["changed"]
        return found

    def settle(self) -> None:
        """After services were started without a run, one sees that they are ready, and then nothing changes."""
        assert {name.partition(": ")[2] for name in self.apply()} <= {"running", "watchdog running"}
        assert self.apply() == []

    def pid(self, service: str) -> int:
        """Number of its process; 0 where none runs."""
        found = re.findall(r"^\tpid = (\d+)$", self.mac.sh(f"launchctl print system/boxwright.{service}"), re.MULTILINE)
        return int(found[0]) if found else 0

    def http(self, method: str, path: str, token: str = "", **arguments: Any) -> requests.Response:
        """An answer to this machine, over HTTPS that is checked against the root certificate that a run fetched."""
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(self.lab.state / "ca" / f"{self.mac.name}.crt")
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            url = f"https://{self.mac.address}:{PORT}/{path}"
            return session.request(method, url, headers=headers, timeout=120, **arguments)

    def answers(self) -> bool:
        """Whether the model is listed with a token, and without one nothing is."""
        try:
            refused, listed = self.http("GET", "v1/models"), self.http("GET", "v1/models", TOKEN)
        except requests.RequestException:
            return False
        return refused.status_code == 401 and listed.status_code == 200 and "local-llm" in listed.text


def formulae(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """What Homebrew has there: name, version, and a folder as it is to lie in the Cellar."""
    python = folder / "python" / "bin"
    python.mkdir(parents=True)
    (python / "python3.13").symlink_to(f"{DOUBLE}/linux/bin/python3.13")
    yield "python@3.13", "3.13.5", python.parent
    tunnel = folder / "cloudflared" / "bin"
    tunnel.mkdir(parents=True)
    program = (ROOT / "tests/doubles/cloudflared/program.py").read_text(encoding="utf-8")
    (tunnel / "cloudflared").write_text(
        program.replace("#!/usr/bin/python3 -I", f"#!{DOUBLE}/linux/bin/python3 -ISB", 1)
    )
    (tunnel / "cloudflared").chmod(0o755)
    yield "cloudflared", "2026.8.2", tunnel.parent
