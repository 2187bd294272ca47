"""`boxwright explain`: each word that a message, a file of variables or a box may show."""

from __future__ import annotations

import re

import pytest

from boxwright.errors import CODES, Refused
from boxwright.explain import explain
from boxwright.inventory import box_class
from boxwright.settings import hash_of, role_classes

BOX = box_class()
ROLES = role_classes(BOX)
VARIABLES = {
    f"{prefix}_{name}": field
    for prefix, role in ROLES.items()
    for name, field in role.model_fields.items()
    if hash_of(field) is None
}


def said(word: str) -> str:
    return explain(word, BOX, {"gateway_old": ("gateway_port", "0.2.0")})


@pytest.mark.parametrize("code", CODES)
def test_every_code(code: str) -> None:
    assert CODES[code] in said(code)
    assert said(code.lower()) == said(code)


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable(variable: str) -> None:
    text = said(variable)
    assert text.startswith(f"{variable}\n")
    for part in ("Type: ", "Default: ", "Since: "):
        assert part in text
    assert (VARIABLES[variable].description or "").replace("`", "") in text
    assert "```" not in text


@pytest.mark.parametrize("role", ROLES)
def test_every_role(role: str) -> None:
    text = said(role)
    assert text.splitlines()[0].strip()
    assert set(re.findall(r"^  (\w+):", text, re.MULTILINE)) == {
        name for name in VARIABLES if name.startswith(f"{role}_")
    }


@pytest.mark.parametrize("word", ["`gateway_port`", "{{ gateway_port }}", " gateway_port ", "gateway_port[0].x"])
def test_a_variable_as_messages_and_files_write_it(word: str) -> None:
    assert said(word) == said("gateway_port")


def test_an_old_name() -> None:
    assert said("gateway_old") == "gateway_old is called gateway_port since 0.2.0: boxwright explain gateway_port\n"


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("/etc/boxwright/ollama.env", "ollama"),
        ("/etc/boxwright/caddy/Caddyfile", "gateway"),
        ("/opt/boxwright/llamacpp/0123456789abcdef/bin/python", "llamacpp"),
        ("/var/lib/boxwright/models/some.gguf", "inference"),
        ("/etc/systemd/system/ollama.service", "ollama"),
        ("/etc/systemd/system/ollama-update.timer", "ollama"),
        ("/etc/systemd/system/ollama.service.d/boxwright.conf", "ollama"),
        ("/etc/systemd/system/llamacpp-embedding.service", "llamacpp"),
        ("/etc/systemd/system/boxwright-watchdog.service", "inference"),
        ("/Library/LaunchDaemons/boxwright.llamacpp-embedding.plist", "llamacpp"),
        ("/etc/docker/daemon.json", "docker"),
    ],
)
def test_a_file_of_a_box(path: str, role: str) -> None:
    assert f"{path} belongs to the role {role}" in said(path)


@pytest.mark.parametrize(
    ("word", "near"),
    [("gatway_port", "`gateway_port`"), ("olama", "`ollama`"), ("BW999", "`BW"), ("/etc/passwd", "plan --diff")],
)
def test_another_word_is_refused_with_what_is_near(word: str, near: str) -> None:
    with pytest.raises(Refused) as refused:
        said(word)
    (problem,) = refused.value.problems
    assert problem.code == "BW041"
    assert near in (problem.help or "")
