"""Programs of text files on a Debian and on the double of a Mac: installed, changed by hand, replaced, cut short."""

from __future__ import annotations

import pytest
from machine import Machine

from boxwright.operations import python_packages, trees
from tests.doubles.macos import MacDouble

pytestmark = pytest.mark.lab

FILES = {"package/__init__.py": "", "package/main.py": 'print("it\'s $HOME, ü")\n', "package/sql/one.lua": "return 1\n"}
BASE = "/opt/boxwright/sample"
PATH = f"{BASE}/{trees.digest(FILES)}"


@pytest.fixture(scope="module", params=[Machine, MacDouble])
def machine(request):
    machine = request.param()
    yield machine
    machine.close()


def install(machine, files=FILES, path=PATH, **options):
    result = machine.run(lambda: trees.installed(path, files), **options)
    assert result.ok, result.printed
    return result.changed == [True]


def held(machine, path=PATH):
    """Names of the files, with what others may do with them."""
    return machine.sh(f"cd {path} && find . -type f -exec ls -ln {{}} ';'").splitlines()


def test_a_plan_makes_nothing(machine):
    assert install(machine, dry=True)
    assert "No such file" in machine.sh(f"ls {BASE}")


def test_installed_once(machine):
    assert install(machine)
    assert not install(machine)
    lines = held(machine)
    assert len(lines) == len(FILES)
    assert all(line.startswith("-rw-r--r--") and line.split()[2:4] == ["0", "0"] for line in lines)
    assert machine.sh(f"cat {PATH}/package/main.py") == FILES["package/main.py"]


@pytest.mark.parametrize(
    "damage",
    [
        "echo changed >>package/main.py",
        "rm package/sql/one.lua",
        "echo more >package/more.py",
        "chmod 0666 package/main.py",
        "chmod 0777 package",
        "rm package/main.py; ln -s /etc/passwd package/main.py",
        "chown 1 package/main.py",
    ],
)
def test_what_was_changed_by_hand_is_replaced_as_a_whole(machine, damage):
    install(machine)
    before = machine.sh(f"ls -di {PATH}").split()[0]
    machine.sh(f"cd {PATH} && {damage}")
    assert install(machine)
    assert not install(machine)
    assert machine.sh(f"ls -di {PATH}").split()[0] != before, "a service does not see that it was replaced"
    assert len(held(machine)) == len(FILES)


def test_what_did_not_arrive_whole_replaces_nothing(machine):
    install(machine)
    machine.sh(f"echo changed >>{PATH}/package/main.py")

    def cut(asked):
        from dataclasses import replace

        return machine.answer(replace(asked, stdin=asked.stdin[: len(asked.stdin) // 2]))

    from harness import run

    result = run(lambda: trees.installed(PATH, FILES), cut, system=machine.system)
    assert not result.ok
    assert "did not arrive whole" in result.printed
    assert "changed" in machine.sh(f"cat {PATH}/package/main.py")
    assert machine.sh(f"ls {BASE}").split() == [PATH.rpartition("/")[2]]
    assert install(machine)


def test_older_ones_go(machine):
    install(machine)
    other = {"a.py": "pass\n"}
    newer = f"{BASE}/{trees.digest(other)}"
    install(machine, other, newer)
    assert machine.run(lambda: python_packages.prune(BASE, [newer])).changed == [True]
    assert machine.sh(f"ls {BASE}").split() == [newer.rpartition("/")[2]]
    assert machine.run(lambda: python_packages.prune(BASE, [newer])).changed == [False]


def test_names_that_lead_elsewhere(machine):
    for name in ("../x", "/etc/x", "a b", "a//b", ".hidden"):
        result = machine.run(lambda name=name: trees.installed(PATH, {name: ""}))
        assert not result.ok
        assert "not the name of a file" in result.printed
