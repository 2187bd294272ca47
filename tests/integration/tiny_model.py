"""The tiny model of tests/doubles/tiny_mlx.py in the lab's mirror, as if a hub had it."""

from __future__ import annotations

import hashlib
from typing import Any

from boxwright.lab import mirror, wheels
from boxwright.models import HUB
from tests.doubles import tiny_mlx

REPOSITORY = "boxwright-tests/tiny-mlx"


def published(seed: int = 1, **more: Any) -> dict[str, Any]:
    """A model for `inference_models`; its files are put into the mirror. Another `seed` is another revision of it.

    `more` are further parts of the entry.
    """
    revision = f"seed-{seed}"
    files = tiny_mlx.files(seed)
    for name, data in files.items():
        path = wheels.mirrored(f"{HUB}/{REPOSITORY}/resolve/{revision}/{name}", mirror.mirror_dir() / "files")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Other sessions may read it at this moment.
        temporary = path.with_name(f".{name}.new")
        temporary.write_bytes(data)
        temporary.chmod(0o644)
        temporary.replace(path)
    listed = [
        {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
    ]
    return {"name": "local-llm", "hub": REPOSITORY, "revision": revision, "files": listed, **more}
