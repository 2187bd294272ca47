"""A double of a Mac as a whole box: its inventory, what Homebrew has there, and who asks it from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from kit import MODEL_ENTRY, ROOT, Lab
from mac_box import Client, MacBox

from tests.doubles.macos import ROOT as DOUBLE
from tests.doubles.macos import MacDouble

PORT = 8443
TOKEN = "token-of-the-tests-0123456789"
NAME = "llm.example.com"
TUNNEL = "6ff42ae2-765d-4adf-8112-31c55c1551ef"
TUNNEL_SECRET = "c2VjcmV0LW9mLXRoZS10dW5uZWwtMTIzNDU2Nzg5MDE="
CREDENTIALS = json.dumps({"AccountTag": "account", "TunnelSecret": TUNNEL_SECRET, "TunnelID": TUNNEL})
QUESTION = {"model": "local-llm", "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 24}


class Studio(MacBox):
    """The Mac, its inventory, and who asks it from outside."""

    def __init__(self, lab: Lab, mac: MacDouble, url: str) -> None:
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
        super().__init__(lab, mac, mac.inventory(**self.variables))
        self.client = Client(f"https://{mac.address}:{PORT}", lambda: (mac.address, PORT), self.root, TOKEN)

    def http(self, method: str, path: str, token: str = "", **arguments: Any) -> requests.Response:
        """An answer to this machine, by default to somebody without a token."""
        return self.client.http(method, path, token, **arguments)

    def answers(self) -> bool:
        """Whether the model is listed with a token, and without one nothing is."""
        return self.client.answers("local-llm")


def tunnel_formulae(folder: Path) -> Iterator[tuple[str, str, Path]]:
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
