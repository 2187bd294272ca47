"""The check of a model's header, run as the box runs it: a program of its own, on files made here byte by byte."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from boxwright.paths import repository_root

PROGRAM = repository_root() / "templates" / "llamacpp" / "check.py"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(values: list[tuple[str, int, bytes]], version: int = 3, magic: bytes = b"GGUF") -> bytes:
    """A GGUF file's begin: key, type and packed value of each entry. https://github.com/ggml-org/gguf"""
    entries = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in values)
    return magic + struct.pack("<IQQ", version, 0, len(values)) + entries


UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10
TOKENS = struct.pack("<IQ", STRING, 3) + text("a") + text("") + text("ccc")
NUMBERS = struct.pack("<IQ", 6, 1000) + bytes(4000)
NESTED = struct.pack("<IQ", ARRAY, 2) + 2 * (struct.pack("<IQ", UINT32, 2) + bytes(8))
BEFORE = [
    ("general.architecture", STRING, text("llama")),
    ("tokenizer.ggml.tokens", ARRAY, TOKENS),
    ("tokenizer.ggml.scores", ARRAY, NUMBERS),
    ("nested", ARRAY, NESTED),
]
LENGTH = ("llama.context_length", UINT32, struct.pack("<I", 2048))


def check(folder: Path, model: bytes | None, context: int = 2048) -> tuple[int, str]:
    file = folder / "model.gguf"
    if model is not None:
        file.write_bytes(model)
    settings: dict[str, Any] = {"model": str(file), "context": context, "alias": "talker"}
    (folder / "settings.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-I", str(PROGRAM), str(folder / "settings.json")], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("version", [2, 3])
def test_a_context_that_the_model_has(tmp_path: Path, version: int) -> None:
    assert check(tmp_path, header([*BEFORE, LENGTH], version)) == (0, "")


def test_a_context_that_it_does_not_have(tmp_path: Path) -> None:
    code, said = check(tmp_path, header([*BEFORE, LENGTH]), context=2049)
    assert code == 1
    assert "2049 tokens is longer than that of the model, which is 2048" in said
    assert "`context` of the model talker in `inference_models`" in said


def test_a_model_that_does_not_say(tmp_path: Path) -> None:
    assert check(tmp_path, header(BEFORE), context=10**6) == (0, "")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (b"", "ends in the middle of its header"),
        (b"<html>not found</html>", "is not a GGUF file"),
        (header([LENGTH], magic=b"GGML"), "is not a GGUF file"),
        (header([LENGTH], version=9), "is a GGUF file of version 9"),
        (header([*BEFORE, LENGTH])[:-1], "ends in the middle of its header"),
        (header([*BEFORE, LENGTH])[:60], "ends in the middle of its header"),
        (header([("x", 77, b"")]), "a value of the unknown type 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "ends in the middle of its header"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_model(tmp_path: Path, model: bytes | None, said: str) -> None:
    code, words = check(tmp_path, model)
    assert code == 1
    assert said in words
