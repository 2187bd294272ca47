"""What somebody pastes to use a box: environment, curl, Python, a page in a browser, and the table of models."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxwright.templates import render

# Stands for the key where none is shown.
PLACEHOLDER = "YOUR-TOKEN"


def guide(box: Any, certificate: Path | None, key: str = "", *, parts: Sequence[str]) -> str:
    """The text for clients of `box`. `certificate` is the file of its own authority, `key` a bearer token to fill in;
    `parts` are some of `cli.CLIENT_PARTS`. Without a `key` the text holds no secret.
    """
    main = box.inference.main
    model = main.name if main else ""
    question = {"model": model, "messages": [{"role": "user", "content": "Say hello."}]}
    hint = "" if key else f"boxwright token add NAME --limit {box.name} makes one"
    if box.gateway.auth == "basic" and not key:
        hint = "gateway_auth is basic: programs that know tokens only cannot sign in"
    if box.gateway.asks_for_keys and not key:
        hint = f"boxwright key add OWNER --limit {box.name} makes one"
    values = {
        "base_url": f"{box.gateway.url}v1",
        "key": key or PLACEHOLDER,
        "certificate": str(certificate) if certificate else "",
        "question": json.dumps(question),
    }
    text = render(
        "client/guide.j2",
        **values,
        quoted={name: shlex.quote(value) for name, value in values.items()},
        parts=tuple(parts),
        key_hint=hint,
        model=model,
        origins=box.gateway.cors_origins,
        table=table(box),
    )
    return text.strip() + "\n"


def table(box: Any) -> str:
    """The models, one line each: name, what for, context in tokens, requests at a time, where it answers."""
    rows = [("name", "for", "context", "parallel", "address")]
    for engine in box.inference.running:
        # With keys one service offers the models of all engines.
        prefix = "" if engine == box.inference.engine or box.gateway.asks_for_keys else f"{engine}/"
        for model in box.inference.models_of(engine):
            address = f"{box.gateway.url}{prefix}v1"
            rows.append((model.name, model.kind, str(model.context), str(model.parallel), address))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(f"# {line}" for line in lines)
