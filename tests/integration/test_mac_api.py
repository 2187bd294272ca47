"""The small API service on a Mac (the double of one): its database prepared by the process that becomes the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import mac_mirror
import pytest
from kit import MODEL_ENTRY, Lab, eventually
from qdrant_mirror import in_mirror
from studio import QUESTION, Studio, tunnel_formulae

from tests.doubles.macos import ROOT as DOUBLE
from tests.doubles.macos import MacDouble

pytestmark = pytest.mark.lab

SERVICE = "boxwright-api-production"
CREDENTIALS = f"/var/run/boxwright-credentials/{SERVICE}"


@pytest.fixture(scope="module")
def studio(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A Mac with one engine, the service and the gateway."""
    url = mac_mirror.address(api_enabled=True)
    with MacDouble(name="apistudio", full_disk_access=True, throttle=1) as mac:
        for formula in tunnel_formulae(tmp_path_factory.mktemp("formulae")):
            mac.formula(*formula)
        made = Studio(lab, mac, url)
        given: dict[str, Any] = {**made.variables, "api_enabled": True, "gateway_auth": "keys"}
        for name in ("cloudflared_enabled", "cloudflared_credentials", "gateway_tokens"):
            given.pop(name)
        given |= {"qdrant_enabled": True, **in_mirror("arm64", f"{DOUBLE}/linux/bin/python3 -ISB")}
        made.inventory = mac.inventory(**{**given, "inference_models": [MODEL_ENTRY]})
        assert "api" in {name.partition(":")[0] for name in made.apply()}
        yield made


def made(studio: Studio) -> str:
    """A key, asked for on the Mac itself."""
    text = (
        'printf \'header = "Authorization: Bearer %s"\' "$(cat /etc/boxwright/api/production/admin_secret)" | '
        "curl --config - --silent --noproxy '*' --header 'Content-Type: application/json' "
        '--data \'{"owner": "tests"}\' http://127.0.0.1:8000/admin/keys'
    )
    return str(json.loads(studio.mac.sh(text))["key"])


def test_a_key_opens_the_model_and_nothing_else_does(studio: Studio) -> None:
    assert studio.apply() == []
    for wrong in ("", f"bw_AAAAAAAA_{'A' * 43}"):
        assert studio.http("GET", "v1/models", wrong).status_code == 401
    key = made(studio)
    assert studio.http("POST", "v1/chat/completions", key, json={**QUESTION, "max_tokens": 4}).status_code == 200
    for path in ("admin/keys", "metrics", "docs"):
        assert studio.http("GET", path, key).status_code == 404


def test_it_is_not_root_and_its_secrets_are_its_own(studio: Studio) -> None:
    assert studio.mac.sh(f"ps -ww -o user= -p {studio.pid(SERVICE)}").strip() == f"_{SERVICE}"
    listed = studio.mac.sh(f"stat -f '%Lp %Su' {CREDENTIALS} {CREDENTIALS}/*").splitlines()
    assert listed == [f"700 _{SERVICE}"] + [f"400 _{SERVICE}"] * 3
    secret = studio.mac.sh("cat /etc/boxwright/api/production/admin_secret").strip()
    seen = studio.mac.as_user(
        "ps -axwwo command=; cat /Library/LaunchDaemons/boxwright.*.plist; cat /etc/boxwright/api/production/*; "
        f"cat {CREDENTIALS}/*; cat /var/log/boxwright/*/*"
    )
    assert secret not in "".join(map(str, seen))


def test_qdrant_is_there_with_a_key_and_comes_back(studio: Studio) -> None:
    """By the double of its program; its account alone reads its copy of the key."""
    asked = "curl --silent --noproxy '*' --output /dev/null --write-out '%{http_code}' http://127.0.0.1:6333"
    assert [studio.mac.sh(f"{asked}/{path}") for path in ("readyz", "collections")] == ["200", "401"]
    folder = "/var/run/boxwright-credentials/boxwright-qdrant"
    owned = studio.mac.sh(f"stat -f '%Lp %Su' {folder} {folder}/key.yaml").splitlines()
    assert owned == ["700 _boxwright-qdrant", "400 _boxwright-qdrant"]
    before = studio.pid("boxwright-qdrant")
    studio.mac.sh(f"kill -9 {before}; sed -i '' s/127.0.0.1/0.0.0.0/ /etc/boxwright/qdrant/config/config.yaml")
    eventually("another process", lambda: studio.pid("boxwright-qdrant") not in (0, before), 60)
    assert "qdrant: running" in studio.apply()
    assert studio.apply() == []
    assert "*:6333" not in studio.mac.sh("lsof -nP -iTCP -sTCP:LISTEN -Fn")


def test_killed_changed_and_restarted_it_comes_back(studio: Studio) -> None:
    key, before = made(studio), studio.pid(SERVICE)
    studio.mac.sh(f"kill -9 {before}; echo wrong >/etc/boxwright/api/production/peppers")
    eventually("another process", lambda: studio.pid(SERVICE) not in (0, before), 60)
    assert "api: production running" in studio.apply()
    assert studio.apply() == []
    assert studio.http("GET", "v1/models", key).status_code == 200


def test_verify_says_so_too(studio: Studio) -> None:
    found = json.loads(studio.run("verify", "--json").out)
    checks = [check for check in found["checks"] if check["role"] in ("api", "gateway", "qdrant")]
    assert [check for check in checks if check["outcome"] not in ("ok", "skipped")] == []
    for role in ("api", "qdrant"):
        assert [check for check in checks if check["role"] == role and check["outcome"] == "ok"]


def test_removed_and_removed_again(studio: Studio) -> None:
    removed = studio.run("remove", "--json").expect()
    assert removed.code == 0
    assert studio.pid(SERVICE) == 0
    roles = ("api", "qdrant")
    paths = " ".join(f"/etc/boxwright/{one} /opt/boxwright/{one} /Library/LaunchDaemons/*{one}*" for one in roles)
    left = studio.mac.sh(f"ls -d {CREDENTIALS} {paths}")
    assert "\n/" not in f"\n{left}".replace("\nls:", "")
    again = json.loads(studio.run("remove", "--json").expect().out)
    assert again["hosts"][studio.mac.name]["changed"] == []
