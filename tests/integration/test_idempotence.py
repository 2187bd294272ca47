"""A second run changes nothing, a dry run touches nothing, and drift is put right and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from kit import MODEL_ENTRY, STACK, Box, Lab, eventually, operations
from snapshots import exact

pytestmark = pytest.mark.lab


def test_a_second_run_changes_nothing(full: Box) -> None:
    before = exact(full)

    own = full.run("pyinfra", "-y", "--json", "inventory.py", STACK).expect()
    assert operations(own)["changed"] == operations(own)["failed"] == []
    assert len(operations(own)["unchanged"]) > 30

    ours = full.apply().expect().json
    assert ours["changed"] == 0
    assert ours["hosts"][full.host]["changed"] == []
    assert ours["hosts"][full.host]["unchanged"] == len(operations(own)["unchanged"])

    assert exact(full) == before


@pytest.mark.parametrize(
    "command",
    [
        ("boxwright", "plan", "--json"),
        ("boxwright", "plan", "--diff", "-vv"),
        ("pyinfra", "--dry", "inventory.py", STACK),
    ],
    ids=["plan", "plan-diff", "pyinfra-dry"],
)
def test_a_dry_run_with_changes_pending_touches_nothing(full: Box, command: tuple[str, ...]) -> None:
    inventory = full.with_variables(
        gateway_user="somebody",
        inference_models=[{**MODEL_ENTRY, "context": 2048}],
        docker_log_max_size="5m",
        host_packages=["tree"],
        gateway_port=8443,
    )
    before = exact(full)
    full.run(*command, inventory=inventory).expect()
    assert exact(full) == before


def test_a_plan_names_what_would_change(full: Box) -> None:
    inventory = full.with_variables(gateway_user="somebody")
    planned = full.run("boxwright", "plan", "--json", inventory=inventory).expect().json["hosts"][full.host]
    assert planned["changed"] == ["gateway: write the Caddyfile"]
    # Pending changes are a code of their own only when asked for.
    assert full.run("boxwright", "plan", "--exit-code", inventory=inventory).code == 3
    assert full.run("boxwright", "plan", "--exit-code").code == 0


def test_a_dry_run_on_a_bare_machine_touches_nothing(lab: Lab) -> None:
    box = lab.up("bare")
    before = exact(box)
    planned = box.run("boxwright", "plan", "--json").expect().json["hosts"][box.host]["changed"]
    assert {"docker: install the engine", "gateway: write the Caddyfile", "openwebui: running"} <= set(planned)
    assert exact(box) == before
    box.run("pyinfra", "--dry", "inventory.py", STACK).expect()
    assert exact(box) == before


@dataclass(frozen=True)
class Drift:
    """What somebody did to a box, by a shell script there; the operations that put it right; how that is seen.

    `or_by` are operations that only change something when what they are to bring about has not come by itself yet.
    """

    name: str
    done: str
    repaired_by: list[str]
    seen: str
    or_by: tuple[str, ...] = ()


MODEL = "/var/lib/boxwright/models/b179c9523d0e-SmolLM2-135M-Instruct.Q4_1.gguf"
FETCH = "inference: fetch SmolLM2-135M-Instruct.Q4_1.gguf"
CADDYFILE = "/etc/boxwright/caddy/Caddyfile"
WEBUI = "/opt/boxwright/openwebui"
HEALTHY = "docker ps --filter label=com.docker.compose.project=openwebui --filter health=healthy --quiet | grep ."
HOSTNAME = "docker inspect --format '{{.Config.Hostname}}' $(docker ps --quiet)"
EXTRA_SITE = "curl --silent --max-time 2 http://127.0.0.1:9999 | grep hello"
UP = "systemctl is-active {0} && systemctl is-enabled {0}"

ANYWHERE = [
    Drift(
        "edited Caddyfile",
        f"echo '# by hand' >>{CADDYFILE}",
        ["gateway: write the Caddyfile"],
        f"! grep 'by hand' {CADDYFILE}",
    ),
    Drift(
        "edited Caddyfile, in force",
        f"printf 'http://127.0.0.1:9999 {{\\n respond hello\\n}}\\n' >>{CADDYFILE}; systemctl reload "
        f"caddy; {EXTRA_SITE}",
        ["gateway: write the Caddyfile", "gateway: running"],
        f"! {EXTRA_SITE}",
    ),
    Drift(
        "somebody else's Caddyfile, in force",
        f"printf 'http://127.0.0.1:9999 {{\\n respond hello\\n}}\\n' >{CADDYFILE}; systemctl reload "
        f"caddy; {EXTRA_SITE}",
        ["gateway: write the Caddyfile", "gateway: running"],
        f"! {EXTRA_SITE}",
    ),
    Drift(
        "Caddyfile replaced by a link",
        f"mv {CADDYFILE} /root/Caddyfile && ln -s /root/Caddyfile {CADDYFILE}",
        ["gateway: write the Caddyfile"],
        f"[ ! -L {CADDYFILE} ] && [ -f {CADDYFILE} ] && rm /root/Caddyfile",
    ),
    Drift(
        "Caddyfile for everybody",
        f"chmod 0644 {CADDYFILE}; chgrp root {CADDYFILE}",
        ["gateway: write the Caddyfile"],
        f"[ $(stat -c %U:%G:%a {CADDYFILE}) = root:caddy:640 ]",
    ),
    Drift("stopped gateway", "systemctl stop caddy", ["gateway: running"], UP.format("caddy")),
    Drift("stopped engine", "systemctl stop llamacpp", ["llamacpp: running"], UP.format("llamacpp")),
    Drift("disabled engine", "systemctl disable llamacpp", ["llamacpp: running"], UP.format("llamacpp")),
    Drift(
        "masked engine",
        "systemctl stop llamacpp; systemctl mask --runtime llamacpp",
        ["llamacpp: running"],
        UP.format("llamacpp"),
    ),
    Drift(
        "edited unit",
        "sed -i 's/^NoNewPrivileges=yes/NoNewPrivileges=no/' /etc/systemd/system/llamacpp.service",
        ["llamacpp: write the unit"],
        "grep ^NoNewPrivileges=yes /etc/systemd/system/llamacpp.service",
    ),
    Drift(
        "edited unit, in force",
        "sed -i 's/^NoNewPrivileges=yes/NoNewPrivileges=yes\\nEnvironment=BY_HAND=1/'"
        " /etc/systemd/system/llamacpp.service; systemctl daemon-reload; systemctl restart llamacpp",
        ["llamacpp: write the unit", "llamacpp: running"],
        "! tr '\\0' '\\n' </proc/$(systemctl show --value -p MainPID llamacpp)/environ | grep BY_HAND",
    ),
    Drift(
        "drop-in of a stranger taken away again",
        "mkdir -p /etc/systemd/system/caddy.service.d; printf '[Service]\\nEnvironment=BY_HAND=1\\n'"
        " >/etc/systemd/system/caddy.service.d/x.conf; systemctl daemon-reload; systemctl restart caddy;"
        " rm -r /etc/systemd/system/caddy.service.d",
        ["gateway: write the unit", "gateway: running"],
        "! tr '\\0' '\\n' </proc/$(systemctl show --value -p MainPID caddy)/environ | grep BY_HAND",
    ),
    Drift(
        "edited settings of the engine, in force",
        'sed -i \'s/"context": 4096/"context": 512/\' /etc/boxwright/llamacpp.json; systemctl restart llamacpp',
        ["llamacpp: write the settings", "llamacpp: running"],
        "curl --silent http://127.0.0.1:8081/props | grep '\"n_ctx\":4096'",
    ),
    Drift("deleted model", f"rm {MODEL}", [FETCH, "llamacpp: running"], f"[ -s {MODEL} ]"),
    Drift(
        "damaged model",
        f"printf damaged | dd of={MODEL} bs=1 seek=50000000 conv=notrunc",
        [FETCH, "llamacpp: running"],
        f"sha256sum {MODEL} | grep b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Drift(
        "account of the engine deleted",
        "systemctl stop llamacpp; userdel llamacpp",
        ["llamacpp: account of the service", "llamacpp: running"],
        "ps -o user= -p $(systemctl show --value -p MainPID llamacpp) | grep llamacpp",
    ),
    Drift(
        "broken program of the gateway",
        "rm -r /opt/boxwright/caddy/*/bin /opt/boxwright/caddy/*/.[a-z]*; systemctl kill -s KILL caddy",
        ["gateway: install the program", "gateway: running"],
        UP.format("caddy"),
    ),
    Drift(
        "removed package",
        "dpkg --remove --force-depends libgomp1",
        ["llamacpp: install OpenMP"],
        "dpkg-query -W -f '${Status}' libgomp1 | grep 'ok installed'",
    ),
    Drift(
        "another time zone",
        "ln -sf /usr/share/zoneinfo/Europe/Berlin /etc/localtime",
        ["host: set the time zone"],
        "[ $(date +%Z) = UTC ]",
    ),
]

WITH_DOCKER = [
    Drift("killed container", "docker kill $(docker ps --quiet)", ["openwebui: running"], HEALTHY),
    Drift(
        "network taken away",
        "docker network disconnect --force openwebui $(docker ps --quiet) && docker network rm openwebui",
        ["openwebui: network", "openwebui: running"],
        f"{HEALTHY} && ip -4 address show br-openwebui | grep 172.30.77.1",
    ),
    Drift(
        "secrets for everybody",
        f"chmod 0644 {WEBUI}/openwebui.env",
        ["openwebui: write the environment"],
        f"[ $(stat -c %a {WEBUI}/openwebui.env) = 600 ]",
    ),
    Drift(
        "edited environment",
        f"echo 'WEBUI_NAME=changed' >>{WEBUI}/openwebui.env",
        ["openwebui: write the environment"],
        f"! grep WEBUI_NAME {WEBUI}/openwebui.env",
    ),
    Drift(
        "edited Compose file",
        f"sed -i '/no-new-privileges/d' {WEBUI}/compose.yml",
        ["openwebui: write the Compose file"],
        f"grep no-new-privileges {WEBUI}/compose.yml",
    ),
    Drift(
        "edited Compose file, in force",
        f"sed -i 's/^    restart: .*/&\\n    hostname: elsewhere/' {WEBUI}/compose.yml"
        f"; docker compose --project-directory {WEBUI} up --detach; {HOSTNAME} | grep -x elsewhere",
        ["openwebui: write the Compose file", "openwebui: running"],
        f"{HEALTHY} && ! {HOSTNAME} | grep -x elsewhere",
    ),
    # Docker starts Open WebUI again by itself; the run ends when that is ready too, and waits when it is not yet.
    Drift(
        "stopped Docker",
        "systemctl stop docker.socket docker",
        ["docker: running"],
        f"{UP.format('docker')} && {HEALTHY}",
        or_by=("openwebui: running",),
    ),
    Drift(
        "edited settings of Docker",
        'sed -i \'s/"10m"/"99m"/\' /etc/docker/daemon.json',
        ["docker: settings of the engine"],
        "grep '\"10m\"' /etc/docker/daemon.json",
    ),
    Drift(
        "key of Open WebUI changed",
        "echo another >/etc/boxwright/caddy/openwebui.key",
        ["gateway: write Open WebUI's key"],
        "grep --quiet ^OPENAI_API_KEY=\"'$(cat /etc/boxwright/caddy/openwebui.key)'\" "
        "/opt/boxwright/openwebui/openwebui.env",
    ),
]


def check(box: Box, drift: Drift) -> None:
    """The drift is put right by a run that changes nothing else, and the box answers again."""
    # systemd does not know at once of a process that was killed.
    eventually("something is broken", lambda: not box.succeeds(f"({drift.seen}) >/dev/null 2>&1"), 10)
    assert [change for change in box.changes() if change not in drift.or_by] == drift.repaired_by
    box.sh(drift.seen)
    assert box.answers()
    # Whatever it left undone would be among the changes of the next test.
    box.settled = True


@pytest.mark.parametrize("drift", ANYWHERE, ids=lambda drift: drift.name)
def test_drift_is_repaired_and_nothing_else_is_touched(light: Box, drift: Drift) -> None:
    light.settled = False
    light.sh(drift.done)
    check(light, drift)


@pytest.mark.parametrize("drift", WITH_DOCKER, ids=lambda drift: drift.name)
def test_drift_of_containers_is_repaired_and_nothing_else_is_touched(full: Box, drift: Drift) -> None:
    full.settled = False
    full.sh(drift.done)
    check(full, drift)


def test_a_lost_root_certificate_is_fetched_again(light: Box) -> None:
    """Also what is kept on the control machine is compared."""
    before = light.ca.read_text()
    light.ca.unlink()
    assert light.changes() == ["gateway: keep the root certificate"]
    assert light.ca.read_text() == before


def test_what_others_put_on_the_box_stays(full: Box) -> None:
    """A key of somebody else in Docker's settings is none of boxwright's business."""
    path = "/etc/docker/daemon.json"
    full.settled = False
    before = full.sh(f"cat {path}")
    full.put(path, json.dumps({"max-concurrent-downloads": 2, **json.loads(before)}, indent=4))
    # The engine reads it; the file itself is left as it is.
    assert "docker: running" in full.changes()
    full.sh(HEALTHY)
    assert json.loads(full.sh(f"cat {path}"))["max-concurrent-downloads"] == 2
    full.put(path, before)
    assert "docker: running" in full.changes()
    full.sh(HEALTHY)
    full.settled = True


def test_nothing_is_left_to_do_after_all_that(full: Box, light: Box) -> None:
    full.expect_settled()
    light.expect_settled()
