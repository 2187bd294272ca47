"""The host and docker roles from settings alone, on releases that no lab box runs; words of older versions of apt."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from boxwright.errors import Refused
from boxwright.operations import apt_repositories
from boxwright.preflight import Machine, Need, PreflightRefused, examine, parse
from boxwright.settings import parse_box
from roles.docker import tasks as docker
from roles.host import linux
from roles.host import tasks as host
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}

# The lines of /etc/os-release that are asked for, in their order, as base-files of each release has them.
RELEASES = {
    ("debian", "12", "bookworm"): 'VERSION_ID="12"\nVERSION_CODENAME=bookworm\nID=debian\n',
    ("debian", "13", "trixie"): 'VERSION_ID="13"\nVERSION_CODENAME=trixie\nID=debian\n',
    ("ubuntu", "22.04", "jammy"): 'VERSION_ID="22.04"\nVERSION_CODENAME=jammy\nID=ubuntu\n',
    ("ubuntu", "24.04", "noble"): 'VERSION_ID="24.04"\nVERSION_CODENAME=noble\nID=ubuntu\n',
    ("ubuntu", "26.04", "resolute"): 'VERSION_ID="26.04"\nVERSION_CODENAME=resolute\nID=ubuntu\n',
}


def machine(text: str, *more: str, now: float | None = None) -> Machine:
    lines = ["kernel=Linux", "architecture=x86_64", *text.splitlines(), "systemd=yes", "memory=8000000", *more]
    return parse(lines, now)


def a_box(**variables: Any) -> Box:
    return parse_box(
        Box, "box", (), {"gateway_names": ["llm.example"], "inference_models": [MODEL], **variables}, None, None
    )


@pytest.mark.parametrize(("release", "text"), RELEASES.items())
def test_every_supported_release(release: tuple[str, str, str], text: str) -> None:
    found = machine(text)
    assert (found.distribution, found.release, found.codename) == release
    assert examine(found, Need()) == []


@pytest.mark.parametrize(
    "text",
    [
        'VERSION_ID="20.04"\nVERSION_CODENAME=focal\nID=ubuntu\n',
        'VERSION_ID="25.10"\nVERSION_CODENAME=questing\nID=ubuntu\n',
        'VERSION_ID="11"\nVERSION_CODENAME=bullseye\nID=debian\n',
        # Debian testing and derivatives.
        "VERSION_CODENAME=forky\nID=debian\n",
        'VERSION_ID="22.1"\nVERSION_CODENAME=xia\nID=linuxmint\n',
    ],
)
def test_releases_that_are_refused(text: str) -> None:
    (problem,) = examine(machine(text), Need())
    assert problem.code == "BW110"
    assert "ubuntu 22.04 and 24.04 and 26.04" in str(problem.help).lower()


class TestClock:
    @pytest.mark.parametrize(
        ("clock", "words"),
        [
            (1_000_020, ""),
            (1_000_400, "the clock is 7 min ahead of this machine's"),
            (982_000, "the clock is 5 h behind this machine's"),
            (0, "the clock is 12 d behind this machine's"),
        ],
    )
    def test_what_is_said(self, clock: int, words: str) -> None:
        found = machine(RELEASES["debian", "13", "trixie"], f"clock={clock}", now=1_000_000)
        said = host.clock_words(found.clock_offset)
        assert said.startswith(words)
        assert bool(said) == bool(words)

    def test_whose_clock_it_is(self) -> None:
        text = RELEASES["ubuntu", "24.04", "noble"]
        assert linux.keeps_time(a_box(), machine(text, "time_service=systemd-timesyncd"))
        assert not linux.keeps_time(a_box(), machine(text, "time_service=chrony"))
        assert not linux.keeps_time(a_box(), machine(text, "container=yes"))
        assert not linux.keeps_time(a_box(host_time_sync=False), machine(text))


class TestUpdates:
    @pytest.mark.parametrize(
        ("distribution", "policy", "origins"),
        [
            ("ubuntu", "security", {"-security", "-apps-security", "-infra-security"}),
            ("ubuntu", "all", {"-security", "-apps-security", "-infra-security", "", "-updates"}),
            ("debian", "security", {"-security", ""}),
            ("debian", "all", {"-security", "", "-updates"}),
        ],
    )
    def test_origins(self, distribution: str, policy: str, origins: set[str]) -> None:
        text = linux.upgrades_text(a_box(host_unattended_upgrades=policy), distribution)
        found = re.findall(r'^    "(origin=.*)";$', text, re.MULTILINE)
        assert {re.sub(r".*\$\{distro_codename\}([\w-]*).*", r"\1", line) for line in found} == origins
        if (distribution, policy) == ("debian", "security"):
            assert all("label=Debian-Security" in line for line in found)

    def test_what_is_held(self) -> None:
        """Names of packages as Ubuntu 24.04 and NVIDIA's and Docker's repositories have them, and their neighbours."""
        held = [re.compile(pattern) for pattern in a_box().host.upgrade_holds]

        def matches(name: str) -> bool:
            return any(pattern.match(name) for pattern in held)

        drivers = "nvidia-driver-580-server-open libnvidia-compute-580-server nvidia-dkms-580-server-open cuda-drivers"
        modules = "linux-modules-nvidia-580-server-open-generic linux-objects-nvidia-580-server-6.8.0-85-generic"
        engines = "docker-ce docker.io docker-compose-v2 containerd.io containerd runc nvidia-container-toolkit"
        assert [name for name in f"{drivers} {modules} {engines}".split() if not matches(name)] == []
        others = "linux-image-generic openssl libc6 runcom libcurl4t64 openssh-server linux-firmware"
        assert [name for name in others.split() if matches(name)] == []

    @pytest.mark.parametrize(
        ("variables", "words"),
        [
            ({"host_upgrade_reboot": "04:30"}, "has no effect"),
            ({"host_upgrade_origins": ["origin=Example"]}, "has no effect"),
            ({"host_upgrade_reboot": "24:00"}, "host_upgrade_reboot"),
            ({"host_upgrade_holds": ["nvidia-("]}, "regular expression"),
            ({"host_upgrade_holds": ['x"; APT::Pre-Invoke {"id']}, "host_upgrade_holds"),
            ({"host_upgrade_origins": ['a=b";'], "host_unattended_upgrades": "all"}, "host_upgrade_origins"),
            ({"host_time_servers": ["a b"]}, "host_time_servers"),
            ({"host_unattended_upgrades": "sometimes"}, "host_unattended_upgrades"),
        ],
    )
    def test_refused(self, variables: dict[str, Any], words: str) -> None:
        with pytest.raises(Refused) as refused:
            a_box(**variables)
        assert words in str(refused.value)


class TestDocker:
    @pytest.mark.parametrize(("release", "text"), RELEASES.items())
    def test_packages(self, release: tuple[str, str, str], text: str) -> None:
        found = docker.packages(a_box(docker_repository="docker"), machine(text))
        assert found[:3] == ("docker-ce", "docker-ce-cli", "containerd.io")
        repository = docker.REPOSITORY.on(distribution=release[0], release=release[1], codename=release[2])
        assert repository.url == f"https://download.docker.com/linux/{release[0]}"
        assert repository.suite == release[2]

    def test_where_the_distribution_has_none(self) -> None:
        with pytest.raises(PreflightRefused) as refused:
            docker.packages(a_box(), machine(RELEASES["debian", "12", "bookworm"]))
        assert "docker_repository: docker" in str(refused.value.problems[0].help)

    def test_a_mirrors_key_without_a_mirror(self) -> None:
        with pytest.raises(Refused) as refused:
            a_box(mirror_key_fingerprint="0" * 40)
        assert "there is no mirror" in str(refused.value)


# What `apt-get update` of apt 2.6 (Debian 12, which verifies with gpgv as Ubuntu does up to 24.04) printed of
# repositories that were signed for it; what apt 3.0 prints is in operations/test_apt_repositories.py.
SAID = re.findall(r"=== (.*)\n((?:(?!===).*\n)+)", (Path(__file__).parent / "apt-2.6.txt").read_text())


@pytest.mark.parametrize(("words", "said"), SAID)
def test_what_apt_says_is_explained(words: str, said: str) -> None:
    body = re.search(r"^explain\(\) \{\n.*?^\}\n", apt_repositories._ADD, re.MULTILINE | re.DOTALL)
    assert body
    names = "url=http://127.0.0.1:8000/tools suite=trixie fingerprint=ABC now=now\n"
    done = subprocess.run(
        ["sh", "-c", f'{names}{body.group()}explain "$1"', "explain", said], capture_output=True, text=True, check=True
    )
    assert words in done.stdout


def test_every_answer_of_apt_was_asked() -> None:
    assert len(SAID) == 12
