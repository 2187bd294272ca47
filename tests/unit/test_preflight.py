"""What is refused on the box before anything is changed there: pure decisions, and the fact's parser on real output."""

from dataclasses import replace
from typing import Any

import pytest

from boxwright.preflight import Machine, Need, darwin, examine, parse

GIB = 2**30
DEBIAN = Machine("Linux", "x86_64", "debian", "13", systemd=True, memory=8 * GIB, disk_free=50 * GIB)

# As the fact's command printed it on a Debian 13 lab box.
PRINTED = """\
kernel=Linux
architecture=x86_64
VERSION_ID="13"
VERSION_CODENAME=trixie
ID=debian
systemd=yes
memory=24684304
disk=83459964
graphics=49140
listen=8088 caddy
listen=8081 python
listen=22 sshd
listen=443 caddy
listen=22 sshd
listen=37019
file=/var/lib/boxwright/models/b179c9523d0e-model.gguf
""".splitlines()


def test_parse_reads_what_the_box_prints() -> None:
    machine = parse(PRINTED)
    assert (machine.kernel, machine.architecture, machine.distribution, machine.release) == (
        "Linux",
        "x86_64",
        "debian",
        "13",
    )
    assert machine.codename == "trixie"
    assert machine.systemd
    assert machine.memory == 24684304 * 1024
    assert machine.disk_free == 83459964 * 1024
    assert machine.graphics_memory == 49140 * 2**20
    assert machine.listeners == {
        8088: ("caddy",),
        8081: ("python",),
        22: ("sshd",),
        443: ("caddy",),
        37019: ("another process",),
    }
    assert machine.files == {"/var/lib/boxwright/models/b179c9523d0e-model.gguf"}


def test_a_fit_machine_has_no_problem() -> None:
    assert examine(DEBIAN, Need(memory=GIB, downloads={"/m": GIB}, ports={443: ("gateway_port", ("caddy",))})) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"distribution": "fedora", "release": "44"}, "fedora 44"),
        ({"distribution": "debian", "release": "11"}, "debian 11"),
        ({"distribution": "ubuntu", "release": "20.04"}, "ubuntu 20.04"),
        ({"kernel": "FreeBSD", "distribution": "", "release": ""}, "FreeBSD"),
    ],
)
def test_an_unsupported_system_is_the_only_thing_said(change: dict[str, Any], found: str) -> None:
    (problem,) = examine(replace(DEBIAN, systemd=False, **change), Need(memory=64 * GIB))
    assert problem.code == "BW110"
    assert found in problem.message
    assert "Debian 12 and 13, Ubuntu 22.04 and 24.04 and 26.04" in (problem.help or "")


def test_everything_else_is_said_at_once() -> None:
    machine = replace(DEBIAN, architecture="riscv64", systemd=False, listeners={443: ("nginx",), 8081: ("python",)})
    need = Need(
        memory=9 * GIB,
        memory_variable="inference_models",
        downloads={"/model": 46 * GIB},
        ports={443: ("gateway_port", ("caddy",)), 8081: ("llamacpp_port", ("python",))},
    )
    problems = examine(machine, need)
    assert [problem.code for problem in problems] == ["BW110", "BW110", "BW111", "BW112", "BW113"]
    assert "9.0 GiB of memory, the box has 8.0 GiB" in problems[2].message
    # 46 GiB and a tenth of it do not fit into 50 GiB.
    assert "50.6 GiB of disk space" in problems[3].message
    assert problems[4].variable == "gateway_port"
    assert "443 of the box is taken by nginx" in problems[4].message


def test_a_model_that_is_there_needs_no_more_disk() -> None:
    need = Need(downloads={"/model": 60 * GIB})
    assert [problem.code for problem in examine(DEBIAN, need)] == ["BW112"]
    assert examine(replace(DEBIAN, files=frozenset({"/model"})), need) == []


def test_needs_add_up() -> None:
    both = Need(memory=1, memory_variable="a", downloads={"/a": 1}, files=("/x",), ports={1: ("a", ())}) + Need(
        memory=2, downloads={"/b": 2}, files=("/y",), ports={2: ("b", ())}
    )
    assert both == Need(
        memory=3,
        memory_variable="a",
        downloads={"/a": 1, "/b": 2},
        files=("/x", "/y"),
        ports={1: ("a", ()), 2: ("b", ())},
    )


# As the programs of a Mac answer: sw_vers of macOS 26.5, lsof with -F pcn as root.
PRINTED_BY_A_MAC = """\
kernel=Darwin
architecture=arm64
clock=1787839200
sw_vers=ProductName:\t\tmacOS
sw_vers=ProductVersion:\t\t26.5.2
sw_vers=BuildVersion:\t\t25F84
translated=0
chip=Apple M2 Max
memory=67108864
disk=536870912
fdesetup=FileVault is On.
fdesetup=Encryption in progress: Percent completed = 42.5
lsof=p1
lsof=claunchd
lsof=f7
lsof=n*:22
lsof=f9
lsof=n*:22
lsof=p570
lsof=crapportd
lsof=f17
lsof=n*:49276
lsof=p812
lsof=cGoogle\\x20Chrome\\x20Helper
lsof=f21
lsof=n127.0.0.1:8080
lsof=p900
lsof=ccaddy
lsof=f8
lsof=n[::1]:443
lsof=p901
lsof=ctailscaled
lsof=f8
lsof=n100.64.0.2:8443
file=/var/lib/boxwright/models/b179c9523d0e-model.gguf
""".splitlines()
MAC = Machine("Darwin", "arm64", "macos", "26.5.2", systemd=False, memory=64 * GIB, disk_free=500 * GIB)


def test_parse_reads_what_a_mac_prints() -> None:
    machine = parse(PRINTED_BY_A_MAC, now=1787839190)
    assert (machine.kernel, machine.architecture, machine.distribution, machine.release) == (
        "Darwin",
        "arm64",
        "macos",
        "26.5.2",
    )
    assert (machine.memory, machine.disk_free, machine.chip) == (64 * GIB, 512 * GIB, "Apple M2 Max")
    assert (machine.translated, machine.filevault, machine.clock_offset) == (False, "on", 10)
    assert machine.listeners == {
        22: ("launchd",),
        49276: ("rapportd",),
        8080: ("Google Chrome Helper",),
        443: ("caddy",),
    }
    assert machine.files == {"/var/lib/boxwright/models/b179c9523d0e-model.gguf"}
    assert examine(machine, Need(memory=32 * GIB, ports={443: ("gateway_port", ("caddy",))}), "darwin") == []


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (["FileVault is On."], "on"),
        (["FileVault is Off."], "off"),
        (["FileVault is Off, but will be enabled after the next restart."], "on"),
        (["Error: something else"], ""),
        ([], ""),
    ],
)
def test_filevault(said: list[str], state: str) -> None:
    assert darwin.filevault(said) == state


@pytest.mark.parametrize(
    ("change", "said", "way_out"),
    [
        ({"architecture": "x86_64"}, "another processor than Apple's (x86_64)", "Apple silicon"),
        ({"architecture": "x86_64", "translated": True}, "translated by Rosetta", "chsh -s /bin/zsh"),
        ({"release": "13.7.8"}, "macOS 13.7.8", "update it to macOS 14 or later"),
        ({"release": "10.16"}, "macOS 10.16", "update it to macOS 14 or later"),
        ({"release": ""}, "an unknown version", "update it to macOS 14 or later"),
    ],
)
def test_a_mac_that_is_not_supported(change: dict[str, Any], said: str, way_out: str) -> None:
    (problem,) = examine(replace(MAC, **change), Need(memory=900 * GIB), "darwin")
    assert problem.code == "BW110"
    assert said in problem.message
    assert way_out in (problem.help or "")


@pytest.mark.parametrize("release", ["14.0", "15.7.3", "26.0", "27.0"])
def test_releases_of_macos_that_are_supported(release: str) -> None:
    assert examine(replace(MAC, release=release), Need(), "darwin") == []


def test_what_a_mac_lacks_is_said_at_once() -> None:
    machine = replace(MAC, listeners={443: ("nginx",)})
    need = Need(memory=65 * GIB, memory_variable="inference_models", ports={443: ("gateway_port", ("caddy",))})
    need += Need(downloads={"/model": 600 * GIB})
    assert [problem.code for problem in examine(machine, need, "darwin")] == ["BW111", "BW112", "BW113"]


@pytest.mark.parametrize(
    ("machine", "system", "said", "group"),
    [
        (MAC, "linux", "the box is a Mac", "put it into the group `darwin`"),
        (replace(MAC, release="12.1"), "linux", "the box is a Mac", "put it into the group `darwin`"),
        (DEBIAN, "darwin", "the box runs Linux", "put it into the group `linux`"),
    ],
)
def test_a_box_in_the_group_of_the_other_system(machine: Machine, system: Any, said: str, group: str) -> None:
    (problem,) = examine(machine, Need(memory=900 * GIB), system)
    assert problem.code == "BW121"
    assert said in problem.message
    assert group in (problem.help or "")
