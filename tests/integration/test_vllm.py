"""vLLM's place on a box, held by its double: how it is started, who has its key, and what of it cannot be reached.

That vLLM itself computes is not shown here; tests/doubles/vllm says what the double follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_model
from kit import LIGHT, MODEL_ENTRY, Box, Lab, eventually

from tests.doubles.vllm import WORDS
from tests.doubles.vllm.wheel import install

pytestmark = pytest.mark.lab

CHAT = "v1/chat/completions"
HELLO = {"model": "local-llm", "messages": [{"role": "user", "content": "Hello"}]}
SAID = "".join(WORDS)
# What vLLM answers without a key, or would under other settings.
OPEN = (
    *("invocations", "pooling", "classify", "score", "rerank", "tokenize", "detokenize", "pause", "resume"),
    *("update_weights", "ping", "version", "load", "metrics", "docs", "openapi.json", "sleep", "collective_rpc"),
    *("v2/x", "inference/x", "v1/../pause", "v1/%2e%2e/pause", "v1//../pause"),
)


def variables(**more: Any) -> dict[str, Any]:
    """The inference of the box."""
    return {
        "inference_engine": "vllm",
        "inference_models": [tiny_model.published(context=512)],
        "vllm_device": "cpu",
        "vllm_requirements": install(),
        **more,
    }


@pytest.fixture(scope="module")
def _box(lab: Lab) -> Box:
    return lab.up("vllm", {**LIGHT, **variables()})


@pytest.fixture
def box(_box: Box) -> Box:
    """A box whose engine is vLLM, converged."""
    _box.settle()
    return _box


@pytest.fixture
def unsettled(box: Box) -> Iterator[Box]:
    """The same, for a test that leaves it otherwise."""
    box.settled = False
    yield box
    box.apply().expect()


def ask(box: Box, path: str = CHAT, body: Any = HELLO, **arguments: Any) -> Any:
    """The answer to a question from outside, with credentials."""
    return box.http("POST", path, auth=box.credentials, json=body, **arguments)


def said(answer: Any) -> str:
    """What the model said."""
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def local(box: Box, path: str, *options: str) -> int:
    """The status of an answer of vLLM to somebody on the box."""
    words = " ".join(options)
    return int(box.sh(f"curl -s -o /dev/null -w '%{{http_code}}' {words} http://127.0.0.1:8000/{path}"))


def test_a_second_run_changes_nothing(box: Box) -> None:
    box.expect_settled()


def test_it_answers_through_the_gateway(box: Box) -> None:
    listed = box.http("GET", "v1/models", auth=box.credentials).json()["data"]
    assert [(model["id"], model["max_model_len"]) for model in listed] == [("local-llm", 512)]
    assert said(ask(box)) == SAID
    with ask(box, body={**HELLO, "stream": True}, stream=True) as answer:
        lines = [line for line in answer.iter_lines(decode_unicode=True) if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == SAID
    assert ask(box, body={**HELLO, "model": "other"}).status_code == 404


def test_nobody_is_admitted_without_credentials(box: Box) -> None:
    assert box.http("GET", "v1/models").status_code == 401
    assert box.http("POST", CHAT, json=HELLO).status_code == 401
    # The engine's own key is none of the door's.
    key = {"Authorization": f"Bearer {box.secrets['vllm_api_key']}"}
    assert box.http("POST", CHAT, json=HELLO, headers=key).status_code == 401


@pytest.mark.parametrize("server", ["caddy", "nginx"])
def test_what_is_open_in_it_cannot_be_reached(unsettled: Box, server: str) -> None:
    box = unsettled
    box.apply(inventory=box.with_variables(server, gateway_server=server)).expect()
    assert said(ask(box)) == SAID
    assert box.http("POST", CHAT, json=HELLO).status_code == 401
    # They are open indeed, to whoever reaches the port.
    assert [local(box, path, "-X POST") for path in ("pause", "invocations", "tokenize")] == [200, 200, 200]
    for path in OPEN:
        for method in ("GET", "POST"):
            for auth in (box.credentials, None):
                answer = box.http(method, path, auth=auth)
                assert answer.status_code in (400, 401, 404), f"{method} {path}"
                assert '"path"' not in answer.text
                assert "vllm:" not in answer.text
    assert (local(box, "docs"), local(box, "sleep", "-X POST")) == (404, 404)


def test_the_key_is_the_gateways_alone(box: Box) -> None:
    key = box.secrets["vllm_api_key"]
    assert (local(box, "v1/models"), local(box, "v1/models", "-H", f"'Authorization: Bearer {key}'")) == (401, 200)
    assert key not in box.sh("ps -eo args")
    assert key not in box.sh("systemctl show vllm caddy; systemctl cat vllm; journalctl --no-pager -u vllm -u caddy")
    readable = f"find /etc /opt /run /var/lib /var/log -xdev -type f -perm /004 -exec grep -lF {key} {{}} +"
    assert box.sh(readable, check=False).strip() == ""
    holders = box.sh(f"grep -rlsF {key} /etc").split()
    # The gateway keeps the configuration with which it last answered.
    assert {path.removesuffix(".good") for path in holders} == {
        "/etc/boxwright/caddy/Caddyfile",
        "/etc/boxwright/vllm.env",
        "/etc/boxwright/watchdog.json",
    }


def test_another_key_is_known_to_both_sides(unsettled: Box) -> None:
    box = unsettled
    key = "another-key-of-the-tests-0123456789"
    changed = box.changes(box.with_variables("key", vllm_api_key=key))
    assert {"vllm: write the key", "vllm: running", "gateway: write the Caddyfile"} <= set(changed)
    assert local(box, "v1/models", "-H", f"'Authorization: Bearer {key}'") == 200
    assert said(ask(box)) == SAID


def test_how_it_is_started(box: Box) -> None:
    arguments = box.sh(f"tr '\\0' ' ' </proc/{box.pid('vllm')}/cmdline")
    assert "serve --config /etc/boxwright/vllm.yaml --host 127.0.0.1 --port 8000 " in arguments
    assert '"max_model_len": 512' in box.sh(
        "set -a; . /etc/boxwright/vllm.env; "
        'curl -s -H "Authorization: Bearer $VLLM_API_KEY" http://127.0.0.1:8000/v1/models'
    )
    assert "--disable-fastapi-docs" in arguments
    assert box.sh("ss -Hltn | awk '$4 ~ /:8000$/ { print $4 }'").split() == ["127.0.0.1:8000"]
    environment = box.sh(f"tr '\\0' '\\n' </proc/{box.pid('vllm')}/environ")
    assert "VLLM_SERVER_DEV_MODE" not in environment
    assert box.sh(f"stat -c %U /proc/{box.pid('vllm')}").strip() == "vllm"
    box.run("boxwright", "verify").expect()


def test_the_watchdog_has_the_key_too(box: Box) -> None:
    """Refused for want of it, the watchdog would restart the engine again and again."""
    asked = "journalctl --no-pager --output cat -u vllm | grep -c 'POST /v1/chat/completions HTTP/1.1\" 200'"
    before, pid = int(box.sh(asked, check=False) or 0), box.pid("vllm")
    eventually("the watchdog asks and is answered", lambda: int(box.sh(asked, check=False) or 0) > before, 90)
    assert box.pid("vllm") == pid


def test_a_killed_server_comes_back(box: Box) -> None:
    before = box.pid("vllm")
    box.sh(f"kill -9 {before}")
    eventually("the engine answers again", lambda: box.restarted("vllm", before) and box.answers())
    box.expect_settled()


def test_a_server_that_hangs_is_started_anew(box: Box) -> None:
    box.expect_new_process_when_it_hangs("vllm")
    box.expect_settled()


def test_drift_is_repaired(unsettled: Box) -> None:
    box = unsettled
    box.sh("chmod 644 /etc/boxwright/vllm.env")
    assert box.changes() == ["vllm: write the key"]
    assert box.sh("stat -c %a /etc/boxwright/vllm.env").strip() == "600"
    unit = "/etc/systemd/system/vllm.service"
    box.sh(f"sed -i 's/ --host 127.0.0.1//' {unit} && systemctl daemon-reload && systemctl restart vllm")
    eventually("it listens on all addresses", lambda: "0.0.0.0:8000" in box.sh("ss -Hltn"))
    assert set(box.changes()) == {"vllm: write the unit", "vllm: running"}
    assert "0.0.0.0:8000" not in box.sh("ss -Hltn")
    box.expect_settled()


def test_another_version_and_back(unsettled: Box) -> None:
    box = unsettled
    older = box.with_variables("older", vllm_requirements=install("0.32.0"))
    assert {"vllm: install vLLM", "vllm: running", "vllm: remove older versions"} <= set(box.changes(older))
    version = "curl -s http://127.0.0.1:8000/version"
    assert '"0.32.0"' in box.sh(version)
    box.expect_settled(older)
    assert {"vllm: install vLLM", "vllm: running"} <= set(box.changes())
    assert '"0.33.0"' in box.sh(version)
    # A package that is not the named one is not installed, and the old one goes on.
    pid = box.pid("vllm")
    text = f"vllm==0.33.0 --hash=sha256:{'0' * 64}\n"
    done = box.apply(inventory=box.with_variables("wrong", vllm_requirements=text)).expect(1)
    assert "vllm==0.33.0" in done.text
    assert box.pid("vllm") == pid
    assert said(ask(box)) == SAID


@pytest.mark.parametrize("name", ["local-llm", "another-name"])
def test_a_model_that_it_cannot_load_is_taken_back(unsettled: Box, name: str) -> None:
    """Also when it has another name, which the model before does not know."""
    box = unsettled
    unknown = '{"architectures": ["NoSuchForCausalLM"]}'
    box.sh(f"mkdir -p /srv/odd && cd /srv/odd && echo '{unknown}' >config.json && touch model.safetensors")
    inventory = box.with_variables("odd", inference_models=[{"name": name, "path": "/srv/odd"}])
    done = box.apply(inventory=inventory).expect(1)
    assert "are not supported" in done.text
    assert "runs again with its last good configuration" in done.text
    assert said(ask(box)) == SAID
    box.sh("rm -r /srv/odd")


def test_an_argument_with_which_it_does_not_start_is_taken_back(unsettled: Box) -> None:
    box = unsettled
    done = box.apply(inventory=box.with_variables("argument", vllm_arguments=["--no-such-argument"])).expect(1)
    assert "--no-such-argument" in done.text
    assert "runs again with its last good configuration" in done.text
    assert "--no-such-argument" not in box.sh("systemctl show --property=ExecStart vllm")
    assert said(ask(box)) == SAID
    # By hand nothing needs to be done: what is declared again is what runs.
    assert box.changes() == []


def test_without_a_graphics_card_it_is_refused_and_nothing_changes(box: Box) -> None:
    pid = box.pid("vllm")
    for device, missing in (("cuda", "/dev/nvidiactl"), ("rocm", "/dev/kfd")):
        done = box.apply(inventory=box.with_variables(device, vllm_device=device)).expect(2)
        assert missing in done.text
        assert "`vllm_device: cpu`" in done.text
    assert box.pid("vllm") == pid
    box.expect_settled()


def test_beside_another_engine_it_has_a_path_of_its_own(unsettled: Box) -> None:
    box = unsettled
    models = [MODEL_ENTRY, tiny_model.published(name="second", engine="vllm")]
    both = box.with_variables("both", inference_engine="llamacpp", inference_models=models)
    box.apply(inventory=both).expect()
    assert said(ask(box, f"vllm/{CHAT}", {**HELLO, "model": "second"})) == SAID
    assert said(ask(box, body={**HELLO, "max_tokens": 4})) != SAID
    assert box.http("POST", f"vllm/{CHAT}", json=HELLO).status_code == 401
    for path in ("vllm/pause", "vllm/invocations", "vllm/tokenize", "vllm/metrics", "vllm/v2/x"):
        assert ask(box, path).status_code == 404
    box.expect_settled(both)


def test_it_is_there_after_a_reboot(box: Box) -> None:
    box.container.restart()
    eventually("the box booted", lambda: box.succeeds("systemctl is-system-running | grep -E 'running|degraded'"), 120)
    eventually("the engine answers", box.answers, 120)
    box.expect_settled()


def test_removal_takes_all_of_it_and_a_second_one_nothing(unsettled: Box) -> None:
    box = unsettled

    def removed(*options: str) -> list[str]:
        done = box.run("boxwright", "remove", "--json", *options).expect()
        changed: list[str] = done.json["hosts"][box.host]["changed"]
        return changed

    assert {"vllm: stop and remove the service", "vllm: remove the program", "vllm: remove the settings"} <= set(
        removed()
    )
    left = "systemctl cat vllm || getent passwd vllm || ls /opt/boxwright/vllm /etc/boxwright/vllm.env /var/lib/vllm"
    assert not box.succeeds(left)
    assert removed() == []
