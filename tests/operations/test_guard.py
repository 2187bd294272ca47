"""A change that could cut the operator off, on a machine with a real systemd: confirmed it stays, else it goes.

Whether a new connection is let in is made up here; tests/integration/test_firewall.py has real ones.
"""

from dataclasses import replace

import pytest
from machine import Machine

from boxwright.guard import FOLDER, PROGRAM_PATH, Change, NewFile
from boxwright.operations import guard
from boxwright.operations.api import operation
from boxwright.operations.guard import Confirm

pytestmark = pytest.mark.lab

PATH, NEWER = "/etc/sample/door", "/etc/sample/new/door"
# What is in force is a file that `force` makes of the first one, as a kernel or a service would.
CHANGE = {
    "name": "sample",
    "save": "cp /run/in-force was-in-force",
    "force": f"cp {PATH} /run/in-force",
    "restore": "cp was-in-force /run/in-force",
}


def change(text: str = "shut\n", **parts: str) -> Change:
    files = {PATH: NewFile(text, 0o600, validate="grep -q . {path}"), NEWER: NewFile("x\n")}
    return Change(**{**CHANGE, "files": files, **parts})


@operation()
def changed(wanted, deadline=30):
    yield from guard.settled(wanted.name)
    yield from guard.guarded(wanted, deadline)


@operation()
def killed(wanted, deadline=600):
    """Everything until the confirmation, and then no more."""
    for command in guard.guarded(wanted, deadline):
        if isinstance(command, Confirm):
            return
        yield command


@pytest.fixture(scope="module")
def machine():
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture
def door(machine):
    """The machine with its door open, and nothing under way."""
    machine.sh(f"rm -rf /etc/sample {FOLDER}/sample; mkdir -p /etc/sample; printf 'open\\n' >{PATH}; chmod 640 {PATH}")
    machine.sh(f"cp {PATH} /run/in-force; chown daemon: {PATH}")
    assert machine.run(guard.ready).ok
    return machine


def state(machine):
    """What the door is, and whether anything of the change is left."""
    left = machine.sh(f"ls {FOLDER}/sample 2>/dev/null; systemctl list-timers --all --no-legend 'boxwright-guard-*'")
    words = [word for word in left.split() if word not in ("lock", "undone")]
    kept = [word for word in words if word == "armed" or word.endswith(".timer")]
    return machine.sh(f"cat {PATH} /run/in-force; stat -c '%U %a' {PATH}; ls -d {NEWER} 2>/dev/null").split(), kept


OPEN = (["open", "open", "daemon", "640"], [])
SHUT = ["shut", "shut", "root", "600", NEWER]


def test_confirmed_it_stays(door):
    result = door.run(lambda: changed(change()))
    assert result.ok, result.printed
    assert state(door) == (SHUT, [])
    assert door.sh(f"ls {FOLDER}/sample") == "lock\n"
    assert door.sh(f"stat -c %a {FOLDER} {FOLDER}/sample") == "700\n700\n"


def test_not_confirmed_it_is_undone_by_the_machine(door):
    result = door.run(lambda: changed(change(), deadline=2), reached=False)
    assert not result.ok
    assert "nobody is let in" in result.printed
    assert "was not confirmed by a new connection" in result.printed
    assert state(door) == OPEN
    # A confirmation that comes too late says so.
    assert "was taken back already" in door.sh(f"{PROGRAM_PATH} confirm sample whatever")


def test_what_is_not_valid_or_cannot_be_put_in_force_changes_nothing(door):
    result = door.run(lambda: changed(change(text="")))
    assert not result.ok
    assert "not accepted by: grep" in result.printed
    assert state(door) == OPEN
    result = door.run(lambda: changed(change(force=f"cp {PATH} /run/in-force; echo it broke >&2; exit 1")))
    assert not result.ok
    assert "it broke" in result.printed
    assert "was taken back at once" in result.printed
    assert state(door) == OPEN
    result = door.run(lambda: changed(change(save="exit 1")))
    assert "nothing was changed" in result.printed
    assert state(door) == OPEN


def test_a_run_that_was_killed(door):
    """The timer undoes it; another run waits for that, also where somebody stopped the timer."""
    assert door.run(lambda: killed(change(), deadline=3)).ok
    assert state(door)[0] == SHUT
    assert door.run(lambda: killed(change())).ok is False, "one change at a time"
    result = door.run(lambda: changed(change(text="ajar\n")))
    assert result.ok, result.printed
    assert state(door) == (["ajar", "ajar", *SHUT[2:]], [])

    assert door.run(lambda: killed(change())).ok
    door.sh("systemctl stop boxwright-guard-sample.timer")
    door.sh(f"{PROGRAM_PATH} wait sample")
    assert state(door) == (["ajar", "ajar", *SHUT[2:]], [])


def test_a_reboot_before_the_confirmation(door):
    assert door.run(lambda: killed(change())).ok
    door.reboot()
    # What is in force is nobody's after a boot; the files are what it will be made of.
    assert door.sh(f"cat {PATH}; ls {NEWER} 2>/dev/null") == "open\n"
    assert "it was taken back" in door.sh("journalctl --no-pager --output cat --unit boxwright-guard")
    assert state(door)[1] == []


def test_a_reboot_where_a_program_keeps_the_state_itself(door):
    """What is in force comes back when that program has started."""
    unit = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'sleep 1; echo shut >/run/in-force'\n"
    door.put("/etc/systemd/system/keeper.service", f"{unit}[Install]\nWantedBy=multi-user.target\n".encode())
    door.sh("systemctl enable keeper")
    wanted = replace(change(after="keeper.service"), files={})
    assert door.run(lambda: killed(wanted)).ok
    assert door.sh("cat /run/in-force") == "open\n"
    door.reboot()
    door.sh(f"{PROGRAM_PATH} wait sample")
    assert state(door) == OPEN
    door.sh("systemctl disable keeper; rm /etc/systemd/system/keeper.service")


def test_it_is_made_and_goes(door):
    assert door.run(guard.ready).changed == [False]
    door.sh(f"rm {PROGRAM_PATH}; systemctl disable boxwright-guard")
    assert door.run(guard.ready).changed == [True]
    assert door.run(guard.ready).changed == [False]
    assert door.run(lambda: killed(change(), deadline=2)).ok
    assert door.run(guard.absent).changed == [True]
    assert state(door)[0] == OPEN[0]
    assert door.run(guard.absent).changed == [False]
    assert door.sh(f"ls -d {PROGRAM_PATH} {FOLDER} /etc/systemd/system/*/boxwright-guard* 2>/dev/null") == ""
