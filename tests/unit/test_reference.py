"""The generated reference: complete, true, and fresh in the repository."""

import json
import re
from pathlib import Path

import pytest
import yaml
from example_box import ExampleBox
from jsonschema import Draft7Validator
from pydantic import BaseModel, TypeAdapter

from boxwright import reference
from boxwright.describe import alternatives, unpack
from boxwright.inventory import box_class
from boxwright.paths import repository_root
from boxwright.schema import variables_schema
from boxwright.settings import variable_fields

RENAMED = {"engine_gpu": ("engine_backend", "0.2.0"), "door_key": ("door_token", "0.3.0")}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "roles/engine").mkdir(parents=True)
    (tmp_path / "roles/engine/__init__.py").write_text('"""The engine.\n\nServes on loopback.\n"""\n')
    return tmp_path


def test_what_the_repository_holds_is_fresh():
    """When this fails: `boxwright docs`."""
    assert reference.check(repository_root()) == []


def test_files(root):
    assert sorted(map(str, reference.pages(root, ExampleBox))) == [
        "docs/errors.md",
        "docs/roles/engine.md",
        "docs/settings.md",
        "schema/vars.schema.json",
    ]


def test_write_and_check(root):
    made = set(reference.pages(root, ExampleBox))
    assert set(reference.check(root, ExampleBox)) == made
    assert set(reference.write(root, ExampleBox)) == made
    assert reference.check(root, ExampleBox) == []
    assert reference.write(root, ExampleBox) == []
    (root / "docs/settings.md").write_text("edited")
    assert reference.check(root, ExampleBox) == [Path("docs/settings.md")]
    assert json.loads((root / "schema/vars.schema.json").read_text()) == variables_schema(ExampleBox)


def test_the_page_of_a_role_that_is_gone_is_removed_and_a_page_by_hand_is_not(root):
    reference.write(root, ExampleBox)
    (root / "docs/roles/old.md").write_text((root / "docs/roles/engine.md").read_text())
    (root / "docs/roles/by-hand.md").write_text("# Mine\n")
    assert reference.check(root, ExampleBox) == [Path("docs/roles/old.md")]
    reference.write(root, ExampleBox)
    assert sorted(path.name for path in (root / "docs/roles").iterdir()) == ["by-hand.md", "engine.md"]


def test_a_variable_has_type_default_since_parts_and_example():
    page = reference.settings_page(ExampleBox, {})
    section = page.split("### `engine_model`\n")[1].split("\n### ")[0]
    assert section == (
        "\nThe model to serve.\n"
        "\n"
        "- Type: a mapping with `url`, `size`, `sha256` (optional), `flags` (optional)\n"
        "- Default: none, it must be set\n"
        "- Since: 0.1.0\n"
        "- Parts:\n"
        "    - `url`: Address of the file. (text; required)\n"
        "    - `size`: Size of the file. (a size such as 64GiB; required)\n"
        "    - `sha256`: Checksum of the file. "
        "(a SHA-256 checksum, 64 hexadecimal digits in lower case, or nothing; default not set)\n"
        "    - `flags`: Numbers. (a list; each item a whole number; default `[]`)\n"
        "\n"
        "```yaml\n"
        "engine_model:\n"
        "  url: https://example.org/m.gguf\n"
        "  size: 1GiB\n"
        "```\n"
    )
    assert "- Since: 0.2.0" in page.split("### `engine_memory`")[1].split("###")[0]
    assert '- Type: text that matches `^\\d+\\.\\d+$`\n- Default: `"1.2"`' in page
    assert "- Default: made once, kept on the control machine" in page.split("### `door_password`")[1].split("###")[0]
    assert "door_password_hash" not in page


def test_role_page(root):
    page = reference.pages(root, ExampleBox)[Path("docs/roles/engine.md")]
    assert page.startswith("# engine\n")
    assert "The engine.\n\nServes on loopback.\n" in page
    assert "| [`engine_port`](../settings.md#engine_port) | `8081` | TCP port on loopback. |" in page


def test_renamed_variables_reach_settings_schema_and_changelog(root):
    (root / "CHANGELOG.md").write_text(
        "# Changes\n\n<!-- renamed variables -->\nold text\n<!-- /renamed variables -->\n\nMore by hand.\n"
    )
    pages = reference.pages(root, ExampleBox, RENAMED)
    rows = "| `door_key` | `door_token` | 0.3.0 |\n| `engine_gpu` | `engine_backend` | 0.2.0 |\n"
    assert rows in pages[Path("docs/settings.md")]
    assert "deprecationMessage" in pages[Path("schema/vars.schema.json")]
    changelog = pages[Path("CHANGELOG.md")]
    assert rows in changelog
    assert "old text" not in changelog
    assert changelog.startswith("# Changes\n\n<!-- renamed variables -->\n|")
    assert changelog.endswith("<!-- /renamed variables -->\n\nMore by hand.\n")


def test_a_changelog_without_the_marks_is_left_alone(root):
    (root / "CHANGELOG.md").write_text("# Changes\n")
    assert Path("CHANGELOG.md") not in reference.pages(root, ExampleBox, RENAMED)


def test_errors_page_lists_every_code():
    from boxwright.errors import CODES

    assert set(re.findall(r"^\| (BW\d{3}) \|", reference.errors_page(), re.MULTILINE)) == set(CODES)


# The real roles


def real_fields():
    return [(variable, field) for variable, (_, _, field) in variable_fields(box_class()).items()]


def models(annotation):
    annotation, _ = unpack(annotation)
    for part in (*alternatives(annotation), *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part


@pytest.mark.parametrize(("variable", "field"), real_fields(), ids=[variable for variable, _ in real_fields()])
def test_every_variable_is_described_and_its_examples_are_valid(variable, field):
    assert field.description
    assert field.description.endswith(".")
    declared = TypeAdapter(field.rebuild_annotation())
    for example in field.examples or ():
        declared.validate_python(example)
        assert list(Draft7Validator(variables_schema(box_class())).iter_errors({variable: example})) == []
    if field.is_required() and "generated_bytes" not in (field.json_schema_extra or {}):
        assert field.examples, "a variable that must be set needs an example"
    for model in models(field.annotation):
        for part in model.model_fields.values():
            assert part.description


def test_every_example_in_settings_md_is_yaml():
    page = (repository_root() / "docs/settings.md").read_text(encoding="utf-8")
    blocks = re.findall(r"### `(\w+)`.*?(?=\n### |\n## |\Z)", page, re.DOTALL)
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(examples) >= 5
    for example in examples:
        (name,) = yaml.safe_load(example)
        assert name in blocks
