"""Networks and Compose projects on a real Docker Engine with its compose plugin, in the versions of Debian."""

import json
import os
import shlex
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
from harness import asked_of, run
from kit import eventually
from machine import Machine

from boxwright.facts.containers import ContainerRuntimes
from boxwright.facts.docker import ComposeProject
from boxwright.operations import apt, docker, files, services
from boxwright.preflight import Machine as Preflight
from boxwright.services import PackagedService
from boxwright.settings import parse_box
from roles.openwebui import checks, container
from roles.openwebui import tasks as openwebui
from roles.registry import Box
from tests.doubles.colima import SOCKET, Colima
from tests.doubles.macos import ROOT, MacDouble

pytestmark = pytest.mark.lab

IMAGE = "example.test/tiny:1"
ENGINE = PackagedService(name="docker", restart_files=("/etc/docker/daemon.json",))
FOLDER = "/opt/a project"
COMPOSE = """\
services:
  web:
    image: example.test/tiny:1
    pull_policy: never
    restart: unless-stopped
    stop_grace_period: 1s
    command: [httpd, -f, -p, "8080", -h, /]
    env_file: [web.env]
    healthcheck:
      test: [CMD, wget, -qO, /dev/null, "http://127.0.0.1:8080/bin/busybox"]
      interval: 1s
      timeout: 1s
      retries: 2
    networks: [shared]
    volumes: ["sample-data:/data"]
  side:
    image: example.test/tiny:1
    restart: unless-stopped
    stop_grace_period: 1s
    networks: [shared]
volumes:
  sample-data: {name: sample-data}
networks:
  shared: {name: sample-net, external: true}
"""
MAKE_IMAGE = """
rm -rf /tmp/image; mkdir -p /tmp/image/bin
cp /bin/busybox /tmp/image/bin
for name in sh sleep httpd wget; do ln -s busybox /tmp/image/bin/$name; done
date +%N >/tmp/image/made
tar -C /tmp/image -c . | docker import --change 'CMD ["sleep", "100000"]' - example.test/tiny:1
"""


@pytest.fixture(scope="module")
def machine():
    machine = Machine()
    first = machine.run(lambda: apt.packages(["docker.io", "docker-cli", "docker-compose", "busybox-static"]))
    assert first.ok, first.printed
    machine.sh(MAKE_IMAGE)
    yield machine
    machine.close()


class Project:
    """A Compose project of two services on a network of its own."""

    def __init__(self, machine):
        self.machine = machine
        self.compose, self.variables, self.subnet = COMPOSE, "WORD='secret'\n", "172.30.99.0/24"

    def deploy(self):
        docker.network("sample-net", subnet=self.subnet, bridge="br-sample")
        files.directory(FOLDER, mode="0700")
        files.content(f"{FOLDER}/web.env", self.variables, mode="0600", secret=True)
        files.content(f"{FOLDER}/compose.yml", self.compose, mode="0600")
        docker.compose_project("sample", FOLDER, wait=40)

    def apply(self, **options):
        """Whether the Compose project was touched; fails the test when a step fails."""
        result = self.machine.run(self.deploy, **options)
        assert result.ok, result.printed
        return result.changed[-1]

    def repaired(self):
        """The services that got another container or another process; and that the next run changes nothing."""
        before = self.processes
        assert self.apply(), "not seen"
        after = self.processes
        assert not self.apply()
        assert self.processes == after
        assert set(after) == {"web", "side"}
        return {service for service in after if after[service] != before.get(service)}

    @property
    def processes(self):
        """Container and process of each service."""
        line = '{{index .Config.Labels "com.docker.compose.service"}} {{.Id}} {{.State.Pid}}'
        listed = self.machine.sh(
            f"docker inspect --format '{line}' $(docker ps --quiet --filter label=com.docker.compose.project=sample)"
        )
        return {row.split()[0]: row.split()[1:] for row in listed.splitlines() if len(row.split()) == 3}

    @property
    def health(self):
        return self.machine.sh("docker inspect --format '{{.State.Health.Status}}' sample-web-1").strip()

    def clean(self):
        self.machine.run(lambda: docker.compose_absent("sample", volumes=True))
        self.machine.run(lambda: docker.network_absent("sample-net"))


@pytest.fixture
def project(machine):
    project = Project(machine)
    project.apply()
    return project


def test_from_nothing_to_running_and_gone(machine):
    project = Project(machine)
    project.clean()
    machine.sh(f"rm -rf '{FOLDER}'")
    assert project.apply(dry=True)
    assert machine.sh("docker ps --all --quiet; docker volume ls --quiet") == ""
    assert project.repaired() == {"web", "side"}
    assert project.health == "healthy", "it did not wait until all is ready"
    assert not project.apply(dry=True)
    attached = json.loads(machine.sh("docker network inspect --format '{{json .}}' sample-net"))
    assert attached["IPAM"]["Config"] == [{"Subnet": "172.30.99.0/24", "Gateway": "172.30.99.1"}]
    assert "172.30.99.1/24" in machine.sh("ip address show br-sample")
    assert machine.run(lambda: docker.compose_absent("sample")).changed == [True]
    assert machine.run(lambda: docker.compose_absent("sample")).changed == [False]
    assert machine.sh("docker volume ls --quiet") == "sample-data\n", "data goes only when that is said"
    assert machine.run(lambda: docker.compose_absent("sample", volumes=True)).changed == [True]
    assert machine.run(lambda: docker.compose_absent("sample", volumes=True)).changed == [False]
    assert machine.sh("docker volume ls --quiet") == ""
    assert machine.run(lambda: docker.network_absent("sample-net")).changed == [True]
    assert machine.run(lambda: docker.network_absent("sample-net")).changed == [False]


@pytest.mark.parametrize(
    ("harm", "repaired"),
    [
        ("docker stop sample-web-1", {"web"}),
        ("docker kill sample-side-1", {"side"}),
        ("docker rm --force sample-web-1", {"web"}),
        ("docker pause sample-side-1", {"side"}),
        ("docker network disconnect sample-net sample-web-1", {"web"}),
        # A process that hangs: the health check finds out.
        ("docker kill --signal STOP sample-web-1; until docker ps | grep -q unhealthy; do sleep 0.2; done", {"web"}),
    ],
)
def test_only_what_drifted_is_repaired(project, harm, repaired):
    project.machine.sh(harm)
    assert project.repaired() == repaired
    assert project.health == "healthy"


def test_a_changed_environment_file(project):
    project.variables = "WORD='another secret'\n"
    assert project.repaired() == {"web"}
    said = project.machine.sh("docker inspect --format '{{json .Config.Env}}' sample-web-1")
    assert "WORD=another secret" in said


def test_a_changed_service_and_one_that_is_taken_out(project):
    project.compose = COMPOSE.replace('"8080", -h', '"8080", -v, -h')
    assert project.repaired() == {"web"}
    alone, _, rest = COMPOSE.partition("  side:")
    project.compose = alone + rest[rest.index("volumes:") :]
    assert project.apply()
    assert set(project.processes) == {"web"}
    assert not project.apply()


def test_a_foreign_container_under_the_name_of_the_project(project):
    labels = {"project": "sample", "service": "old", "oneoff": "False", "container-number": "1"}
    words = " ".join(f"--label com.docker.compose.{key}={value}" for key, value in labels.items())
    project.machine.sh(f"docker run --detach --name old {words} {IMAGE}")
    assert project.repaired() == set()
    assert "old" not in project.machine.sh("docker ps --all --format '{{.Names}}'").split()


def test_another_image_under_the_name(project):
    project.machine.sh(MAKE_IMAGE)
    assert project.repaired() == {"web", "side"}


def test_a_run_killed_while_containers_were_made(project):
    project.machine.sh(f"docker rm --force sample-web-1 sample-side-1; cd '{FOLDER}'; docker compose -p sample create")
    assert project.repaired() == {"web", "side"}


def test_another_address_range(project):
    project.subnet = "172.30.98.0/24"
    assert project.repaired() == {"web", "side"}
    assert "172.30.98." in project.machine.sh("docker inspect sample-web-1")


def test_a_network_that_a_foreign_container_uses_stays(project):
    project.machine.sh(f"docker run --detach --name foreign --network sample-net {IMAGE}")
    project.subnet = "172.30.97.0/24"
    result = project.machine.run(project.deploy)
    project.machine.sh("docker rm --force foreign")
    assert not result.ok
    assert "used by the container foreign, which no Compose project manages: remove it first" in result.printed
    project.subnet = "172.30.99.0/24"
    project.apply()
    assert not project.apply()


def test_a_service_that_does_not_get_healthy_says_why(project):
    project.compose = COMPOSE.replace("/bin/busybox", "/none").replace("-f, -p", "-f, -vv, -p")
    result = project.machine.run(project.deploy)
    assert not result.ok
    assert "unhealthy" in result.printed
    assert "404 Not Found" in result.printed, "what the health check said is not shown"
    project.compose = COMPOSE
    assert project.apply()
    assert project.health == "healthy"


def test_a_file_that_is_wrong(project):
    project.compose = COMPOSE.replace("pull_policy", "pull_politeness")
    result = project.machine.run(project.deploy)
    assert not result.ok
    assert "pull_politeness" in result.printed
    assert set(project.processes) == {"web", "side"}


def test_no_secret_is_printed(project):
    project.variables = "WORD='another-secret-word'\n"
    result = project.machine.run(project.deploy, verbosity=2)
    assert result.ok
    assert "another-secret-word" not in result.printed
    ok, lines = project.machine.answer(asked_of(ComposeProject().command("sample", FOLDER), None))
    assert ok
    assert "another-secret-word" not in "".join(lines), "the fact asks for values of variables"


def test_a_stopped_engine_is_not_an_empty_one(project):
    project.machine.sh("systemctl stop docker docker.socket")
    try:
        for operation in (
            lambda: docker.compose_absent("sample"),
            lambda: docker.network_absent("sample-net"),
            lambda: docker.image_absent(IMAGE),
            lambda: docker.image(IMAGE),
        ):
            result = project.machine.run(operation)
            assert not result.ok
            assert "Cannot connect to the Docker daemon" in result.printed
    finally:
        assert project.machine.run(lambda: services.running(ENGINE)).changed == [True]
    project.apply()
    assert not project.apply()


def test_after_a_reboot_nothing_is_to_do(project):
    project.machine.reboot()
    project.machine.sh("until docker ps | grep -q '(healthy)'; do sleep 0.2; done")
    assert not project.apply()


def test_an_image(machine):
    assert machine.run(lambda: docker.image(IMAGE)).changed == [False]
    machine.sh(f"docker tag {IMAGE} example.test/other:1")
    assert machine.run(lambda: docker.image_absent("example.test/other:1")).changed == [True]
    assert machine.run(lambda: docker.image_absent("example.test/other:1")).changed == [False]
    result = machine.run(lambda: docker.image("127.0.0.1:1/none:1"))
    assert not result.ok
    assert "cannot pull 127.0.0.1:1/none:1" in result.printed
    assert "is the registry running, and can this box reach it?" in result.printed


# Open WebUI's container on a Mac: the double of one, whose Colima is this machine's engine. The image is a page that is
# healthy; Open WebUI itself is that of the lab on Linux.

VERSION = "v0.12.4"
PAGE = "ghcr.io/open-webui/open-webui:" + VERSION
MAKE_PAGE = f"""
rm -rf /tmp/page; mkdir -p /tmp/page/bin /tmp/page/www /tmp/page/tmp /tmp/page/app/backend/data
cp /bin/busybox /tmp/page/bin
for name in sh sleep httpd wget cat; do ln -s busybox /tmp/page/bin/$name; done
printf '#!/bin/sh\\nfor url; do :; done\\nexec wget -qO- "$url"\\n' >/tmp/page/bin/curl
chmod 0755 /tmp/page/bin/curl
printf '{{"status":true}}' >/tmp/page/www/health
printf '#!/bin/sh\ntrap exit TERM\nhttpd -f -p 8080 -h /www &\nwait\n' >/tmp/page/start
tar -C /tmp/page -c . | docker import --change 'CMD ["sh", "/start"]' - {PAGE}
"""
MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
SECRETS = {
    "openwebui_secret_key": "a-secret-key-of-the-tests-0123",
    "openwebui_admin_password": "a-password-of-the-tests-0123",
    "openwebui_engine_key": "an-engine-key-of-the-tests-0123",
}
STUDIO = Preflight("Darwin", "arm64", "macos", "26.1", systemd=False, memory=2**36, disk_free=2**38)


class Studio:
    """A Mac on which Open WebUI runs in a container, seen by its role."""

    def __init__(self, machine, folder):
        self.machine, self.mac = machine, MacDouble(full_disk_access=True)
        machine.sh(MAKE_PAGE)
        self.colima = Colima(self.mac, machine, 8087)
        self.colima.formulae(folder)
        eventually("the socket answers", lambda: [one.state for one in self.runtimes()] == ["answers"])

    def runtimes(self, asked=""):
        ok, lines = self.mac.answer(asked_of(ContainerRuntimes().command(asked), None))
        assert ok, lines
        return ContainerRuntimes().process(lines)

    def answer(self, asked):
        """Commands as they come over sudo: Homebrew belongs to whom the connection is of."""
        return self.mac.answer(replace(asked, text=f"export SUDO_USER={self.mac.user}\n{asked.text}"))

    def box(self, **variables):
        defaults = {"gateway_names": ["studio.example"], "gateway_port": 8443, "inference_models": [MODEL]}
        defaults |= {"openwebui_run": "container"}
        return parse_box(Box, "mac", ("darwin",), {**defaults, **SECRETS, **variables}, None, None)

    def run(self, deploy, **options):
        return run(deploy, self.answer, system="darwin", **options)

    def apply(self, **variables):
        """What a run prints, and how many of its steps change something; it must succeed."""
        machine = replace(STUDIO, container_runtimes=self.runtimes())
        box = self.box(**variables)
        result = self.run(lambda: openwebui.apply(box, machine))
        assert result.ok, result.printed
        return result.printed, sum(result.changed)

    def remove(self, **options):
        box = self.box()
        return self.run(lambda: container.remove(box, **options))

    def boxwright(self, folder, *words, **variables):
        """What the command does, over SSH."""
        inventory = self.mac.inventory(gateway_port=8443, **variables)
        return subprocess.run(
            ["boxwright", *words, "--inventory", str(inventory)],
            env={**os.environ, "BOXWRIGHT_STATE_DIR": str(folder / "state")},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    @property
    def seen(self):
        """The Mac as a check has it."""
        return SimpleNamespace(
            system_info=SimpleNamespace(type="darwin"),
            check_output=self.mac.sh,
            run=lambda command: SimpleNamespace(stdout=self.mac.sh(command)),
        )

    def inspect(self):
        (found,) = json.loads(self.machine.sh("docker inspect openwebui-openwebui-1"))
        return found


@pytest.fixture(scope="module")
def studio(machine, tmp_path_factory):
    made = Studio(machine, tmp_path_factory.mktemp("formulae"))
    yield made
    made.mac.close()


def test_on_a_mac_it_runs_in_the_runtime_that_is_there(studio):
    (found,) = studio.runtimes()
    assert (found.kind, found.owner, found.socket) == ("colima", "operator", SOCKET)
    assert found.version == studio.machine.sh("docker version --format '{{.Server.Version}}'").strip()
    printed, changed = studio.apply()
    assert changed
    assert "only while that does" in printed
    # The Mac itself reaches it, on its loopback alone.
    assert json.loads(studio.mac.sh("curl --silent --fail http://127.0.0.1:8087/health")) == {"status": True}
    container_of_it = studio.inspect()
    assert container_of_it["HostConfig"]["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8087"}]}
    assert container_of_it["State"]["Health"]["Status"] == "healthy"
    assert container_of_it["Config"]["Image"] == PAGE
    told = dict(each.partition("=")[::2] for each in container_of_it["Config"]["Env"])
    assert told["OPENAI_API_BASE_URL"] == "http://host.docker.internal:8088/v1"
    assert told["WEBUI_SECRET_KEY"] == SECRETS["openwebui_secret_key"]
    assert [mount["Name"] for mount in container_of_it["Mounts"]] == ["openwebui-data"]
    # On the Mac the secrets are root's, and root runs its own copy of the client.
    folder = "/opt/boxwright/openwebui"
    assert studio.mac.sh(f"stat -f '%Su %Lp' {folder}/openwebui.env {folder}/compose.yml") == "root 600\n" * 2
    written = studio.mac.sh(f"cat {folder}/compose.yml /opt/boxwright/docker/*.json 2>/dev/null")
    assert not [secret for secret in SECRETS.values() if secret in written]
    copies = "/opt/boxwright/docker/docker /opt/boxwright/docker/cli-plugins/docker-compose"
    assert studio.mac.sh(f"stat -f '%Su:%Sg %Lp' {copies}") == "root:wheel 755\n" * 2
    assert studio.apply()[1] == 0
    # `boxwright verify` sees it, too.
    box = studio.box()
    checks.test_healthy(studio.seen, box)
    checks.test_reached_through_the_gateway_only(studio.seen, box)
    checks.test_comes_back_after_a_reboot(studio.seen, box)


def test_a_project_of_ones_own_is_told_how_it_starts_on_the_mac(studio, tmp_path):
    mine = {"tailscale_enabled": True, "tailscale_serve": [{"port": 443}], "inference_models": [MODEL]}
    done = studio.boxwright(tmp_path, "sidecar", str(tmp_path / "chat"), **mine)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{tmp_path}/chat/compose.tailscale.yml", f"{tmp_path}/chat/serve/serve.json"]
    assert f"mac has Colima of operator ({SOCKET})" in done.stderr
    assert f"DOCKER_HOST=unix://{SOCKET} docker compose --file compose.tailscale.yml up" in done.stderr


def test_on_a_mac_what_drifted_is_repaired(studio):
    studio.machine.sh("docker stop openwebui-openwebui-1")
    assert studio.apply()[1] == 1
    assert studio.inspect()["State"]["Health"]["Status"] == "healthy"
    before = studio.inspect()["Id"]
    studio.mac.sh("echo WEBUI_NAME=mine >>/opt/boxwright/openwebui/openwebui.env; rm /opt/boxwright/docker/docker")
    assert studio.apply()[1] == 2
    assert studio.inspect()["Id"] == before
    # Another environment is another container.
    ours = {"openwebui_environment": {"WEBUI_NAME": "ours"}}
    assert studio.apply(**ours)[1]
    assert studio.inspect()["Id"] != before
    assert "WEBUI_NAME=ours" in studio.inspect()["Config"]["Env"]
    assert studio.apply(**ours)[1] == 0


def test_on_a_mac_a_runtime_that_is_off_is_refused_and_nothing_is_removed(studio, tmp_path):
    studio.colima.stop()
    try:
        assert [found.state for found in studio.runtimes()] == ["silent"]
        planned = studio.boxwright(tmp_path, "plan", "--json", openwebui_run="container", inference_engine="none")
        assert planned.returncode == 2, planned.stderr
        (problem,) = json.loads(planned.stdout)["problems"]
        assert (problem["code"], problem["variable"]) == ("BW124", "host_container_socket")
        assert "`colima start` as operator" in problem["help"]
        assert SOCKET in problem["message"]
        refused = studio.remove(purge=True)
        assert not refused.ok
        assert f"unix://{SOCKET}" in refused.printed
        assert studio.mac.sh("ls /opt/boxwright/openwebui/compose.yml").strip()
    finally:
        studio.colima.start()
        eventually("the socket answers", lambda: studio.runtimes()[0].state == "answers")
    # Who is neither root nor its owner may not use a socket; where it is, is seen.
    studio.mac.sh(f"chmod 0755 /Users/operator; chmod 0600 {SOCKET}")
    as_nobody = f"{ROOT}/linux/bin/setpriv --reuid=nobody --clear-groups sh -c"
    command = ContainerRuntimes().command(SOCKET)
    said = studio.mac.sh(f"{as_nobody} {shlex.quote(asked_of(command, None).text)} boxwright {SOCKET} /none /none")
    assert ContainerRuntimes().process(said.splitlines())[0].state == "denied", said


def test_on_a_mac_it_can_be_taken_away(studio):
    """Last: accounts and chats go only when that is said."""
    assert studio.remove(purge=False).ok
    assert studio.machine.sh("docker ps --all --quiet --filter label=com.docker.compose.project=openwebui") == ""
    assert studio.machine.sh("docker volume ls --quiet --filter name=openwebui-data") == "openwebui-data\n"
    assert studio.mac.sh("ls -d /opt/boxwright/openwebui /opt/boxwright/docker 2>/dev/null") == ""
    again = studio.remove(purge=False)
    assert again.ok
    assert not any(again.changed)
    studio.machine.sh(MAKE_PAGE)
    assert studio.apply()[1]
    assert studio.remove(purge=True).ok
    assert studio.machine.sh("docker volume ls --quiet --filter name=openwebui-data") == ""
    assert studio.machine.sh("docker network ls --quiet --filter name=openwebui") == ""
