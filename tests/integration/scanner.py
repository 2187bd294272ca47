"""testssl.sh, which knows the weaknesses of TLS servers and tries each of them: what it finds at a door.

It asks the box and nobody else: no name server, no list of revoked certificates.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from kit import Box

# The words of testssl.sh for what is not as it should be, from the worst down to MEDIUM. A test that it could not do is
# WARN.
SEVERE = ("FATAL", "CRITICAL", "HIGH", "MEDIUM")

# protocols, categories of ciphers, forward secrecy, the server's own preferences and its certificate, vulnerabilities
TESTS = ("--protocols", "--std", "--fs", "--server-preference", "--server-defaults", "--vulnerable")

# What each of them says of a server without weakness, by findings that all versions since 3.0 know: so it is seen that
# they have looked.
SEEN = {
    "SSLv3": "not offered",
    "TLS1": "not offered",
    "TLS1_1": "not offered",
    "TLS1_2": "offered",
    "TLS1_3": "offered with final",
    "cipherlist_NULL": "not offered",
    "cipherlist_LOW": "not offered",
    "cipherlist_3DES_IDEA": "not offered",
    "cert_chain_of_trust": "passed.",
    "secure_client_renego": "not vulnerable",
    "LUCKY13": "not vulnerable",
}

# What it says of every box that signs its own certificate, and why that is no weakness.
ACCEPTED = {
    "cert_revocation": "the box's own authority publishes no list of revoked certificates: it is made anew instead",
    "engine_problem": "this machine's openssl has no GOST, which no test here needs",
    "sessionresumption_ticket": "it could not tell, since its client is gone before a ticket comes, now and then",
    "sessionresumption_ID": "the same",
    "RC4": "this machine's openssl has no RC4; cipherlist_LOW has looked for it without openssl",
}


def findings(box: Box, name: str, folder: Path) -> dict[str, tuple[str, str]]:
    """What testssl.sh says of the door of `box`, which is called `name` and has a certificate of its own authority:
    severity and words by the finding's identifier.

    A file in `folder` has all of it. Takes half a minute.
    """
    program = shutil.which("testssl") or shutil.which("testssl.sh")
    assert program, "install Debian's package testssl.sh, as .ci/run does"
    found = folder / "findings.json"
    options = ("--quiet", "--color", "0", "--warnings", "off", "--fast", "--nodns", "none", "--ip", box.address)
    command = [program, *options, "--add-ca", str(box.ca), "--jsonfile", str(found), *TESTS, f"{name}:443"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300)
    # Its exit status counts tests that it could not do; from 200 on it has failed itself.
    assert done.returncode < 200, done.stdout + done.stderr
    return {one["id"]: (one["severity"], one["finding"]) for one in json.loads(found.read_text(encoding="utf-8"))}


def weaknesses(found: Mapping[str, tuple[str, str]], accepted: Iterable[str] = ()) -> dict[str, tuple[str, str]]:
    """Findings of severity MEDIUM or worse, and tests that could not be done; without ACCEPTED and `accepted`."""
    known = {*ACCEPTED, *accepted}
    return {one: what for one, what in found.items() if what[0] in (*SEVERE, "WARN") and one not in known}


def expect_none(found: Mapping[str, tuple[str, str]], accepted: Iterable[str] = ()) -> None:
    """Fails when there is a weakness, or when it is not certain that each of TESTS has looked."""
    left = weaknesses(found, accepted)
    assert not left, f"testssl.sh found: {left}"
    assert found.get("PFS", found.get("FS")) == ("OK", "offered")
    seen = {one: found.get(one, ("", ""))[1] for one in SEEN}
    assert seen == SEEN, f"testssl.sh found: {dict(seen.items() - SEEN.items())}"
