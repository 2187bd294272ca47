#!@PYTHON@ -ISB
"""Tailscale's command: keeps one object, and says it in the form of Tailscale 1.98. See the package."""

import json
import sys
from pathlib import Path

PLACE = Path("@KEPT@")
# The flags of `up` and `set` that are kept, and what ipn.Prefs calls them.
NAMES = {"ssh": "RunSSH", "hostname": "Hostname"}
# As the policy of the tailnet allows: HTTPS certificates, and Funnel on its three ports.
CAPABILITIES = {"https": None, "funnel": None, "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000": None}


def begin():
    """What is kept of a machine that is in no tailnet."""
    return {"up": False, "prefs": {}, "serve": {}, "said": [], "key": ""}


def name_of(kept):
    """Its full name in the tailnet."""
    return f"{kept['prefs'].get('Hostname') or 'studio'}.@TAILNET@"


def status(kept):
    """As ipnstate.Status."""
    own = {"DNSName": f"{name_of(kept)}.", "CapMap": CAPABILITIES, "Tags": ["tag:llm"], "TailscaleIPs": ["100.64.0.1"]}
    state = "Running" if kept["up"] else "NeedsLogin"
    return {"BackendState": state, "Self": own, "CertDomains": [name_of(kept)], "Health": []}


def do(kept, words):
    """A command that changes something."""
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    kept["said"].append([word for word in words if "auth-key" not in word])
    if words[0] == "up" and "auth-key" in options:
        path = Path(options["auth-key"].removeprefix("file:"))
        kept.update(up=True, key=path.read_text().strip(), mode=oct(path.stat().st_mode & 0o777))
    elif words[0] == "up":
        kept["up"] = True
    elif words[0] == "logout":
        kept["up"] = False
    if words[0] in ("up", "set"):
        for flag, own in NAMES.items():
            if flag in options:
                kept["prefs"][own] = options[flag] == "true" if flag == "ssh" else options[flag]
    if words[0] in ("serve", "funnel"):
        kept["serve"] = {}
        if words[-1] != "off":
            door = f"{name_of(kept)}:443"
            kept["serve"] = {"TCP": {"443": {"HTTPS": True}}, "Web": {door: {"Handlers": {"/": {"Proxy": words[-1]}}}}}
            if words[0] == "funnel":
                kept["serve"]["AllowFunnel"] = {door: True}


def main(words):
    """One command."""
    kept = json.loads(PLACE.read_text()) if PLACE.exists() else begin()
    if words[:2] == ["status", "--json"]:
        print(json.dumps(status(kept), indent=2))
    elif words[:2] == ["debug", "prefs"]:
        print(json.dumps(kept["prefs"], indent=2))
    elif words[:2] == ["serve", "status"]:
        print(json.dumps(kept["serve"], indent=2))
    else:
        do(kept, words)
        PLACE.parent.mkdir(exist_ok=True)
        PLACE.write_text(json.dumps(kept))


main(sys.argv[1:])
