"""What checks ask of a box, from what its tools print."""

import plistlib
from types import SimpleNamespace
from typing import Any

import pytest

from boxwright.testing.probes import (
    layers_on_the_card,
    listeners,
    process,
    session,
    sockets,
    starts_at_boot,
    unprivileged,
)

# As `ss -Hltn` of iproute2 6.1 prints it.
SOCKETS = """\
LISTEN 0      4096       127.0.0.1:9180       0.0.0.0:*
LISTEN 0      4096               *:443              *:*
LISTEN 0      128          0.0.0.0:22         0.0.0.0:*
LISTEN 0      128             [::]:22            [::]:*
LISTEN 0      4096   127.0.0.53%lo:53         0.0.0.0:*
LISTEN 0      4096   [fe80::1]%eth0:546          [::]:*
LISTEN 0      4096         0.0.0.0:8443       0.0.0.0:*
"""


def host(text: str) -> Any:
    return SimpleNamespace(check_output=lambda command: text, system_info=SimpleNamespace(type="linux"))


@pytest.mark.parametrize(
    ("port", "addresses"),
    [
        (9180, {"127.0.0.1"}),
        # One socket for both families, and one for each, are the same to clients.
        (443, {"0.0.0.0", "::"}),
        (22, {"0.0.0.0", "::"}),
        (8443, {"0.0.0.0"}),
        (53, {"127.0.0.53"}),
        (546, {"fe80::1"}),
        (44, set()),
        (3, set()),
    ],
)
def test_where_something_listens(port: int, addresses: set[str]) -> None:
    assert listeners(host(SOCKETS), port) == addresses


# As llama.cpp's server prints it, here of a model that was loaded twice.
LOADED = """\
load_tensors: loading model tensors, this can take a while... (mmap = true)
load_tensors: offloading 12 repeating layers to GPU
load_tensors: offloaded 12/29 layers to GPU
load_tensors: offloading 28 repeating layers to GPU
load_tensors: offloading output layer to GPU
load_tensors: offloaded 29/29 layers to GPU
load_tensors:        CUDA0 model buffer size =  4460.45 MiB
"""


@pytest.mark.parametrize(
    ("journal", "layers"),
    [(LOADED, (29, 29)), (LOADED.partition("load_tensors: offloading 28")[0], (12, 29)), ("srv: listening", None)],
)
def test_layers_on_the_card(journal: str, layers: tuple[int, int] | None) -> None:
    """Of the run that the service is in: what earlier ones said is in the journal too."""
    asked: list[str] = []

    def answer(command: str) -> str:
        asked.append(command)
        return "5f3c" if command.startswith("systemctl show -P InvocationID") else journal

    assert (
        layers_on_the_card(SimpleNamespace(check_output=answer, system_info=SimpleNamespace(type="linux")), "llamacpp")
        == layers
    )
    assert "_SYSTEMD_INVOCATION_ID=5f3c" in asked[-1]


# As launchctl and lsof print it.
JOB = """\
system/boxwright.llamacpp = {
	active count = 1
	state = running
	arguments = {
		/opt/boxwright/launchd/start
	}
	username = _llamacpp
	pid = 54109
	resource coalition = {
		state = active
	}
}
"""
DISABLED = """
	disabled services = {
		"com.apple.ftpd" => disabled
		"boxwright.old" => disabled
		"boxwright.older" => true
		"boxwright.llamacpp" => enabled
	}
"""


def a_mac(**answers: str) -> Any:
    """A Mac that answers a command by its first words, with underscores between."""

    def said(command: str) -> str:
        return next(text for words, text in answers.items() if command.startswith(words.replace("_", " ")))

    return SimpleNamespace(
        check_output=said,
        run=lambda command: SimpleNamespace(stdout=said(command), rc=0),
        file=lambda path: SimpleNamespace(exists="absent" not in path and "/LaunchAgents/" not in path),
        system_info=SimpleNamespace(type="darwin"),
    )


def test_listeners_of_a_mac() -> None:
    both = "p512\ncpython\nf17\ntIPv4\nn127.0.0.1:8081\nf18\ntIPv6\nn[::1]:8081\nf19\ntIPv4\nn*:8082\n"
    assert listeners(a_mac(lsof=both), 8081) == {"127.0.0.1", "::1"}
    assert listeners(a_mac(lsof=both), 8082) == {"0.0.0.0"}
    assert listeners(a_mac(lsof="p512\ncpython\nf17\ntIPv6\nn*:8081\n"), 8081) == {"0.0.0.0", "::"}
    assert listeners(a_mac(lsof=""), 8081) == set()
    assert list(sockets(a_mac(lsof=both))) == [
        ("python", "127.0.0.1", 8081),
        ("python", "::1", 8081),
        ("python", "*", 8082),
    ]


def test_an_agent_of_a_mac() -> None:
    """Its session is asked, and its user; where that has no session, who reads it is told why nothing runs."""
    words = ["/opt/boxwright/launchd/start", "start", "--name", "llamacpp", "--user", "ada", "--", "/bin/x"]
    definition = plistlib.dumps({"ProgramArguments": words})
    asked: list[str] = []

    def run(command: str) -> Any:
        asked.append(command)
        answers = {"id -u ada": "502\n", "launchctl print-disabled": DISABLED, "launchctl print ": JOB, "ps": "ada\n"}
        text = next(text for words, text in answers.items() if command.startswith(words))
        return SimpleNamespace(stdout=text, stderr="Could not find domain", rc=112 if away and text == JOB else 0)

    away = False
    host = SimpleNamespace(
        run=run,
        check_output=lambda command: run(command).stdout,
        file=lambda path: SimpleNamespace(exists=path.startswith("/Library/LaunchAgents/"), content=definition),
        system_info=SimpleNamespace(type="darwin"),
    )
    assert session(host, "llamacpp") == "ada"
    assert process(host, "llamacpp") == 54109
    assert "launchctl print gui/502/boxwright.llamacpp" in asked
    assert unprivileged(host, "llamacpp", "llamacpp")
    assert [starts_at_boot(host, name) for name in ("llamacpp", "old")] == [True, False]
    assert asked[-1] == "launchctl print-disabled gui/502"
    away = True
    with pytest.raises(AssertionError, match="starts when ada signs in: Could not find domain"):
        process(host, "llamacpp")


def test_services_of_a_mac() -> None:
    host = a_mac(**{"launchctl_print_": JOB, "launchctl_print-disabled": DISABLED, "ps": "_llamacpp\n", "cat": LOADED})
    assert process(host, "llamacpp") == 54109
    assert unprivileged(host, "llamacpp", "llamacpp")
    assert not unprivileged(host, "llamacpp", "ollama")
    assert layers_on_the_card(host, "llamacpp") == (29, 29)
    assert [starts_at_boot(host, name) for name in ("llamacpp", "other", "old", "older", "absent")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(AssertionError, match="does not run"):
        process(a_mac(launchctl_print=JOB.replace("state = running", "state = spawn scheduled")), "llamacpp")
