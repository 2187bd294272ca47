"""What must hold of Docker Engine."""

import json
from typing import Any


def test_running_and_enabled(host: Any) -> None:
    """Docker runs and starts at boot."""
    assert host.service("docker").is_running
    assert host.service("docker").is_enabled


def test_compose_plugin(host: Any) -> None:
    """The compose plugin answers."""
    assert host.check_output("docker compose version --short").startswith(("2.", "v2.", "5."))


def test_settings_in_force(host: Any, box: Any) -> None:
    """Containers survive a restart of the engine, and their logs are rotated."""
    information = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert information["LiveRestoreEnabled"] is True
    assert information["LoggingDriver"] == "json-file"
    configuration = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert configuration["log-opts"]["max-size"] == box.docker.log_max_size


def test_not_on_the_network(host: Any) -> None:
    """The engine answers on its unix socket only."""
    listening = host.check_output("ss -Hltnp")
    assert "dockerd" not in listening
