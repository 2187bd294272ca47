"""How it is decided about models of Ollama, on a made-up host. tests/integration/test_ollama.py has the real one."""

import pytest
from harness import run

from boxwright.facts.ollama import manifest_path
from boxwright.operations import ollama

STORE = ollama.Store(
    system="linux",
    program="/opt/o/bin/ollama",
    folder="/var/lib/o/models",
    records="/var/lib/notes",
    state_directory="o",
    user="o",
    environment_file="/etc/o.env",
    unit="o",
    url="http://127.0.0.1:1",
)
MODEL = ollama.Definition(name="tiny", file="/m.gguf", sha256="1" * 64, parameters={"num_ctx": 512})
MANIFEST = "manifest=" + "a" * 64
NOTE = [f"note={MODEL.digest}", "note=" + "a" * 64, "note=5 1.0"]
FILE = "file=5 1.0"


def host(*lines):
    """A host that says `lines` of a model, and does everything."""
    return lambda asked: (True, ["examined", *lines] if "echo examined" in asked.text else [])


def commands(lines, definition=MODEL, **options):
    """What is run on such a host, beside the question about the model."""
    result = run(lambda: ollama.model(STORE, definition), host(*lines), **options)
    assert result.ok, result.printed
    return [asked for asked in result.asked if "echo examined" not in asked.text]


def test_a_model_as_it_was_made_is_left_alone():
    assert commands([MANIFEST, *NOTE, FILE]) == []


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [FILE],
        [MANIFEST, FILE],
        [*NOTE, FILE],
        ["manifest=" + "b" * 64, *NOTE, FILE],
        [MANIFEST, "note=0123456789abcdef", *NOTE[1:], FILE],
    ],
    ids=["nothing", "a file", "of somebody", "manifest is gone", "made otherwise", "defined otherwise"],
)
def test_any_other_is_made(lines):
    assert commands(lines, dry=True) == []
    (made,) = commands(lines)
    assert made.arguments[:4] == ("tiny", "tiny/latest", STORE.folder, "/var/lib/notes/tiny")
    assert made.stdin.strip() == MODEL.request
    assert "--property=User=o" in made.arguments
    assert "--property=NoNewPrivileges=yes" in made.arguments
    # Told by the script, as it differs between a request that needs a registry and one that does not.
    assert not [argument for argument in made.arguments if argument.startswith("--property=IPAddress")]


def test_a_file_without_a_checksum_is_known_by_its_time():
    unknown = ollama.Definition(name="tiny", file="/m.gguf")
    note = [f"note={unknown.digest}", "note=" + "a" * 64, "note=5 1.0"]
    assert commands([MANIFEST, *note, FILE], unknown) == []
    assert len(commands([MANIFEST, *note, "file=5 2.0"], unknown)) == 1
    # With a checksum the time says nothing.
    assert commands([MANIFEST, *NOTE, "file=5 2.0"]) == []


def test_a_host_that_cannot_be_read_is_not_changed():
    result = run(lambda: ollama.model(STORE, MODEL), lambda asked: (True, ["nonsense"]))
    assert not result.ok


def test_only_models_of_boxwright_are_removed():
    def deploy():
        ollama.models_absent(STORE, ["tiny"])

    def answer(*names):
        return lambda asked: (True, ["entries", *names] if "echo entries" in asked.text else [])

    assert run(deploy, answer("tiny")).changed == [False]
    assert run(deploy, answer()).changed == [False]
    result = run(deploy, answer("tiny", "old:v1"))
    assert result.changed == [True]
    assert result.asked[-1].stdin.strip() == f"old:v1 {manifest_path(STORE.folder, 'old:v1')}"


@pytest.mark.parametrize(("home", "stops"), [("/var/lib/o", False), ("/usr/share/o", True)])
def test_an_account_in_use_is_made_free_only_when_it_must_be_changed(home, stops):
    def answer(asked):
        if "systemctl stop" in asked.text:
            return True, []
        return True, ["accounts", f"passwd o:x:9:9::{home}:/bin/false", "groups o", "group o"]

    result = run(lambda: ollama.account_free("o", home="/var/lib/o", unit="o"), answer)
    assert result.ok
    assert any("systemctl stop" in asked.text for asked in result.asked) is stops
