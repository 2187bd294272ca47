"""What the double keeps in its home: paths, the settings of its server, and the models on the disk."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

# Where the daemon's internal server is looked for.
INTERNAL_PORTS = (41343, 52993, 16141, 39414, 22931)

# What a fresh installation has.
SERVER_SETTINGS: dict[str, Any] = {
    "autoStartOnLaunch": False,
    "port": 1234,
    "cors": False,
    "logSensitiveData": True,
    "logIncomingTokens": False,
    "verbose": False,
    "logLinesLimit": 500,
    "networkInterface": "127.0.0.1",
    "justInTimeModelLoading": True,
    "fileLoggingMode": "succinct",
}

_SIMPLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def find_home() -> Path:
    """LM Studio's folder of this user: what the pointer names, an old installation's place, or ~/.lmstudio."""
    user = Path(os.environ["HOME"]) if os.environ.get("HOME") else Path("~").expanduser()
    pointer = user / ".lmstudio-home-pointer"
    if pointer.exists() and pointer.read_text().strip():
        return Path(pointer.read_text().strip())
    old = user / ".cache" / "lm-studio"
    home = old if old.exists() else user / ".lmstudio"
    pointer.write_text(str(home))
    return home


def internal(home: Path, name: str) -> Path:
    """A file of the internal folder."""
    return home / ".internal" / name


def read_json(path: Path) -> Any:
    """The JSON in a file; None when there is no such file or it holds something else."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """A file with `value` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value, indent=2))
    temporary.replace(path)


def gguf_header(path: Path) -> dict[str, Any]:
    """The simple entries at the head of a GGUF file; raises ValueError when it is not one."""
    with path.open("rb") as handle:

        def number(code: str) -> Any:
            size = struct.calcsize("<" + code)
            data = handle.read(size)
            if len(data) < size:
                raise ValueError("it ends too early")
            return struct.unpack("<" + code, data)[0]

        def text() -> str:
            return handle.read(number("Q")).decode(errors="replace")

        def value(kind: int) -> Any:
            if kind == _STRING:
                return text()
            if kind == _ARRAY:
                of, count = number("I"), number("Q")
                for _ in range(count):
                    value(of)
                return None
            return number(_SIMPLE[kind])

        if handle.read(4) != b"GGUF":
            raise ValueError("it is not a GGUF file")
        number("I")
        number("Q")
        found = {}
        for _ in range(number("Q")):
            name = text()
            found[name] = value(number("I"))
            # The vocabulary is long and comes after what is asked for.
            if name.startswith("tokenizer."):
                break
        return found


def models(home: Path) -> list[dict[str, Any]]:
    """The models on the disk, as `lms ls --json` has them."""
    found = []
    taken: set[str] = set()
    for path in sorted((home / "models").glob("*/*/*.gguf")):
        try:
            header = gguf_header(path)
        except (OSError, ValueError, KeyError):
            continue
        publisher, repository = path.parts[-3:-1]
        architecture = str(header.get("general.architecture", ""))
        embedding = "bert" in architecture or "embed" in repository.lower()
        key = re.sub(r"-gguf$", "", repository.lower())
        if embedding:
            key = f"text-embedding-{key}"
        quantization = re.search(r"I?Q\d[_0-9A-Za-z]*|F16|BF16|F32", path.name)
        if key in taken:
            key = f"{key}@{(quantization.group() if quantization else path.stem).lower()}"
        taken.add(key)
        size = path.stat().st_size
        context = header.get(f"{architecture}.context_length")
        found.append(
            {
                "type": "embedding" if embedding else "llm",
                "modelKey": key,
                "format": "gguf",
                "displayName": repository.replace("-", " "),
                "publisher": publisher,
                "path": f"{publisher}/{repository}/{path.name}",
                "sizeBytes": size,
                "indexedModelIdentifier": f"{publisher}/{repository}/{path.name}",
                "deviceIdentifier": None,
                "paramsString": header.get("general.size_label"),
                "architecture": architecture,
                "quantization": {"name": quantization.group() if quantization else None, "bits": None},
                "vision": False,
                "trainedForToolUse": False,
                "maxContextLength": context or 2048,
            }
        )
    return found
