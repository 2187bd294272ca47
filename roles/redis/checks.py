"""What must hold of Redis or Valkey."""

from typing import Any

import pytest

from boxwright.testing.probes import exposure, listeners, on_a_mac, process, starts_at_boot, unprivileged

NAME = "boxwright-redis"


def test_running_and_enabled(host: Any) -> None:
    """It runs and starts at boot."""
    assert process(host, NAME)
    assert starts_at_boot(host, NAME)


def test_loopback_only(host: Any, box: Any) -> None:
    """It is on loopback and nowhere else."""
    assert listeners(host, box.redis.port) == {"127.0.0.1"}


def test_is_not_root(host: Any) -> None:
    """It has an account of its own, and no capability."""
    assert unprivileged(host, NAME, NAME)


def test_nobody_asks_without_the_password(host: Any, box: Any) -> None:
    """Without the password nothing is answered."""
    # Its protocol is plain text: https://redis.io/docs/latest/develop/reference/protocol-spec/, inline commands.
    asked = f"curl --silent --max-time 3 telnet://127.0.0.1:{box.redis.port}"
    said = host.run(f"printf 'INFO\\r\\nQUIT\\r\\n' | {asked}").stdout
    assert "NOAUTH" in said
    assert "version" not in said


def test_the_password_is_nobodys(host: Any, box: Any) -> None:
    """Only root and the service can read the password, and no argument of a process has it."""
    file = host.file("/etc/boxwright/redis/password.conf")
    assert (file.user, file.group, file.mode) == ("root", f"_{NAME}" if on_a_mac(host) else NAME, 0o640)
    assert box.redis.password.get_secret_value() not in host.check_output("ps -axww -o args=")


@pytest.mark.system("linux")
def test_sandbox(host: Any) -> None:
    """systemd rates the exposure of the service 1.5 or better."""
    assert exposure(host, NAME) <= 1.5
