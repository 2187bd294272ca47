"""What must hold of Open WebUI."""

import json
import shlex
from typing import Any

import pytest

from boxwright.testing.probes import exposure, listeners, on_a_mac, starts_at_boot, unprivileged

FOLDER = "/opt/boxwright/openwebui"
# Docker's client on a Mac.
CLIENT = "/opt/boxwright/docker"


def test_healthy(host: Any, box: Any) -> None:
    """The page's own health check passes."""
    answer = host.run(f"curl --silent --fail {box.openwebui.url(box)}/health")
    assert json.loads(answer.stdout) == {"status": True}


def docker(host: Any, box: Any) -> str:
    """The command `docker` on the box, as far as its words; on a Mac that of the runtime that the container is in."""
    if not on_a_mac(host):
        return "docker"
    noted = host.check_output(f"sed -n 's/^  socket: //p' {FOLDER}/compose.yml")
    return f"DOCKER_HOST={shlex.quote('unix://' + json.loads(noted))} DOCKER_CONFIG={CLIENT} {CLIENT}/docker"


def containers(host: Any, box: Any) -> list[str]:
    """Its containers that run; there is one at least."""
    command = f"{docker(host, box)} ps --quiet --filter label=com.docker.compose.project=openwebui"
    found: list[str] = host.check_output(command).split()
    assert found
    return found


def test_reached_through_the_gateway_only(host: Any, box: Any) -> None:
    """The container has no published port, and its network leads nowhere but to the box. Without one, and on a Mac,
    only the box itself reaches it.
    """
    if not box.openwebui.on_a_network(box):
        assert listeners(host, box.openwebui.port) == {"127.0.0.1"}
    if box.openwebui.native(box):
        assert unprivileged(host, "openwebui", "openwebui")
        return
    ask = docker(host, box)
    for container in containers(host, box):
        published = json.loads(
            host.check_output(f"{ask} inspect --format '{{{{json .HostConfig.PortBindings}}}}' {container}")
        )
        if on_a_mac(host):
            assert published == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(box.openwebui.port)}]}
            continue
        assert published == {}
        networks = json.loads(
            host.check_output(f"{ask} inspect --format '{{{{json .NetworkSettings.Networks}}}}' {container}")
        )
        for network in networks:
            assert host.check_output(f"{ask} network inspect --format '{{{{.Internal}}}}' {network}") == "true"


def test_comes_back_after_a_reboot(host: Any, box: Any) -> None:
    """It is started again after a reboot, by Docker or as a service; on a Mac a container starts with its runtime."""
    if box.openwebui.native(box):
        assert starts_at_boot(host, "openwebui")
        return
    for container in containers(host, box):
        policy = host.run(
            f"{docker(host, box)} inspect --format '{{{{.HostConfig.RestartPolicy.Name}}}}' {container}"
        ).stdout.strip()
        assert policy == "unless-stopped"


@pytest.mark.system("linux")
def test_sandbox(host: Any, box: Any) -> None:
    """systemd rates the exposure of the service 1.5 or better."""
    if not box.openwebui.native(box):
        pytest.skip("it runs in a container")
    assert exposure(host, "openwebui") <= 1.5


def test_secrets_are_for_root_alone(host: Any, box: Any) -> None:
    """Only root can read the file with the secrets."""
    folder = "/etc/boxwright/openwebui" if box.openwebui.native(box) else FOLDER
    file = host.file(f"{folder}/openwebui.env")
    group = "wheel" if on_a_mac(host) else "root"
    assert (file.user, file.group, file.mode) == ("root", group, 0o600)


def test_login_page(outside: Any) -> None:
    """The login page loads from outside."""
    answer = outside.get("", auth=False)
    assert answer.status_code == 200
    assert "Open WebUI" in answer.text


def test_sign_up_is_closed(outside: Any) -> None:
    """Nobody can make an account for himself."""
    answer = outside.post(
        "api/v1/auths/signup", auth=False, json={"name": "x", "email": "x@example.org", "password": "not-admitted"}
    )
    assert answer.status_code == 403


def test_administrator_can_chat(outside: Any, box: Any) -> None:
    """The administrator signs in, sees the model, and gets an answer through the page's own API."""
    credentials = {"email": box.openwebui.admin_email, "password": box.openwebui.admin_password.get_secret_value()}
    signed_in = outside.post("api/v1/auths/signin", auth=False, json=credentials)
    assert signed_in.status_code == 200
    assert signed_in.json()["role"] == "admin"
    headers = {"Authorization": f"Bearer {signed_in.json()['token']}"}
    models = outside.get("api/models", auth=False, headers=headers).json()["data"]
    listed = box.engine(box.inference.engine).listed(box.inference.main.name)
    assert listed in [model["id"] for model in models]
    question = {
        "model": listed,
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 16,
        "stream": False,
    }
    answer = outside.post("api/chat/completions", auth=False, headers=headers, json=question)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"].strip()


def test_wrong_password_is_refused(outside: Any, box: Any) -> None:
    """A wrong password does not sign in."""
    answer = outside.post(
        "api/v1/auths/signin", auth=False, json={"email": box.openwebui.admin_email, "password": "wrong"}
    )
    assert answer.status_code == 400
