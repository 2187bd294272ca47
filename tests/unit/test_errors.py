"""How problems are shown: the layout, the caret, what stays hidden."""

import ast
import json
import re
from pathlib import Path

import pytest

from boxwright.errors import CODES, Failed, Location, Problem, Refused, render
from boxwright.paths import repository_root


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_full_layout(here):
    Path("group_vars").mkdir()
    Path("group_vars/all.yml").write_text("a: 1\nllamacpp_modls: []\n")
    problem = Problem(
        code="BW012",
        message="`llamacpp_modls` is not a boxwright variable",
        variable="llamacpp_modls",
        location=Location(str(here / "group_vars/all.yml"), 2, 1),
        help="did you mean `llamacpp_models`?",
    )
    assert render([problem]) == (
        "error[BW012]: `llamacpp_modls` is not a boxwright variable\n"
        " --> group_vars/all.yml:2:1\n"
        "2 | llamacpp_modls: []\n"
        "  | ^^^^^^^^^^^^^^\n"
        "  = help: did you mean `llamacpp_models`?"
    )


def test_full_layout_with_two_places_host_and_long_help(here):
    Path("a.yml").write_text("\n" * 9 + '  door_port: "{{ base }}"  # comment\n')
    Path("b.yml").write_text("base: 99999\n")
    problem = Problem(
        code="BW011",
        message="wrong",
        location=Location("a.yml", 10, 14),
        source=Location("b.yml", 1, 7),
        host="box1",
        help="for example\n  door_port: 443",
    )
    assert render([problem]).splitlines() == [
        "error[BW011]: wrong",
        "  --> a.yml:10:14",
        '10 |   door_port: "{{ base }}"  # comment',
        "   |              ^^^^^^^^^^^^",
        "  ::: b.yml:1:7",
        " 1 | base: 99999",
        "   |       ^^^^^",
        "   = host: box1",
        "   = help: for example",
        "             door_port: 443",
    ]


@pytest.mark.parametrize(
    ("line", "column", "marked"),
    [
        ("port: 80 # x", 7, "80"),
        ("names: [one, two]", 14, "two"),
        ("url: https://example.org/m.gguf", 6, "https://example.org/m.gguf"),
        ("text: 'it''s'", 7, "'it''s'"),
        ('text: "a\\"b" ', 7, '"a\\"b"'),
        ("key: value", 1, "key"),
        ("\tport: 80", 8, "80"),
    ],
)
def test_caret_covers_the_word(here, line, column, marked):
    Path("f.yml").write_text(line + "\n")
    source, carets = render([Problem("BW011", "m", location=Location("f.yml", 1, column))]).splitlines()[2:4]
    assert source == "1 | " + line
    assert "".join(s for s, c in zip(source, carets, strict=False) if c == "^") == marked


def test_a_secret_is_not_quoted_from_the_file(here):
    Path("f.yml").write_text("all:\n  door_password: hunter2hunter2 # why\n- {x: topsecret}\n")
    text = render([Problem("BW016", "m", location=Location("f.yml", 2, 18), sensitive=True)])
    assert "  door_password: ***" in text
    assert "hunter2" not in text
    # Not even where the line cannot be told into key and value.
    assert "topsecret" not in render([Problem("BW016", "m", location=Location("f.yml", 3, 7), sensitive=True)])


def test_encrypted_files_and_missing_lines_are_not_quoted(here):
    Path("vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n6162\n")
    assert render([Problem("BW011", "m", location=Location("vault.yml", 2, 1))]).splitlines()[1:] == [
        " --> vault.yml:2:1"
    ]
    assert render([Problem("BW011", "m", location=Location("gone.yml", 2, 1))]).splitlines()[1:] == [
        " --> gone.yml:2:1"
    ]


def test_control_characters_of_a_file_do_not_reach_the_terminal(here):
    Path("f.yml").write_text("a: \x1b[31mred\n")
    assert "\x1b" not in render([Problem("BW011", "m", location=Location("f.yml", 1, 1))])


def test_concise_is_one_line_each(here):
    problems = [
        Problem("BW010", "`x` is not set", "x", help="set it\n  x: 1", host="box1"),
        Problem("BW011", "`y` is 3", "y", Location("f.yml", 3, 4)),
    ]
    assert render(problems, style="concise").splitlines() == [
        "BW010 [box1] `x` is not set; set it x: 1",
        "f.yml:3:4: BW011 `y` is 3",
    ]


def test_json_holds_every_field(here):
    problem = Problem("BW011", "`y` is 3", "y", Location(str(here / "f.yml"), 3, 4), "a way out", "box1")
    assert json.loads(render([problem], style="json")) == {
        "ok": False,
        "problems": [
            {
                "code": "BW011",
                "message": "`y` is 3",
                "variable": "y",
                "host": "box1",
                "path": "f.yml",
                "line": 3,
                "column": 4,
                "help": "a way out",
            }
        ],
    }
    assert json.loads(render([], style="json")) == {"ok": True, "problems": []}


def test_colour_only_when_asked(here):
    Path("f.yml").write_text("a: 1\n")
    problems = [Problem("BW011", "m", location=Location("f.yml", 1, 4), help="h")]
    plain, coloured = render(problems), render(problems, color=True)
    assert "\033" not in plain
    assert "\033[1;31merror[BW011]" in coloured
    assert re.sub(r"\033\[[0-9;]*m", "", coloured) == plain


def test_exit_codes():
    assert Refused(Problem("BW010", "m")).exit_code == 2
    assert Failed([Problem("BW201", "m")]).exit_code == 1
    assert str(Refused([Problem("BW010", "one"), Problem("BW011", "two")])) == "one\ntwo"


def _codes_in_sources():
    root = repository_root()
    for folder in ("boxwright", "roles", "deploys"):
        for file in (root / folder).rglob("*.py"):
            if file.name == "errors.py":
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for code in re.findall(r"\bBW\d{3}\b", node.value):
                        yield code, file.relative_to(root)


def test_every_code_that_is_raised_has_a_meaning():
    unknown = {(code, str(file)) for code, file in _codes_in_sources() if code not in CODES}
    assert unknown == set()


def test_every_code_with_a_meaning_is_raised():
    assert set(CODES) - {code for code, _ in _codes_in_sources()} == set()


def test_meanings_are_one_sentence():
    for code, meaning in CODES.items():
        assert re.fullmatch(r"BW[0-3]\d\d", code)
        assert re.fullmatch(r"[A-Z`a-z].*\.", meaning), code
