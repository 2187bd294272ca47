"""What is refused on the box before anything is changed there: pure decisions, and the fact's parser on real output."""

from dataclasses import replace
from typing import Any

import pytest

from boxwright.preflight import Machine, Need, examine, parse

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
        ({"kernel": "Darwin", "distribution": "", "release": ""}, "Darwin"),
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
