"""What `boxwright client` prints: right for the box, pasteable, and without secrets unless one was asked for."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from boxwright.cli import CLIENT_PARTS
from boxwright.client import PLACEHOLDER, guide
from boxwright.settings import parse_box
from roles.registry import Box

CHAT = {"name": "talker", "url": "https://m.example/t.gguf", "sha256": "ab" * 32, "size": 1, "context": 512}
EMBEDDING = {**CHAT, "name": "embedder", "kind": "embedding", "sha256": "cd" * 32}
TOKEN = "token-of-the-tests-0123456789"


def a_box(**variables: Any) -> Box:
    values = {"gateway_names": ["llm.example"], "inference_models": [CHAT, EMBEDDING], **variables}
    return parse_box(Box, "box", (), values, None, None)


def part(name: str, **arguments: Any) -> str:
    return guide(a_box(), arguments.pop("certificate", None), parts=[name], **arguments)


def environment(text: str) -> dict[str, str]:
    """The variables that a shell has after it read `text`."""
    done = subprocess.run(["sh", "-c", f"{text}\nenv"], capture_output=True, text=True, check=True, env={})
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_the_environment_is_read_by_a_shell() -> None:
    found = environment(part("env", key=TOKEN, certificate=Path("/tmp/with space/it's.crt")))
    assert found["OPENAI_BASE_URL"] == found["OPENAI_API_BASE"] == "https://llm.example/v1"
    assert found["OPENAI_API_KEY"] == TOKEN
    assert found["SSL_CERT_FILE"] == found["NODE_EXTRA_CA_CERTS"] == "/tmp/with space/it's.crt"


def test_without_a_token_the_way_to_one_is_named_and_no_secret_shown() -> None:
    box = a_box(gateway_tokens={"a": TOKEN})
    text = guide(box, None, parts=CLIENT_PARTS)
    assert TOKEN not in text
    assert box.gateway.password.get_secret_value() not in text
    assert environment(part("env"))["OPENAI_API_KEY"] == PLACEHOLDER
    assert "boxwright token add NAME --limit box" in text
    assert "SSL_CERT_FILE" not in text


def test_curl_keeps_the_token_out_of_its_arguments(tmp_path: Path) -> None:
    """Run by a shell with a curl that tells its arguments and what it was given to read."""
    program = tmp_path / "curl"
    program.write_text('#!/bin/bash\nfor a; do printf "%s\\n" "$a"; case $a in @*) cat "${a#@}"; echo;; esac; done\n')
    program.chmod(0o755)
    script = part("env", key=TOKEN) + part("curl", key=TOKEN)
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    said = done.stdout.splitlines()
    assert "https://llm.example/v1/chat/completions" in said
    assert said[said.index("--header") + 2] == f"Authorization: Bearer {TOKEN}"
    assert TOKEN not in [line for line in said if not line.startswith("Authorization")]
    assert json.loads(said[said.index("--data") + 1])["model"] == "talker"
    assert TOKEN not in shlex.join(shlex.split(part("curl", key=TOKEN)[: part("curl", key=TOKEN).index("<(")]))


def test_python_compiles_and_names_the_model() -> None:
    text = part("python")
    compile(text, "snippet", "exec")
    assert 'model="talker"' in text


@pytest.mark.parametrize(
    ("origins", "said"), [([], "set gateway_cors_origins"), (["https://a.example"], "https://a.example")]
)
def test_a_page_needs_a_declared_origin(origins: list[str], said: str) -> None:
    text = guide(a_box(gateway_cors_origins=origins), None, parts=["browser"])
    assert said in text.splitlines()[0]
    assert '"https://llm.example/v1/chat/completions"' in text


def test_the_table_of_models() -> None:
    rows = [line.removeprefix("# ").split() for line in part("models").splitlines()[1:]]
    assert rows == [
        ["name", "for", "context", "parallel", "address"],
        ["talker", "chat", "512", "2", "https://llm.example/v1"],
        ["embedder", "embedding", "512", "2", "https://llm.example/v1"],
    ]
