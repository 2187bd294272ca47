"""Homebrew's formula `tailscale` for the double of a Mac: two programs that answer as Tailscale 1.98 does.

`tailscale` keeps what it was told: in the tailnet or not, preferences, what is served, every command. `tailscaled`
does what is served on 443, where it has a certificate: HTTPS on `TAILNET_ADDRESS`, handed on to the declared target
with the headers that Tailscale's own reverse proxy sets (ipn/ipnlocal/serve.go). There is no tailnet: whoever comes to
that address of loopback, by SSH for example, is in it.
"""

from __future__ import annotations

from pathlib import Path

VERSION = "1.98.1"
# What `tailscale` keeps, as JSON.
KEPT = "/Library/Tailscale/double.json"
# With a certificate and its key here, named after the machine (NAME.crt, NAME.key), what is served can be reached.
CERTIFICATES = "/Library/Tailscale/certs"
# Of the machine, where it stands for that in the tailnet, and of everybody who asks it there, as it tells the target.
TAILNET_ADDRESS, VISITOR = "127.100.64.1", "100.64.0.9"
PROGRAMS = Path(__file__).parent


def formula(folder: Path, python: str, tailnet: str) -> tuple[str, str, Path]:
    """What `MacDouble.formula` takes, laid out in `folder`. `python` runs the programs on the Mac, which is in the
    tailnet `tailnet` (its DNS name) as soon as it joins.
    """
    known = {
        "@PYTHON@": python,
        "@TAILNET@": tailnet,
        "@KEPT@": KEPT,
        "@CERTIFICATES@": CERTIFICATES,
        "@ADDRESS@": TAILNET_ADDRESS,
        "@VISITOR@": VISITOR,
    }
    place = folder / "tailscale"
    (place / "bin").mkdir(parents=True)
    place.chmod(0o755)
    for name in ("tailscale", "tailscaled"):
        text = (PROGRAMS / f"{name}.py").read_text(encoding="utf-8")
        for word, value in known.items():
            text = text.replace(word, value)
        (place / "bin" / name).write_text(text, encoding="utf-8")
        (place / "bin" / name).chmod(0o755)
    return "tailscale", VERSION, place
