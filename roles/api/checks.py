"""What must hold of the API service."""

import json
from typing import Any

import pytest

from boxwright.testing.probes import exposure, listeners, log, on_a_mac, process, starts_at_boot, unprivileged

# Who asks /admin, in the log of its acts.
ACTOR = "boxwright-verify"


def ask(host: Any, port: int, path: str, *options: str) -> tuple[int, str]:
    """Status and text of an answer on the box itself. A secret is no option: see `admin`."""
    said = host.run(
        f"curl --silent --noproxy '*' --max-time 60 --write-out '\\n%{{http_code}}' {' '.join(options)} "
        f"http://127.0.0.1:{port}{path}"
    ).stdout
    text, _, code = said.rpartition("\n")
    return int(code), text


def secret_of(host: Any, instance: Any, path: str, *options: str) -> tuple[int, str]:
    """The same with the administrator's secret, which the box's own root reads from its file."""
    file = f"/etc/boxwright/api/{instance.name}/admin_secret"
    text = (
        f"printf 'header = \"Authorization: Bearer %s\"' \"$(cat {file})\" | curl --config - --silent --noproxy '*' "
        f"--max-time 60 --header 'X-Boxwright-Actor: {ACTOR}' --write-out '\\n%{{http_code}}' {' '.join(options)} "
        f"http://127.0.0.1:{instance.port}{path}"
    )
    said, _, code = host.run(text).stdout.rpartition("\n")
    return int(code), said


def secrets(instance: Any, box: Any) -> tuple[Any, ...]:
    """What nobody else may see."""
    others = (box.redis.password, box.qdrant.api_key)
    return (instance.admin_secret, instance.database_password, instance.pepper, *others)


def test_running_and_enabled(host: Any, box: Any) -> None:
    """Each instance runs and starts at boot; one that is not declared is not there."""
    for instance in box.api.every_instance:
        declared = instance in box.api.instances
        if declared:
            assert process(host, instance.unit)
        elif not on_a_mac(host):
            assert not host.service(instance.unit).is_running
        assert starts_at_boot(host, instance.unit) is declared


def test_loopback_only(host: Any, box: Any) -> None:
    """Each instance is on loopback and nowhere else."""
    for instance in box.api.instances:
        assert listeners(host, instance.port) == {"127.0.0.1"}


def test_is_not_root(host: Any, box: Any) -> None:
    """Each instance has an account of its own, and no capability."""
    for instance in box.api.instances:
        assert unprivileged(host, instance.unit, instance.unit)


def test_ready(host: Any, box: Any) -> None:
    """Its database, its limits and its models answer."""
    for instance in box.api.instances:
        assert ask(host, instance.port, "/api/v1/ready")[0] == 200
        health = json.loads(ask(host, instance.port, "/api/v1/health")[1])
        assert health["instance"] == instance.name
        kept = ("redis", "postgresql") if box.api.full else ("embedded", "embedded")
        assert (health["limits"], health["keys"]) == kept


def test_refused_without_a_key(host: Any, box: Any) -> None:
    """Without a key, and with a wrong one, the model's paths answer 401."""
    wrong = "--header 'Authorization: Bearer bw_AAAAAAAA_" + "A" * 43 + "'"
    for instance in box.api.instances:
        for path in ("/v1/models", "/v1/chat/completions"):
            options = ["--request POST --data '{}'"] if path.endswith("completions") else []
            assert ask(host, instance.port, path, *options)[0] == 401
            assert ask(host, instance.port, path, wrong, *options)[0] == 401


def test_administration_is_closed(host: Any, box: Any) -> None:
    """/admin wants its secret, and is not there for whom a proxy asks."""
    for instance in box.api.instances:
        assert ask(host, instance.port, "/admin/keys")[0] == 401
        assert secret_of(host, instance, "/admin/keys")[0] == 200
        for path in ("/admin/keys", "/metrics", "/docs"):
            assert secret_of(host, instance, path, "--header 'X-Forwarded-For: 192.0.2.1'")[0] == 404


def test_the_door_leads_to_v1_alone(outside: Any, box: Any) -> None:
    """Of the service the door has /v1 and nothing else; there it wants a key."""
    if not box.gateway.asks_for_keys:
        pytest.skip("the gateway does not lead to the service")
    assert outside.get("v1/models").status_code == 401
    for path in ("admin/keys", "metrics", "v1/admin/keys", "v1/metrics"):
        answer = outside.get(path)
        assert "boxwright_api" not in answer.text
        assert answer.status_code in (401, 404) or box.openwebui.enabled


def test_secrets_are_for_root_alone(host: Any, box: Any) -> None:
    """Only root can read its secrets, and none is in an argument or in the log of a process."""
    for instance in box.api.instances:
        folder = f"/etc/boxwright/api/{instance.name}"
        group = "wheel" if on_a_mac(host) else "root"
        assert host.file(folder).mode == 0o700
        names = host.check_output(f"ls {folder}").split()
        assert {"admin_secret", "peppers"} <= set(names)
        for name in names:
            file = host.file(f"{folder}/{name}")
            assert (file.user, file.group, file.mode) == ("root", group, 0o600)
        said = host.check_output("ps -axww -o args=") + log(host, instance.unit)
        for secret in secrets(instance, box):
            assert secret.get_secret_value() not in said


@pytest.mark.system("linux")
def test_no_secret_in_the_environment(host: Any, box: Any) -> None:
    """No secret is in the environment of a process."""
    for instance in box.api.instances:
        said = host.check_output(f"tr '\\0' '\\n' </proc/{process(host, instance.unit)}/environ")
        assert "BOXWRIGHT_API_SETTINGS" in said
        for secret in secrets(instance, box):
            assert secret.get_secret_value() not in said


@pytest.mark.system("linux")
def test_sandbox(host: Any, box: Any) -> None:
    """systemd rates the exposure of each instance 1.5 or better."""
    outside = box.api.other_machines(box)
    for instance in box.api.instances:
        assert exposure(host, instance.unit) <= (2.5 if outside else 1.5)
        assert exposure(host, f"{instance.unit}-migrate") <= 1.6
