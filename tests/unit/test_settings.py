"""From flat variables to a Box: what is accepted, what is refused and in which words."""

import subprocess
import sys

import pytest
from example_box import DoorSettings, EngineSettings, ExampleBox, Part
from pydantic import ValidationError

from boxwright.errors import Location, Refused
from boxwright.secrets import SecretStore
from boxwright.settings import BoxBase, Port, RoleSettings, parse_box, role_classes, variable_fields

MODEL = {"url": "https://example.org/m.gguf", "size": "1GiB"}


@pytest.fixture
def store(tmp_path):
    return SecretStore(tmp_path / "secrets")


def parse(variables, store=None, locate=None, **arguments):
    return parse_box(ExampleBox, "box1", ("linux",), {"engine_model": MODEL, **variables}, locate, store, **arguments)


def refused(variables, store=None, **arguments):
    with pytest.raises(Refused) as caught:
        parse(variables, store, **arguments)
    return caught.value.problems


def only(variables, **arguments):
    (problem,) = refused(variables, **arguments)
    return problem


def test_a_box_has_defaults_and_given_values(store):
    box = parse({"door_port": 8443, "engine_memory": "2 GiB", "mine": object()}, store)
    assert (box.name, box.groups) == ("box1", ("linux",))
    assert (box.door.port, box.engine.port) == (8443, 8081)
    assert box.engine.model == Part(url="https://example.org/m.gguf", size=1073741824)
    assert box.engine.memory == 2147483648


def test_a_host_runs_linux_or_macos(store):
    def system(*groups):
        return parse_box(ExampleBox, "box1", groups, {"engine_model": MODEL}, None, store).system

    assert (system(), system("linux"), system("studios", "darwin")) == ("linux", "linux", "darwin")
    with pytest.raises(Refused) as caught:
        system("linux", "darwin")
    (problem,) = caught.value.problems
    assert (problem.code, problem.host) == ("BW028", "box1")
    assert "in the group `linux` and in the group `darwin`" in problem.message
    assert "take it out of one" in problem.help


def test_a_box_is_frozen(store):
    box = parse({}, store)
    with pytest.raises(ValidationError):
        box.door.port = 1
    with pytest.raises(ValidationError):
        box.name = "other"


# Names


@pytest.mark.parametrize(
    ("variable", "suggested"),
    [
        ("engine_modle", "engine_model"),
        ("engine_prot", "engine_port"),
        ("door_enviroment", "door_environment"),
        ("door_backend", "engine_backend"),  # in the other role
        ("egnine_backend", "engine_backend"),  # a slip in the prefix
        ("doors_environment", "door_environment"),
    ],
)
def test_unknown_variable_with_a_near_name(variable, suggested):
    problem = only({variable: 1})
    assert (problem.code, problem.variable, problem.host) == ("BW012", variable, "box1")
    assert problem.message == f"`{variable}` is not a boxwright variable"
    assert problem.help == f"did you mean `{suggested}`?"


def test_unknown_variable_with_no_near_name():
    problem = only({"door_xyzzy": 1})
    assert problem.code == "BW012"
    assert problem.help == (
        "names that begin with `door_` belong to boxwright; all variables are listed in docs/settings.md"
    )


@pytest.mark.parametrize(
    "variable",
    [
        "mine",
        "engine",
        "doorbell_port",
        "my_door_password",
        "vault_engine_backend",
        "ansible_port",
        "base_port",
        "ports",
    ],
)
def test_names_of_the_users_own_are_free(variable):
    parse({variable: "x"})


def test_a_renamed_variable_says_its_new_name():
    renamed = {"engine_gpu": ("engine_backend", "0.2.0"), "motor_port": ("engine_port", "0.3.0")}
    problems = refused({"engine_gpu": "cuda", "motor_port": 1}, renamed=renamed)
    assert [(problem.code, problem.variable, problem.message, problem.help) for problem in problems] == [
        (
            "BW013",
            "engine_gpu",
            "`engine_gpu` is called `engine_backend` since 0.2.0",
            "write `engine_backend` in its place",
        ),
        ("BW013", "motor_port", "`motor_port` is called `engine_port` since 0.3.0", "write `engine_port` in its place"),
    ]


def test_a_derived_variable_cannot_be_set():
    problem = only({"door_password_hash": "$2b$10$x"})
    assert problem.code == "BW017"
    assert "computed from `door_password`" in problem.message
    assert problem.sensitive


# Values


@pytest.mark.parametrize(
    ("variable", "value", "message", "way_out"),
    [
        (
            "door_port",
            0,
            "`door_port` is 0; expected a TCP port, 1 to 65535",
            "remove the line to have the default, 443",
        ),
        ("door_port", "http", '`door_port` is "http"; expected a TCP port, 1 to 65535', None),
        ("door_port", True, "`door_port` is true; expected a TCP port, 1 to 65535", None),
        ("door_port", 443.5, "`door_port` is 443.5; expected a TCP port, 1 to 65535", None),
        ("door_port", None, "`door_port` is empty; expected a TCP port, 1 to 65535", None),
        ("door_port", [443], "`door_port` is a list of 1 item; expected a TCP port, 1 to 65535", None),
        ("door_ports", [1, "x"], '`door_ports[1]` is "x"; expected a TCP port, 1 to 65535', None),
        ("door_ports", [False], "`door_ports[0]` is false; expected a TCP port, 1 to 65535", None),
        ("door_ports", 443, "`door_ports` is 443; expected a list; each item a TCP port, 1 to 65535", None),
        ("engine_enabled", "maybe", '`engine_enabled` is "maybe"; expected true or false', None),
        (
            "engine_backend",
            "cudda",
            '`engine_backend` is "cudda"; expected one of `cpu`, `cuda`, `rocm`',
            "did you mean `cuda`?",
        ),
        (
            "engine_backend",
            False,
            "`engine_backend` is false; expected one of `cpu`, `cuda`, `rocm`",
            "YAML reads yes, no, on and off as true or false: put the value in quotes",
        ),
        ("engine_ratio", 1.5, "`engine_ratio` is 1.5; expected a number, 0 to 1", None),
        ("engine_ratio", True, "`engine_ratio` is true; expected a number, 0 to 1", None),
        ("engine_memory", "lots", '`engine_memory` is "lots"; expected a size such as 64GiB, or nothing', None),
        ("engine_memory", "3 gobs", '`engine_memory` is "3 gobs"; expected a size such as 64GiB, or nothing', None),
        (
            "engine_version",
            1.2,
            r"`engine_version` is 1.2; expected text that matches ^\d+\.\d+$",
            'put it in quotes to have it read as text: "1.2"',
        ),
        (
            "door_bind",
            "0.0.0.0",
            '`door_bind` is "0.0.0.0"; expected a list, at most 2 items; each item an IP address',
            'write it as a list: ["0.0.0.0"]',
        ),
        ("door_bind", ["here"], '`door_bind[0]` is "here"; expected an IP address', None),
        (
            "door_bind",
            ["::1"] * 3,
            "`door_bind` is a list of 3 items; expected a list, at most 2 items; each item an IP address",
            "for example\n  door_bind:\n    - 0.0.0.0",
        ),
        (
            "door_environment",
            {"A": "it's"},
            "`door_environment.A` is \"it's\"; expected text that matches ^[^']*$",
            None,
        ),
        (
            "engine_model",
            "x.gguf",
            '`engine_model` is "x.gguf"; '
            "expected a mapping with `url`, `size`, `sha256` (optional), `flags` (optional)",
            None,
        ),
    ],
)
def test_wrong_values(variable, value, message, way_out):
    problem = only({variable: value})
    assert (problem.code, problem.variable, problem.message) == ("BW011", variable, message)
    if way_out is not None:
        assert problem.help == way_out


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("door_port", "8443", 8443),  # from INI inventories and Jinja
        ("engine_enabled", "no", False),
        ("engine_memory", None, None),
        ("engine_ratio", 1, 1.0),
    ],
)
def test_values_that_fit(variable, value, expected):
    prefix, name = variable.split("_", 1)
    assert getattr(getattr(parse({variable: value}), prefix), name) == expected


def test_a_long_value_is_cut_short():
    problem = only({"engine_backend": "x" * 500})
    assert len(problem.message) < 160
    assert "xxx..." in problem.message


# Parts of values


def test_missing_and_unknown_parts():
    missing, unknown = refused({"engine_model": {"url": "x", "sise": 3}})
    assert (missing.code, missing.message) == ("BW015", "`engine_model` has no `size`: Size of the file.")
    assert missing.help == "add `size`: a size such as 64GiB, for example\n  size: 1GiB"
    assert (unknown.code, unknown.message) == ("BW014", "`engine_model` has no part called `sise`")
    assert unknown.help == "did you mean `size`?"


def test_wrong_parts_deep_inside_a_list():
    parts = [MODEL, {**MODEL, "flags": [1, "two"], "sha256": "abc"}]
    problems = refused({"engine_parts": parts})
    assert [problem.message for problem in problems] == [
        '`engine_parts[1].sha256` is "abc"; '
        "expected a SHA-256 checksum, 64 hexadecimal digits in lower case, or nothing",
        '`engine_parts[1].flags[1]` is "two"; expected a whole number',
    ]


def test_unknown_part_without_a_near_name_lists_what_there_is():
    problem = only({"engine_model": {**MODEL, "colour": 1}})
    assert problem.help == "it has: `url`, `size`, `sha256`, `flags`"


# Required


def test_a_missing_variable_says_where_and_how_to_set_it():
    with pytest.raises(Refused) as caught:
        parse_box(ExampleBox, "box1", (), {}, None, None, set_in="inventory/group_vars/all.yml")
    (problem,) = caught.value.problems
    assert (problem.code, problem.variable, problem.host) == ("BW010", "engine_model", "box1")
    assert problem.message == "`engine_model` is not set: The model to serve."
    assert problem.help == (
        "set it in inventory/group_vars/all.yml, or beside the host for this host alone, for example\n"
        "  engine_model:\n"
        "    url: https://example.org/m.gguf\n"
        "    size: 1GiB"
    )


@pytest.mark.parametrize("off", [False, "no", "False"])
def test_a_role_that_is_switched_off_needs_nothing(off):
    box = parse_box(ExampleBox, "box1", (), {"engine_enabled": off, "engine_port": 443}, None, None)
    assert (box.engine.enabled, box.engine.port) == (False, 443)
    assert box.to_json()["engine"]["port"] == 443


def test_a_role_that_is_switched_off_is_still_checked():
    with pytest.raises(Refused) as caught:
        parse_box(ExampleBox, "box1", (), {"engine_enabled": False, "engine_port": 0}, None, None)
    assert [problem.code for problem in caught.value.problems] == ["BW011"]


def test_a_variable_whose_value_could_not_be_had_is_not_called_missing():
    with pytest.raises(Refused) as caught:
        parse_box(ExampleBox, "box1", (), {"door_port": 0}, None, None, unusable={"engine_model"})
    assert [problem.variable for problem in caught.value.problems] == ["door_port"]


# All at once, with places


def test_all_problems_of_all_roles_at_once_in_the_order_of_the_file():
    lines = {"door_prot": 9, "engine_port": 2, "engine_ratio": 30, "door_password": 4}

    def locate(path, what):
        return Location("vars.yml", lines[path[0]], 1) if path[0] in lines and what != "text" else None

    problems = refused({"door_prot": 1, "engine_port": 0, "engine_ratio": "x", "door_password": " "}, locate=locate)
    assert [(problem.code, problem.location.line) for problem in problems] == [
        ("BW011", 2),
        ("BW016", 4),
        ("BW012", 9),
        ("BW011", 30),
    ]


def test_locations_are_asked_for_with_the_path_and_what_is_wrong_there():
    asked = []

    def locate(path, what):
        asked.append((path, what))

    refused(
        {"engine_parts": [{**MODEL, "flags": ["x"], "colour": 1}], "door_xyzzy": 1},
        locate=locate,
    )
    assert (("engine_parts", 0, "flags", 0), "value") in asked
    assert (("engine_parts", 0, "flags", 0), "text") in asked
    assert (("engine_parts", 0, "colour"), "key") in asked
    assert (("door_xyzzy",), "key") in asked


# Between roles


def test_problems_between_roles_get_their_place():
    def locate(path, what):
        return Location("vars.yml", 7, 3) if (path, what) == (("door_port",), "value") else None

    problem = only({"door_port": 8081}, locate=locate)
    assert (problem.code, problem.variable, problem.host) == ("BW024", "door_port", "box1")
    assert problem.location == Location("vars.yml", 7, 3)


def test_problems_between_roles_wait_until_every_role_is_right():
    assert [problem.code for problem in refused({"door_port": 8081, "engine_ratio": 7})] == ["BW011"]


# Secrets


def test_secrets_are_made_once_and_kept(store):
    first, second = parse({}, store), parse({}, store)
    secret = first.door.password.get_secret_value()
    assert second.door.password.get_secret_value() == secret
    assert len(secret) == 32  # 24 bytes in base64
    assert store.get("box1", "door_password") == secret
    assert parse_box(ExampleBox, "box2", (), {"engine_model": MODEL}, None, store).door.password != first.door.password


def test_a_given_secret_wins_and_is_not_kept(store):
    box = parse({"door_password": "correct horse"}, store)
    assert box.door.password.get_secret_value() == "correct horse"
    assert store.get("box1", "door_password") is None


def test_nothing_is_made_for_a_refused_host(store):
    refused({"door_port": 0}, store)
    refused({"door_port": 8081}, store)
    assert store.all("box1") == {}


@pytest.mark.parametrize("blank", ["", "   ", "\n", None])
def test_a_blank_secret_is_refused(blank):
    problem = only({"door_password": blank})
    assert (problem.code, problem.variable, problem.sensitive) == ("BW016", "door_password", True)
    assert problem.help == "remove the line to have one made, or give it a value"


def test_an_optional_secret_may_be_empty_but_not_blank():
    assert parse({"door_token": None}).door.token is None
    assert only({"door_token": ""}).code == "BW016"


@pytest.mark.parametrize("value", [12345678901, ["hunter2hunter2"], {"hunter2hunter2": 1}, True])
def test_a_secret_of_the_wrong_type_is_not_shown(value):
    problem = only({"door_password": value})
    assert (problem.code, problem.sensitive) == ("BW011", True)
    text = f"{problem.message} {problem.help}"
    assert "12345678901" not in text
    assert "hunter2" not in text


def test_a_value_under_a_telling_name_is_not_shown():
    problem = only({"door_environment": {"API_KEY": "it's secret"}})
    assert problem.sensitive
    assert "it's secret" not in f"{problem.message} {problem.help}"


def test_the_hash_belongs_to_the_password_and_stays(store):
    import bcrypt

    first = parse({"door_password": "one password"}, store).door.password_hash.get_secret_value()
    assert bcrypt.checkpw(b"one password", first.encode())
    assert parse({"door_password": "one password"}, store).door.password_hash.get_secret_value() == first
    other = parse({"door_password": "another password"}, store).door.password_hash.get_secret_value()
    assert bcrypt.checkpw(b"another password", other.encode())
    assert other != first


def test_a_password_too_long_for_bcrypt_is_refused(store):
    problem = only({"door_password": "ä" * 37}, store=store)  # 74 bytes
    assert (problem.code, problem.variable) == ("BW018", "door_password")
    parse({"door_password": "ä" * 36}, store)


def test_a_damaged_secrets_file_is_reported_with_the_rest(store):
    parse({}, store)
    store.path("box1").write_text("{")
    assert {problem.code for problem in refused({"door_port": 0}, store)} == {"BW011", "BW030"}


def test_nothing_printed_of_a_box_holds_a_secret(store):
    import json

    box = parse({"door_token": "a-very-secret-token"}, store)
    secrets = list(box.secret_values())
    assert len(secrets) == 3
    assert "a-very-secret-token" in secrets
    for text in (json.dumps(box.to_json()), repr(box), str(box)):
        assert not [secret for secret in secrets if secret in text]


def test_secret_values_include_telling_names_in_mappings(store):
    box = parse({"door_environment": {"OPENAI_API_KEY": "sk-123456", "WEBUI_NAME": "name"}}, store)
    assert "sk-123456" in list(box.secret_values())
    assert "name" not in list(box.secret_values())


# The classes themselves


def test_role_classes_and_variables():
    assert role_classes(ExampleBox) == {"engine": EngineSettings, "door": DoorSettings}
    known = variable_fields(ExampleBox)
    assert known["engine_port"][:2] == (EngineSettings, "port")
    assert "door_password" in known
    assert "door_password_hash" not in known


def test_an_attribute_must_be_named_as_the_prefix():
    class OtherSettings(RoleSettings, prefix="other"):
        port: Port = 1

    class WrongBox(BoxBase):
        another: OtherSettings

    with pytest.raises(TypeError, match="another"):
        role_classes(WrongBox)


def test_importing_settings_and_errors_brings_neither_ansible_nor_pyinfra():
    program = (
        "import sys, boxwright.errors, boxwright.settings, boxwright.inventory\n"
        "print([name for name in ('ansible', 'pyinfra', 'bcrypt', 'gevent') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
