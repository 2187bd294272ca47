"""The real custom Caddy, built for this machine's processor, as `boxwright caddy build` makes it for a box's.

It goes into the user's cache, so that only the first run compiles. What comes out is asked with other tools. The tests
of our own module, in Go, are compiled by the same toolchain from the same modules.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from boxwright import caddy_build
from boxwright.caddy_build import builder
from boxwright.lab.locks import locked
from boxwright.paths import cache_dir

BOXWRIGHT = Path(sys.executable).with_name("boxwright")
ARCH = caddy_build.own_architecture()


TESTS = sorted((caddy_build.SOURCE / "slots").glob("*_test.go"))


@pytest.fixture(scope="module")
def compiled_tests(tmp_path_factory):
    """The tests of our own module as a program; compiled where a build would compile, which then goes on from there."""
    digest = hashlib.sha256(caddy_build.key().encode() + b"".join(path.read_bytes() for path in TESTS))
    place = cache_dir() / "tests" / f"slots-{digest.hexdigest()[:16]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    caddy_build.home().mkdir(parents=True, exist_ok=True)
    with locked(caddy_build.home() / "lock"):
        if not place.exists():
            compile_tests(place, tmp_path_factory.mktemp("go"))
    return place


def compile_tests(place, temporary):
    folder = builder.work()
    folder.mkdir(parents=True, exist_ok=True)
    go = builder.toolchain(folder, temporary)
    settings = builder.go_environment(ARCH, folder, builder.modules_of_user())
    made = place.with_suffix(".made")
    command = [go, "test", "-C", caddy_build.SOURCE, "-c", "-trimpath", "-o", made, "./slots"]
    for check in (command, [go, "vet", "-C", caddy_build.SOURCE, "-trimpath", "./..."]):
        done = subprocess.run(check, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    made.replace(place)


@pytest.fixture(scope="module")
def caddy(compiled_tests):
    """The path that the command prints."""
    done = subprocess.run([BOXWRIGHT, "caddy", "build"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.rstrip("\n"))


def output(*command, **environment):
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment}).stdout


def test_it_is_the_pinned_program(caddy):
    assert output("sha256sum", caddy).split()[0] == caddy_build.SHA256[ARCH]
    assert caddy_build.available(ARCH)
    assert caddy == caddy_build.binary(ARCH)


def test_our_own_module(compiled_tests, tmp_path):
    """Every test that its sources have is run and passes."""
    done = subprocess.run(
        [compiled_tests, "-test.v", "-test.timeout=10m"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    wanted = {name for path in TESTS for name in re.findall(r"^func (Test\w+)", path.read_text(), re.MULTILINE)}
    assert set(re.findall(r"^--- PASS: (\w+)", done.stdout, re.MULTILINE)) == wanted
    assert len(wanted) > 20


def test_it_has_the_modules(caddy):
    listed = output(caddy, "list-modules", "--versions").splitlines()
    assert "http.handlers.rate_limit v0.1.0" in listed
    assert "dns.providers.cloudflare v0.2.4" in listed
    assert {"http.handlers.slots", "http.reverse_proxy.selection_policies.slots"} <= {
        one.split()[0] for one in listed if one
    }
    assert any(line.startswith("http.handlers.reverse_proxy") for line in listed)  # and Caddy's own


def test_it_is_caddy_of_the_pinned_version(caddy):
    assert output(caddy, "version").split()[0] == "v2.11.7"
    assert "not a dynamic executable" in subprocess.run(["ldd", caddy], capture_output=True, text=True).stderr


def test_the_modules_work_in_a_configuration(caddy, tmp_path):
    """Caddy accepts what only these modules understand, and sets them up."""
    file = tmp_path / "Caddyfile"
    file.write_text(
        "box.test {\n"
        "  tls {\n    dns cloudflare {env.TOKEN}\n  }\n"
        "  rate_limit {\n    zone all {\n      key {remote_host}\n      events 10\n      window 1m\n    }\n  }\n"
        "  slots 10 250ms\n  reverse_proxy 127.0.0.1:1 {\n    lb_policy slots\n  }\n}\n"
    )
    token = "0" * 40  # the module refuses what does not look like one
    adapted = json.loads(output(caddy, "adapt", "--config", file, "--validate", HOME=str(tmp_path), TOKEN=token))
    assert '"handler": "rate_limit"' in json.dumps(adapted)
    assert '"name": "cloudflare"' in json.dumps(adapted)
    assert '"handler": "slots"' in json.dumps(adapted)


def test_info_says_that_it_is_there(caddy):
    told = json.loads(output(BOXWRIGHT, "caddy", "info", "--json"))
    assert told["programs"][ARCH] == {"state": "ready", "path": str(caddy), "sha256": caddy_build.SHA256[ARCH]}


def test_it_limits_a_client(caddy, tmp_path):
    """The third request of a client within the window is answered 429, by the running program."""
    socket = tmp_path / "http"
    file = tmp_path / "Caddyfile"
    file.write_text(
        "{\n  admin off\n  persist_config off\n}\n"
        f"http:// {{\n  bind unix/{socket}\n"
        "  rate_limit {\n    zone all {\n      key all\n      events 2\n      window 10m\n    }\n  }\n  respond ok\n}\n"
    )
    process = subprocess.Popen([caddy, "run", "--config", file], stderr=subprocess.DEVNULL, env={"HOME": str(tmp_path)})
    ask = ["curl", "--silent", "--unix-socket", socket, "--output", tmp_path / "body", "--write-out", "%{http_code}"]
    try:
        # Retries wait for the socket alone: an answer of any kind is not asked for again.
        first = output(*ask, "--retry", "100", "--retry-delay", "1", "--retry-all-errors", "http://box.test/")
        assert [first, *(output(*ask, "http://box.test/") for _ in range(2))] == ["200", "200", "429"]
    finally:
        process.terminate()
        process.wait()
