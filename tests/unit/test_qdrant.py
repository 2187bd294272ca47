"""The role qdrant, and what of it the API service is told."""

from __future__ import annotations

import json
import os
import plistlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from boxwright.errors import Refused
from boxwright.launchd import plist
from boxwright.preflight import Need
from boxwright.settings import parse_box
from boxwright.site_mirror.supply import Target, wanted
from boxwright.systemd import systemd_unit
from roles.api import tasks as api
from roles.qdrant import tasks as qdrant
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
EMBEDDING = {**MODEL, "name": "embedder", "kind": "embedding", "sha256": "cd" * 32}
RETRIEVAL = {"api_enabled": True, "api_retrieval_model": "embedder", "inference_models": [MODEL, EMBEDDING]}
KEY = "key-of-the-tests-of-qdrant"
UNIT = "boxwright-qdrant"


def a_box(group: str = "linux", /, **variables: Any) -> Box:
    given = {"gateway_names": ["llm.example"], "inference_models": [MODEL], "qdrant_api_key": KEY, **variables}
    return parse_box(Box, "box", (group,), given, None, None)


@pytest.mark.parametrize(
    ("variables", "code", "variable"),
    [
        ({**RETRIEVAL, "api_retrieval_model": "nobody"}, "BW022", "api_retrieval_model"),
        # A model for chat alone.
        ({**RETRIEVAL, "api_retrieval_model": "local-llm"}, "BW022", "api_retrieval_model"),
        ({**RETRIEVAL, "api_retrieval_passages": 0}, "BW011", "api_retrieval_passages"),
        ({**RETRIEVAL, "qdrant_enabled": False}, "BW022", "qdrant_enabled"),
        ({**RETRIEVAL, "qdrant_port": 8000}, "BW024", "api_port"),
        ({**RETRIEVAL, "api_store": "full", "qdrant_port": 6379}, "BW024", "qdrant_port"),
        ({"qdrant_enabled": True, "qdrant_version": "1.99.0"}, "BW022", "qdrant_version"),
        ({"qdrant_enabled": True, "qdrant_sha256": "12"}, "BW011", "qdrant_sha256"),
        ({"qdrant_enabled": True, "qdrant_api_key": "too-short"}, "BW022", "qdrant_api_key"),
        ({"qdrant_enabled": True, "qdrant_api_key": 'no quotes " in a header'}, "BW022", "qdrant_api_key"),
    ],
)
def test_contradictions_are_refused(variables: dict[str, Any], code: str, variable: str) -> None:
    with pytest.raises(Refused) as refused:
        a_box(**variables)
    assert [(problem.code, problem.variable) for problem in refused.value.problems] == [(code, variable)]
    assert KEY not in str(refused.value.problems)


def test_who_offers_embeddings_is_said() -> None:
    with pytest.raises(Refused) as refused:
        a_box(**{**RETRIEVAL, "api_retrieval_model": "local-llm"})
    (problem,) = refused.value.problems
    assert "`local-llm`" in problem.message
    assert "`embedder`" in problem.message
    assert "kind: embedding" in (problem.help or "")


def test_it_runs_where_passages_are_looked_up_and_not_otherwise() -> None:
    off = a_box(api_enabled=True)
    assert not off.qdrant.runs(off)
    assert qdrant.need(off) == Need(files=(qdrant.CONFIGURATION,))
    assert "retrieval" not in json.loads(api.configuration(off, off.api.instances[0]))
    assert "retrieval_key" not in api.secrets(off, off.api.instances[0])
    # The service itself does not run.
    idle = a_box(**{**RETRIEVAL, "api_enabled": False})
    assert not idle.qdrant.runs(idle)
    on = a_box(**RETRIEVAL)
    assert on.qdrant.runs(on)
    assert (on.qdrant.switch(on), off.qdrant.switch(off)) == ("api_retrieval_model", "")
    assert qdrant.need(on).ports == {6333: ("qdrant_port", ("qdrant",))}
    alone = a_box(qdrant_enabled=True)
    assert alone.qdrant.switch(alone) == "qdrant_enabled"


def test_its_settings_close_it_and_hold_no_secret() -> None:
    box = a_box(**RETRIEVAL, qdrant_port=6400)
    text = qdrant.configuration(box)
    assert KEY not in text
    told = json.loads(text)
    service = told["service"]
    assert (service["host"], service["http_port"], service["grpc_port"]) == ("127.0.0.1", 6400, None)
    assert told["telemetry_disabled"] is True
    for name in ("enable_cors", "enable_static_content", "enable_snapshot_url_recovery"):
        assert service[name] is False, name
    assert "api_key" not in service
    for path in (told["storage"]["storage_path"], told["storage"]["snapshots_path"]):
        assert path.startswith("/var/lib/boxwright/qdrant/")
    assert json.loads(qdrant.key(box)) == {"service": {"api_key": KEY}}


def test_the_unit_gets_the_key_as_a_credential_and_restarts_for_a_new_one() -> None:
    box = a_box(**RETRIEVAL)
    service = qdrant.service(box)
    unit = systemd_unit(service)
    assert KEY not in unit
    assert "LoadCredential=key.yaml:/etc/boxwright/qdrant/key.yaml\n" in unit
    assert f"--disable-telemetry --config-path /run/credentials/{UNIT}.service/key.yaml\n" in unit
    assert "WorkingDirectory=/etc/boxwright/qdrant\n" in unit
    assert re.search(r"^ExecStart=/opt/boxwright/qdrant/1\.18\.3-[0-9a-f]{12}/qdrant ", unit, re.MULTILINE)
    assert {qdrant.KEY, qdrant.CONFIGURATION} <= set(service.started_with)
    assert qdrant.folder(box) != qdrant.folder(a_box(**RETRIEVAL, qdrant_sha256="0" * 64))


def test_on_a_mac_it_is_given_its_key_by_the_start_program() -> None:
    box = a_box("darwin", **RETRIEVAL)
    told = plistlib.loads(plist(qdrant.service(box)).encode())
    words = told["ProgramArguments"]
    assert words[-3:-1] == ["--disable-telemetry", "--config-path"]
    # Where the start program puts the credentials of the service.
    assert words[-1] == f"{told['EnvironmentVariables']['CREDENTIALS_DIRECTORY']}/key.yaml"
    assert words[words.index("--credential") + 1] == "key.yaml:/etc/boxwright/qdrant/key.yaml"
    assert words[words.index("--user") + 1] == f"_{UNIT}"


@pytest.mark.parametrize(
    ("group", "architecture", "name", "digest"),
    [
        ("linux", "amd64", "qdrant-x86_64-unknown-linux-musl", "b4faedcdf8c9577bf1c8f2ab9b454636"),
        ("linux", "arm64", "qdrant-aarch64-unknown-linux-musl", "1e738b45f90935c383b4076c30f377f3"),
        ("darwin", "arm64", "qdrant-aarch64-apple-darwin", "0cb040a261035c316779bd7b4cca2e6a"),
    ],
)
def test_a_mirror_holds_the_publishers_archive(group: str, architecture: str, name: str, digest: str) -> None:
    box = a_box(group, **RETRIEVAL)
    (file,) = [one for one in wanted([box], [Target("debian-13", architecture)]).common.files if "qdrant" in one.url]
    assert file.url == f"https://github.com/qdrant/qdrant/releases/download/v1.18.3/{name}.tar.gz"
    assert file.sha256.startswith(digest)
    without = wanted([a_box(group)], [Target("debian-13", architecture)]).common.files
    assert not [one for one in without if "qdrant" in one.url]


def test_another_version_is_named_by_its_checksum() -> None:
    box = a_box(**RETRIEVAL, qdrant_version="1.19.1", qdrant_sha256="ab" * 32)
    file = box.qdrant.download("x86_64")
    assert "/v1.19.1/" in file.url
    assert file.sha256 == "ab" * 32


def test_the_service_reads_what_it_is_told(tmp_path: Path) -> None:
    """By its own code, from the files as a box has them; each instance has collections of its own."""
    box = a_box(**RETRIEVAL, api_development=True, api_retrieval_passages=7, qdrant_port=6400)
    told = """
import json
from boxwright_api.settings import Settings
s = Settings()
print(json.dumps([s.retrieval.model_dump(), s.retrieval_key.get_secret_value()]))
"""
    found = []
    for instance in box.api.instances:
        folder = tmp_path / instance.name
        folder.mkdir()
        text = api.configuration(box, instance)
        assert KEY not in text
        (tmp_path / f"{instance.name}.json").write_text(text)
        for name, value in api.secrets(box, instance).items():
            (folder / name).write_text(value)
        ended = subprocess.run(
            [sys.executable, "-c", told],
            env={
                **os.environ,
                "PYTHONPATH": str(api.SOURCE),
                "BOXWRIGHT_API_SETTINGS": str(tmp_path / f"{instance.name}.json"),
                "CREDENTIALS_DIRECTORY": str(folder),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        found.append(json.loads(ended.stdout))
    # `seconds` is not set by the role.
    common = {"url": "http://127.0.0.1:6400", "model": "embedder", "passages": 7, "seconds": 60}
    assert found == [
        [{**common, "prefix": "bw-production-"}, KEY],
        [{**common, "prefix": "bw-development-"}, KEY],
    ]


def test_the_service_starts_after_it() -> None:
    box = a_box(**RETRIEVAL)
    unit = systemd_unit(api.service(box, box.api.instances[0]))
    assert f"After={UNIT}.service\n" in unit
    assert "LoadCredential=retrieval_key:/etc/boxwright/api/production/retrieval_key\n" in unit
    both = a_box(**RETRIEVAL, api_store="full")
    unit = systemd_unit(api.service(both, both.api.instances[0]))
    for name in ("boxwright-postgresql", "boxwright-redis", UNIT):
        assert f"After={name}.service\n" in unit
    assert UNIT not in systemd_unit(api.service(a_box(api_enabled=True), a_box(api_enabled=True).api.instances[0]))
