"""The JSON Schema of the variables, judged by two programs that are not ours: jsonschema and check-jsonschema."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from example_box import ExampleBox
from jsonschema import Draft7Validator

from boxwright.inventory import box_class
from boxwright.paths import repository_root
from boxwright.schema import variables_schema

RENAMED = {"engine_gpu": ("engine_backend", "0.2.0")}
SCHEMA = variables_schema(ExampleBox, RENAMED)
MODEL = "{url: x, size: 1GiB}"


def refusals(text, schema=SCHEMA):
    return [error.message for error in Draft7Validator(schema).iter_errors(yaml.safe_load(text))]


def test_it_is_a_schema():
    Draft7Validator.check_schema(SCHEMA)
    Draft7Validator.check_schema(variables_schema(box_class()))


@pytest.mark.parametrize(
    "text",
    [
        "# nothing but comments",
        "mine: 1\nvault_door_password: x",
        "door_port: 8443",
        "door_port: '{{ base_port + 1 }}'",
        "door_port: '{% if a %}1{% else %}2{% endif %}'",
        f"engine_model: {MODEL}",
        "engine_model: '{{ models.small }}'",
        "engine_model: {url: x, size: '{{ size }}'}",
        "engine_model: {url: x, size: 1073741824}",
        f"engine_parts: [{MODEL}, '{{{{ other }}}}']",
        "engine_backend: cuda",
        "engine_enabled: false",
        "engine_memory: null",
        "engine_memory: 64GiB",
        "door_bind: ['0.0.0.0', '::']",
        "door_password: something",
        "door_token: '{{ vault_token }}'",
        "door_environment: {A: b}",
    ],
)
def test_accepted(text):
    assert refusals(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "door_prot: 1",
        "door_password_hash: x",
        "engine_gpu: cuda",
        "door_port: https",
        "door_port: 0",
        "door_port: 65536",
        "door_port: 4.5",
        "door_port: true",
        "engine_backend: cudda",
        "engine_enabled: 'maybe'",
        "engine_ratio: 1.5",
        "engine_version: v1",
        "engine_memory: lots",
        "engine_model: {url: x}",
        f"engine_model: {MODEL[:-1]}, colour: red}}",
        "engine_model: {url: x, size: []}",
        "engine_parts: [{url: x}]",
        "door_bind: 0.0.0.0",
        "door_bind: ['::1', '::2', '::3']",
        "door_password: ''",
        'door_environment: {A: "it\'s"}',
        "- a list",
    ],
)
def test_refused(text):
    assert refusals(text)


def test_what_an_editor_shows():
    port = SCHEMA["properties"]["door_port"]
    assert port["description"] == "TCP port of the door. Since 0.1.0."
    assert port["default"] == 443
    assert port["anyOf"] == [
        {"maximum": 65535, "minimum": 1, "type": "integer"},
        {"type": "string", "pattern": r"\{[{%]"},
    ]
    assert SCHEMA["properties"]["engine_memory"]["description"] == "Memory limit. Since 0.2.0."
    assert SCHEMA["properties"]["engine_model"]["examples"] == [{"url": "https://example.org/m.gguf", "size": "1GiB"}]
    # Parts of a mapping have their words too.
    assert SCHEMA["definitions"]["engine.Part"]["properties"]["size"]["description"] == "Size of the file."


def test_a_renamed_variable_shows_its_new_name():
    renamed = SCHEMA["properties"]["engine_gpu"]
    assert renamed["deprecationMessage"] == "renamed to engine_backend"
    assert (renamed["not"], renamed["deprecated"]) == ({}, True)


def test_derived_variables_are_not_offered():
    assert "door_password" in SCHEMA["properties"]
    assert "door_password_hash" not in SCHEMA["properties"]


# With check-jsonschema, as a pre-commit hook would run it


def check(tmp_path, *files):
    schema = tmp_path / "vars.schema.json"
    schema.write_text(json.dumps(variables_schema(box_class())))
    program = Path(sys.executable).parent / "check-jsonschema"
    command = [str(program), "--schemafile", str(schema), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_check_jsonschema_accepts_our_own_files(tmp_path):
    root = repository_root()
    files = [*root.glob("group_vars/*.yml"), *root.glob("inventory/examples/*/*_vars/**/*.yml")]
    assert len(files) >= 3
    done = check(tmp_path, *files)
    assert done.returncode == 0, done.stdout


def test_check_jsonschema_refuses_mistakes(tmp_path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("gateway_prot: 443\ngateway_port: https\ngateway_names: ['{{ inventory_hostname }}']\n")
    done = check(tmp_path, wrong)
    assert done.returncode == 1
    assert "False schema does not allow 443" in done.stdout  # its words for a name that may not be there
    assert "$.gateway_port" in done.stdout
    assert "gateway_names" not in done.stdout
