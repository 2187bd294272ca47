"""What must hold of MLX's server."""

import json
import shlex
from typing import Any

import pytest


@pytest.fixture
def model(box: Any) -> Any:
    """The model that it serves."""
    return box.inference.models_of("mlx")[0]


def test_answers(host: Any, box: Any, model: Any) -> None:
    """The engine offers the model under its public name, and no other."""
    answer = host.check_output(f"curl --silent --fail http://127.0.0.1:{box.mlx.port}/v1/models")
    assert [entry["id"] for entry in json.loads(answer)["data"]] == [model.name]


def test_no_other_model(host: Any, box: Any) -> None:
    """Whoever asks for another model, by name or by path, is refused."""
    for other in ("/etc", "mlx-community/another"):
        question = json.dumps({"model": other, "messages": [{"role": "user", "content": "Hello"}]})
        status = host.check_output(
            "curl --silent --output /dev/null --write-out '%{http_code}' --header 'Content-Type: application/json' "
            f"--data {shlex.quote(question)} http://127.0.0.1:{box.mlx.port}/v1/chat/completions"
        )
        assert status == "404"
