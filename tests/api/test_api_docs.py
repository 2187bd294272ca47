"""docs/api.md against the service: every code that clients can meet, every setting that has no variable of its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import boxwright_api
from boxwright_api.settings import Settings
from pydantic import SecretStr

from boxwright.inventory import box_class
from boxwright.paths import repository_root

PAGE = (repository_root() / "docs" / "api.md").read_text(encoding="utf-8")
# What `boxwright key` meets, not clients.
OF_THE_ADMIN_API = {"admin.py", "documents.py", "library.py"}
# Set by the role itself, under names of its own: roles/api/tasks.py.
BY_THE_ROLE = {
    *(
        "instance",
        "host",
        "port",
        "workers",
        "stop_seconds",
        "database",
        "redis",
        "redis_prefix",
        "models",
        "in_flight",
    ),
    *("wait_ms", "breaker_requests", "visitor_requests", "visitor_header", "trusted_proxies", "key_defaults"),
    *("fail_open", "max_body", "max_tokens", "usage_months", "spill", "retrieval"),
}


def table(name: str) -> list[list[str]]:
    (text,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", PAGE, re.DOTALL)
    rows = re.findall(r"^\| (.+) \|$", text, re.MULTILINE)
    return [re.split(r" \| ", row) for row in rows[1:]]


def codes_of(folder: Path) -> Iterator[tuple[int, str]]:
    """Status and code of each error that is made from constants."""
    implied = {"unavailable": 503, "limited": 429}
    for path in folder.rglob("*.py"):
        if path.name in OF_THE_ADMIN_API:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            given = [one.value if isinstance(one, ast.Constant) else None for one in call.args[:2]]
            if name == "ApiError" and len(given) == 2 and isinstance(given[0], int) and isinstance(given[1], str):
                yield given[0], given[1]
            elif name in implied and given and isinstance(given[0], str):
                yield implied[name], given[0]


def test_every_code_of_clients_is_explained_with_its_status() -> None:
    told = {(int(row[0]), code) for row in table("codes of clients") for code in re.findall(r"`([a-z_]+)`", row[1])}
    there = set(codes_of(Path(boxwright_api.__path__[0])))
    assert len(there) > 15
    # Made from a table of statuses (app.py).
    assert told - there <= {(405, "method_not_allowed")}
    assert there - told == set()


def test_every_setting_without_a_variable_is_explained_with_its_default() -> None:
    told = {row[0].strip("`"): row[1] for row in table("further settings")}
    fields = Settings.model_fields
    secret = {name for name, field in fields.items() if SecretStr in getattr(field.annotation, "__args__", ())}
    secret |= {name for name, field in fields.items() if field.annotation is SecretStr}
    assert set(told) == set(fields) - secret - BY_THE_ROLE
    for name, default in told.items():
        assert float(default) == fields[name].default, name


def test_the_role_sets_the_others() -> None:
    from roles.api import tasks

    source = Path(tasks.__file__).read_text(encoding="utf-8")
    assert [name for name in BY_THE_ROLE if not re.search(rf'"{name}"(: |\] = )', source)] == []
    assert {"in_flight", "fail_open", "max_body", "key_defaults"} <= set(
        box_class().model_fields["api"].annotation.model_fields
    )
