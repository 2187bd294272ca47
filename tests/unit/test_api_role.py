"""The roles api, postgresql and redis, and `gateway_auth: keys`: what they refuse, and what they write."""

from __future__ import annotations

import json
import os
import plistlib
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from boxwright import systems
from boxwright.errors import Refused
from boxwright.launchd import plist
from boxwright.operations import postgresql as database_operations
from boxwright.operations import trees
from boxwright.preflight import Machine, examine
from boxwright.settings import parse_box
from boxwright.systemd import systemd_unit
from boxwright.templates import render
from roles.api import tasks as api
from roles.gateway import caddy, nginx
from roles.gateway.common import ways
from roles.postgresql import tasks as postgresql
from roles.redis import tasks as redis
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
EMBEDDING = {**MODEL, "name": "embedder", "kind": "embedding", "sha256": "cd" * 32}
DEBIAN = Machine("Linux", "x86_64", "debian", "13", systemd=True, memory=2**33, disk_free=2**34)
KEYS = {"api_enabled": True, "gateway_auth": "keys"}
FULL = {**KEYS, "api_store": "full"}
VLLM = {
    "inference_engine": "vllm",
    "inference_models": [{"name": "big", "path": "/srv/big"}],
    "vllm_requirements": f"vllm==0.33.0 --hash=sha256:{'0' * 64}\n",
    "vllm_port": 8001,
}


def a_box(group: str = "linux", /, **variables: Any) -> Box:
    given = {"gateway_names": ["llm.example"], "inference_models": [MODEL], **variables}
    return parse_box(Box, "box", (group,), given, None, None)


def settings(box: Box, number: int = 0) -> dict[str, Any]:
    """The settings of an instance, as the service reads them."""
    found: dict[str, Any] = json.loads(api.configuration(box, box.api.instances[number]))
    return found


# What is refused


@pytest.mark.parametrize(
    ("variables", "code", "variable"),
    [
        ({"gateway_auth": "keys"}, "BW029", "gateway_auth"),
        ({**KEYS, "gateway_engines": ["192.0.2.1:8081"]}, "BW022", "gateway_engines"),
        ({"api_enabled": True, "inference_engine": "none"}, "BW022", "api_enabled"),
        ({"api_enabled": True, "api_workers": 2}, "BW022", "api_workers"),
        ({**FULL, "postgresql_enabled": False}, "BW022", "postgresql_enabled"),
        ({**FULL, "redis_enabled": False}, "BW022", "redis_enabled"),
        ({**FULL, "postgresql_options": {"listen_addresses": "*"}}, "BW022", "postgresql_options"),
        ({**FULL, "redis_port": 5432}, "BW024", "redis_port"),
        ({**KEYS, "api_port": 8081}, "BW024", "api_port"),
        ({**KEYS, "api_development": True, "api_development_port": 8000}, "BW024", "api_development_port"),
        ({**KEYS, **VLLM, "vllm_port": 8000}, "BW024", "api_port"),
        (
            {**KEYS, "api_models": [{"name": "a", "upstream": "http://192.0.2.1:1", "key": "theirs"}]},
            "BW022",
            "api_models",
        ),
        ({**KEYS, "api_models": [{"name": "a", "upstream": "http://192.0.2.1:1"}] * 2}, "BW022", "api_models"),
        ({"gateway_routes": [{"path": "/x", "upstreams": ["127.0.0.1:1"], "auth": "keys"}]}, "BW011", "gateway_routes"),
    ],
)
def test_contradictions_are_refused(variables: dict[str, Any], code: str, variable: str) -> None:
    with pytest.raises(Refused) as refused:
        a_box(**variables)
    assert [(problem.code, problem.variable) for problem in refused.value.problems] == [(code, variable)]


def test_ports_of_what_does_not_run_may_be_used() -> None:
    assert a_box(api_port=8081, redis_port=8081).api.port == 8081
    assert a_box(**KEYS, api_development_port=8000).api.instances[0].port == 8000


def test_a_python_that_is_too_old_is_refused_on_the_box() -> None:
    jammy = Machine("Linux", "x86_64", "ubuntu", "22.04", systemd=True, memory=2**33, disk_free=2**34)

    def said(box: Box, machine: Machine) -> list[str]:
        return [problem.code for condition in api.need(box).conditions for problem in condition(machine)]

    assert said(a_box(**KEYS), jammy) == ["BW114"]
    assert said(a_box(**KEYS, api_python="/usr/local/bin/python3.12"), jammy) == []
    assert said(a_box(**KEYS), DEBIAN) == []
    assert api.need(a_box()).conditions == ()


def test_a_program_of_anothers_on_the_port_is_refused_though_it_is_called_the_same() -> None:
    box = a_box(**KEYS)

    def said(*files: str) -> list[str]:
        there = Machine("Linux", "x86_64", "debian", "13", True, 1, 1, {8000: ("python3",)}, frozenset(files))
        found = examine(there, api.need(box))
        return [f"{problem.code} {problem.variable}" for problem in found]

    assert "BW113 api_port" in said()
    assert said("/etc/boxwright/api/production.json") == []


# What the service is told


def test_the_settings_are_those_of_the_service_and_have_no_secret(tmp_path: Path) -> None:
    """Read by the service's own code, from the files as a box has them."""
    box = a_box(**FULL, api_key_defaults={"parallel": 3}, api_options={"key_cache_seconds": 1})
    text = api.configuration(box, box.api.instances[0])
    for secret in box.secret_values():
        assert secret not in text
    (tmp_path / "settings.json").write_text(text)
    (tmp_path / "secrets").mkdir()
    for name, value in api.secrets(box, box.api.instances[0]).items():
        (tmp_path / "secrets" / name).write_text(value)
    told = """
import json
from boxwright_api.settings import Settings
s = Settings()
print(json.dumps([s.database, s.database_password.get_secret_value(), s.redis_password.get_secret_value(), s.workers,
                  s.key_defaults.parallel, s.key_cache_seconds, s.peppers.get_secret_value()]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", told],
        env={
            **os.environ,
            "PYTHONPATH": str(api.SOURCE),
            "BOXWRIGHT_API_SETTINGS": str(tmp_path / "settings.json"),
            "CREDENTIALS_DIRECTORY": str(tmp_path / "secrets"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    database, password, redis_password, workers, parallel, cache, peppers = json.loads(ended.stdout)
    assert database == "postgresql://boxwright_api_production@127.0.0.1:5432/boxwright_api_production"
    assert password == box.api.database_password.get_secret_value()
    assert redis_password == box.redis.password.get_secret_value()
    assert (workers, parallel, cache) == (2, 3, 1)
    assert re.fullmatch(r"1:[0-9a-f]{64}", peppers)


def test_the_small_one_keeps_everything_in_one_file_and_process() -> None:
    box = a_box(**KEYS)
    told = settings(box)
    assert told["database"] == "sqlite:////var/lib/boxwright/api/production/api.sqlite3"
    assert (told["redis"], told["workers"], told["in_flight"], told["wait_ms"]) == ("", 1, 10, 250)
    assert not box.postgresql.runs(box)
    assert not box.redis.runs(box)
    assert set(api.secrets(box, box.api.instances[0])) == {"peppers", "admin_secret", "engine_keys"}


def test_models_are_those_of_the_engines() -> None:
    ollama = {**MODEL, "name": "other", "engine": "ollama", "sha256": "ef" * 32}
    box = a_box(**KEYS, inference_models=[MODEL, EMBEDDING, ollama], docker_enabled=True)
    routes = {route["name"]: route for route in settings(box)["models"]}
    assert {name: (r["upstream"], r["engine"]) for name, r in routes.items()} == {
        "local-llm": ("http://127.0.0.1:8081", "openai"),
        "embedder": (f"http://127.0.0.1:{box.llamacpp.embedding_port}", "openai"),
        "other": ("http://127.0.0.1:11434", "ollama"),
    }
    assert routes["embedder"]["offers"] == ["embeddings"]
    assert "embeddings" not in routes["local-llm"]["offers"]


def test_the_key_of_an_engine_is_a_secret_of_the_service() -> None:
    box = a_box(**KEYS, **VLLM)
    (route,) = settings(box)["models"]
    key = box.vllm.api_key.get_secret_value()
    assert route["key"] == "vllm"
    assert key not in api.configuration(box, box.api.instances[0])
    assert json.loads(api.secrets(box, box.api.instances[0])["engine_keys"]) == {"vllm": key}


def test_engines_of_other_machines_are_reached() -> None:
    models = [{"name": "far", "upstream": "http://192.0.2.9:8000", "key": "far"}]
    box = a_box(**KEYS, inference_engine="none", api_models=models, api_engine_keys={"far": "k"})
    unit = systemd_unit(api.service(box, box.api.instances[0]))
    assert not re.search(r"^IPAddressDeny", unit, re.MULTILINE)
    near = systemd_unit(api.service(a_box(**KEYS), a_box(**KEYS).api.instances[0]))
    assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in near


def test_an_experiment_shares_nothing_with_production() -> None:
    box = a_box(**FULL, api_development=True)
    first, second = box.api.instances
    one, two = settings(box), settings(box, 1)
    for name in ("instance", "port", "database", "redis_prefix", "spill"):
        assert one[name] != two[name], name
    assert one["models"] == two["models"]
    for name in ("peppers", "admin_secret", "database_password"):
        assert api.secrets(box, first)[name] != api.secrets(box, second)[name]
    for ours in (api.account, lambda box, one: api.data(one), lambda box, one: api.secrets_folder(one)):
        assert ours(box, first) != ours(box, second)
    # The door leads to production alone.
    assert "127.0.0.1:8010" not in caddy.caddyfile(box)
    assert [database.name for database in box.postgresql.databases(box)] == [first.database, second.database]


# Units


def test_the_unit_needs_the_migration_and_shows_secrets_to_itself_alone() -> None:
    box = a_box(**FULL)
    instance = box.api.instances[0]
    unit, before = systemd_unit(api.service(box, instance)), systemd_unit(api.migration(box, instance))
    assert "Requires=boxwright-api-production-migrate.service\n" in unit
    assert re.search(r"^After=boxwright-api-production-migrate.service$", unit, re.MULTILINE)
    assert "Type=oneshot\n" in before
    assert "[Install]" not in before
    assert "Restart=" not in before
    for text in (unit, before):
        assert "LoadCredential=database_password:/etc/boxwright/api/production/database_password\n" in text
        assert "User=boxwright-api-production\n" in text
        for secret in box.secret_values():
            assert secret not in text
    # What it was started with has the secrets among it.
    assert "/etc/boxwright/api/production/admin_secret" in api.service(box, instance).started_with
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop
    assert int(stop[1]) > settings(box)["stop_seconds"]


def test_on_a_mac_one_process_prepares_the_database_and_becomes_the_service() -> None:
    box = a_box("darwin", **FULL)
    instance = box.api.instances[0]
    text = plist(api.service(box, instance))
    assert "<string>serve</string>" in text
    assert "<string>_boxwright-api-production</string>" in text
    assert "<string>database_password:/etc/boxwright/api/production/database_password</string>" in text
    assert "<string>/var/run/boxwright-credentials/boxwright-api-production</string>" in text
    # More than every Mac has, and launchd would not start it.
    assert plistlib.loads(text.encode())["HardResourceLimits"] == {"NumberOfFiles": 10240}
    assert "/opt/homebrew/opt/python@3.13" in api.interpreter(box)
    for other in (postgresql.service(box, DEBIAN), redis.service(box, DEBIAN)):
        assert plist(other)
    # launchd would end it by SIGTERM, and it would wait for its clients.
    assert "kill -INT" in plist(postgresql.service(box, DEBIAN))


def test_a_program_of_the_checkout_is_named_by_its_content(tmp_path: Path) -> None:
    files = api.program_files()
    assert {"boxwright_api/__init__.py", "boxwright_api/settings.py", "prepare.py"} <= set(files)
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("x = 1\n")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "b.pyc").write_bytes(b"\xff")
    read = trees.read(tmp_path)
    assert read == {"a/b.py": "x = 1\n"}
    assert trees.digest(read) != trees.digest({"a/b.py": "x = 2\n"})
    assert trees.digest(read) != trees.digest({"a/c.py": "x = 1\n"})


# The gateway


def test_the_door_leads_to_the_service_which_asks_for_keys() -> None:
    box = a_box(**KEYS)
    site = re.findall(r"^https://llm.example:443 \{\n(.*?)^\}", caddy.caddyfile(box), re.MULTILINE | re.DOTALL)[0]
    assert "reverse_proxy 127.0.0.1:8000" in site
    assert "127.0.0.1:8081" not in site
    engine = site.partition("handle @service {")[2].partition("\n\thandle {")[0]
    assert "header_up -Authorization" not in engine
    assert "header_up Authorization" not in engine
    assert "basic_auth" not in engine
    # Nothing of the service but the declared paths.
    (way,) = [way for way in ways(box) if way.door]
    assert all(path.startswith("/v1/") for path in way.allow)
    assert settings(box)["trusted_proxies"] == ["127.0.0.1/32"]
    assert settings(a_box(api_enabled=True))["trusted_proxies"] == []


def test_open_webui_goes_on_to_the_engine() -> None:
    text = caddy.caddyfile(a_box(**KEYS))
    inner = text.partition("http://172.30.77.1:8088 {")[2]
    assert "reverse_proxy 127.0.0.1:8081" in inner
    assert "127.0.0.1:8000" not in inner
    assert "header_up -Authorization" in inner


def test_nginx_does_the_same() -> None:
    box = a_box(**KEYS, gateway_server="nginx")
    text = nginx.configuration(box)
    door = text.partition("server_name llm.example;")[2].partition("stub_status")[0]
    assert "proxy_pass http://service;" in door
    assert "proxy_pass http://v1;" not in door
    location = door.partition("location @service {")[2].partition("\n\t\t}\n")[0]
    assert "proxy_set_header Authorization" not in location
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in location
    inner = text.partition("stub_status")[2]
    assert "proxy_pass http://v1;" in inner
    assert "proxy_pass http://service;" not in inner


def test_routes_beside_it_ask_for_the_gateways_own_credentials() -> None:
    routes = [{"path": "/x", "upstreams": ["127.0.0.1:1"]}]
    (way,) = [way for way in ways(a_box(**KEYS, gateway_routes=routes)) if way.path == "/x"]
    assert (way.auth, way.passes) == ("any", False)


# Databases


def test_a_password_is_kept_as_postgresql_keeps_it() -> None:
    """The example of RFC 7677."""
    salt = bytes.fromhex("5b6d99689d12358eeca04b141236fa81")
    made = database_operations.verifier("pencil", salt)
    assert made == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
        ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_statements_have_no_password_and_a_name_is_a_name() -> None:
    absent = database_operations.DatabaseState(up=True)
    made = database_operations.statements("theirs", "the password itself", absent)
    assert [text.split(" ", 2)[:2] for text in made] == [["CREATE", "ROLE"], ["CREATE", "DATABASE"], ["REVOKE", "ALL"]]
    assert "the password itself" not in " ".join(made)
    for name in ("a b", 'a"b', "a;b", "A", ""):
        with pytest.raises(Exception, match="not the name of a database"):
            database_operations.statements(name, "x", absent)


def test_who_may_come_in_is_named_one_by_one() -> None:
    lines = postgresql.hba(a_box(**FULL, api_development=True)).splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules == [
        "local all boxwright-postgresql peer",
        "host boxwright_api_production boxwright_api_production 127.0.0.1/32 scram-sha-256",
        "host boxwright_api_development boxwright_api_development 127.0.0.1/32 scram-sha-256",
    ]


def test_redis_forgets_nothing() -> None:
    text = redis.configuration(a_box(**FULL))
    for line in ("bind 127.0.0.1", "appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction"):
        assert f"\n{line}\n" in text
    assert a_box(**FULL).redis.password.get_secret_value() not in text


# The program that prepares the database, run here


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs it, with a migration that makes a table and tells so."""
    program, data = tmp_path / "program", tmp_path / "data"
    (program / "boxwright_api").mkdir(parents=True)
    data.mkdir()
    (program / "prepare.py").write_text(render("api/prepare.py"))
    (program / "boxwright_api" / "__init__.py").touch()
    (program / "boxwright_api" / "__main__.py").write_text(
        "import json, os, sqlite3, sys\n"
        "url = json.load(open(os.environ['BOXWRIGHT_API_SETTINGS']))['database']\n"
        "if sys.argv[1:] == ['migrate']:\n"
        "    if os.environ.get('BROKEN'): sys.exit(1)\n"
        "    sqlite3.connect(url.removeprefix('sqlite:///')).execute('CREATE TABLE IF NOT EXISTS t (x)')\n"
        "else: print('serves')\n"
    )
    (tmp_path / "settings.json").write_text(json.dumps({"database": f"sqlite:///{data}/api.sqlite3"}))

    def run(version: str, *then: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, program / "prepare.py", data, "2", "-", version, *then],
            env={
                **os.environ,
                "PYTHONPATH": str(program),
                "BOXWRIGHT_API_SETTINGS": str(tmp_path / "settings.json"),
                **more,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_copy_is_made_before_each_new_version_where_there_is_something(
    prepare: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    copies = tmp_path / "data" / "backups"
    assert prepare("v1").returncode == 0
    assert list(copies.iterdir()) == []
    with sqlite3.connect(tmp_path / "data" / "api.sqlite3") as database:
        database.execute("INSERT INTO t VALUES ('kept')")
    assert prepare("v1").returncode == 0
    assert list(copies.iterdir()) == []
    for version in ("v2", "v3", "v4"):
        assert prepare(version).returncode == 0
    kept = sorted(path.name.split("-")[1] for path in copies.iterdir())
    assert kept == ["v3", "v4"]
    for path in copies.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert sqlite3.connect(path).execute("SELECT x FROM t").fetchall() == [("kept",)]


def test_a_migration_that_fails_is_tried_again_with_its_copy_at_hand(
    prepare: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert prepare("v1").returncode == 0
    broken = prepare("v2", "serve", BROKEN="1")
    assert broken.returncode != 0
    assert "could not be brought to the newest schema" in broken.stderr
    assert "serves" not in broken.stdout
    assert (tmp_path / "data" / "migrated-to").read_text() == "v1\n"
    assert len(list((tmp_path / "data" / "backups").iterdir())) == 1
    assert prepare("v2", "serve").stdout == "serves\n"
    assert (tmp_path / "data" / "migrated-to").read_text() == "v2\n"


def test_accounts_have_names_that_a_mac_takes() -> None:
    for instance in a_box(**KEYS).api.every_instance:
        assert len(systems.account("darwin", instance.unit)) <= 31


# Engines in somebody's session


@pytest.mark.parametrize(
    ("variables", "signed_in", "waits"),
    [
        ({}, None, True),
        ({"inference_agent_user": "ada"}, True, True),
        ({"inference_agent_user": "ada"}, False, False),
    ],
)
def test_models_that_cannot_run_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, Any], signed_in: bool | None, waits: bool
) -> None:
    """Nobody is asked about where the engines are daemons."""
    box = a_box("darwin", **KEYS, **variables)
    given: list[tuple[str, ...]] = []

    def asked(fact: type, user: str) -> bool:
        assert (user, signed_in is None) == ("ada", False)
        return bool(signed_in)

    monkeypatch.setattr(api, "target", SimpleNamespace(get_fact=asked))
    monkeypatch.setattr(api.services, "running", lambda **words: given.append(words["answers"]))
    monkeypatch.setattr(api.python_packages, "prune", lambda **words: None)
    api.activate(box)
    assert given == [api.ready(box.api.instances[0]) if waits else ()]
