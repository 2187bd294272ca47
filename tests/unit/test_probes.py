"""What checks ask of a box, from what its tools print."""

from types import SimpleNamespace
from typing import Any

import pytest

from boxwright.testing.probes import layers_on_the_card, listeners

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
    return SimpleNamespace(check_output=lambda command: text)


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

    assert layers_on_the_card(SimpleNamespace(check_output=answer), "llamacpp") == layers
    assert "_SYSTEMD_INVOCATION_ID=5f3c" in asked[-1]
