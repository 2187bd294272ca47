"""Networks and Compose projects on a real Docker Engine with its compose plugin, in the versions of Debian."""

import json

import pytest
from harness import asked_of
from machine import Machine

from boxwright.facts.docker import ComposeProject
from boxwright.operations import apt, docker, files, services
from boxwright.services import PackagedService

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
