"""What must hold of vLLM."""

from typing import Any

import pytest

# vLLM answers on these without asking for a key.
OPEN = ("invocations", "pause", "tokenize", "metrics", "version", "v2/x", "inference/x")


@pytest.fixture
def model(box: Any) -> Any:
    """The model that it serves."""
    return box.inference.models_of("vllm")[0]


def test_the_key_is_nobodys_business(host: Any, box: Any) -> None:
    """The key is in no command line and in no file that others can read, and the server asks for it."""
    key = box.vllm.api_key.get_secret_value()
    assert key not in host.check_output("ps -eo args")
    assert host.file("/etc/boxwright/vllm.env").mode == 0o600
    assert key not in host.file("/etc/systemd/system/vllm.service").content_string
    status = f"curl --silent --output /dev/null --write-out '%{{http_code}}' {box.vllm.base_url}/v1/models"
    assert host.check_output(status) == "401"


@pytest.mark.parametrize("path", OPEN)
def test_administration_is_not_handed_on(outside: Any, box: Any, path: str) -> None:
    """What vLLM offers to everybody is not to be had from outside, with credentials or without."""
    main = box.inference.running[0] == "vllm"
    for auth in (True, False):
        answer = outside.get(path if main else f"vllm/{path}", auth=auth)
        assert answer.status_code in (401, 404) or "openwebui" in answer.text.lower().replace(" ", "")
