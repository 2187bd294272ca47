"""What must hold of Qdrant."""

from typing import Any

import pytest

from boxwright.testing.probes import exposure, listeners, on_a_mac, process, sockets, starts_at_boot, unprivileged

NAME = "boxwright-qdrant"
KEY = "/etc/boxwright/qdrant/key.yaml"


def status(host: Any, box: Any, path: str, key: str = "") -> str:
    """The status of an answer; `key` is shell text that prints the key, which becomes no argument of a process."""
    header = f'printf \'header = "api-key: %s"\' "{key}" | ' if key else ""
    asked = "curl --silent --noproxy '*' --max-time 10 --output /dev/null --write-out '%{http_code}'"
    said = host.run(f"{header}{asked} {'--config - ' if key else ''}http://127.0.0.1:{box.qdrant.port}{path}")
    return str(said.stdout.strip())


def test_running_and_enabled(host: Any) -> None:
    """It runs and starts at boot."""
    assert process(host, NAME)
    assert starts_at_boot(host, NAME)


def test_loopback_only(host: Any, box: Any) -> None:
    """It is on loopback and nowhere else, on the one port."""
    assert listeners(host, box.qdrant.port) == {"127.0.0.1"}
    names = {program for program, _, port in sockets(host) if port == box.qdrant.port}
    assert {(address, port) for program, address, port in sockets(host) if program in names} == {
        ("127.0.0.1", box.qdrant.port)
    }


def test_is_not_root(host: Any) -> None:
    """It has an account of its own, and no capability."""
    assert unprivileged(host, NAME, NAME)


def test_nobody_asks_without_the_key(host: Any, box: Any) -> None:
    """Without the key, and with a wrong one, nothing is answered but whether it is ready; with it, it is."""
    assert status(host, box, "/readyz") == "200"
    for path in ("/collections", "/telemetry", "/metrics", "/cluster"):
        assert status(host, box, path) in ("401", "403")
        assert status(host, box, path, "wrong-wrong-wrong-wrong") in ("401", "403")
    known = f'$(sed -n \'s/.*"api_key": "\\([^"]*\\)".*/\\1/p\' {KEY})'
    assert status(host, box, "/collections", known) == "200"


def test_the_key_is_nobodys(host: Any, box: Any) -> None:
    """Only root can read the key, and no argument of a process has it."""
    file = host.file(KEY)
    assert (file.user, file.group, file.mode) == ("root", "wheel" if on_a_mac(host) else "root", 0o600)
    assert box.qdrant.api_key.get_secret_value() not in host.check_output("ps -axww -o args=")


def test_tells_its_publisher_nothing(host: Any) -> None:
    """It was started with telemetry off."""
    assert "--disable-telemetry" in host.check_output(f"ps -ww -o args= -p {process(host, NAME)}").split()


def test_data_is_its_own(host: Any) -> None:
    """Only the account can look into its data."""
    folder = host.file("/var/lib/boxwright/qdrant")
    assert (folder.user, folder.mode) == (f"_{NAME}" if on_a_mac(host) else NAME, 0o700)


@pytest.mark.system("linux")
def test_sandbox(host: Any) -> None:
    """systemd rates the exposure of the service 1.5 or better."""
    assert exposure(host, NAME) <= 1.5
