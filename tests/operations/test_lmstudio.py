"""Installing LM Studio's bundle, on a host that is made up; on a box it is done in integration/test_lmstudio.py."""

import pytest
from harness import run

from boxwright.facts.lmstudio import MARKER, Installation, Installed
from boxwright.operations import lmstudio

HOME, BUNDLE, DIGEST = "/var/lib/lmstudio/0123456789abcdef", "/var/lib/x/bundle.tar.gz", "a" * 128


def install(*found, ok=True, fails=False):
    """The result on a host that says `found` of the installation."""
    asked = []

    def answer(command):
        asked.append(command)
        if "bootstrap" in command.text:
            return (False, ["llmster bootstrap failed: no"]) if fails else (True, [])
        return ok, list(found)

    return run(lambda: lmstudio.installed(home=HOME, bundle=BUNDLE, digest=DIGEST, user="lmstudio"), answer), asked


@pytest.mark.parametrize(
    ("found", "changed"),
    [
        (["owner="], True),
        (["owner=lmstudio", f"bundle={DIGEST}", "command=yes"], False),
        (["owner=lmstudio", "command=yes"], True),
        (["owner=lmstudio", f"bundle={'b' * 128}", "command=yes"], True),
        (["owner=lmstudio", f"bundle={DIGEST}"], True),
        (["owner=root", f"bundle={DIGEST}", "command=yes"], True),
    ],
)
def test_what_is_made_anew(found, changed):
    result, asked = install(*found)
    assert result.changed == [changed]
    assert len(asked) == 1 + changed
    if changed:
        assert asked[1].arguments == (HOME, BUNDLE, DIGEST, "lmstudio", MARKER)


def test_a_bundle_that_cannot_be_installed_fails_the_step():
    result, _ = install("owner=", fails=True)
    assert not result.ok
    assert "llmster bootstrap failed: no" in result.printed


def test_an_installation_that_cannot_be_examined_is_refused():
    result, _ = install("owner=root", ok=False)
    assert not result.ok


def test_what_is_not_the_state_of_an_installation():
    with pytest.raises(Exception, match="not the state of an installation"):
        Installation().process(["something else"])
    assert Installation().process(["owner=", "command=yes"]) == Installed("", True, "")
