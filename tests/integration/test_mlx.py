"""MLX's own server on a box, with a tiny model: what clients get of it, what they do not, and what keeps it running."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_model
from kit import LIGHT, Box, Lab, eventually

from boxwright.artifacts import Wheel, requirements
from boxwright.lab import mirror, needed
from boxwright.lab.progress import Progress

pytestmark = pytest.mark.lab

CHAT = "v1/chat/completions"
HELLO = {"model": "local-llm", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}
CONTEXT = 512
# Of mlx-lm 0.32.1's wheel.
OLDER = "0b2dddbe3d4b9678aad3c18fec6ba20d25084497fe0aa67f3fee6abd156ee059"


def variables(seed: int = 1, **more: Any) -> dict[str, Any]:
    """The inference of the box."""
    return {"inference_engine": "mlx", "inference_models": [tiny_model.published(seed, context=CONTEXT, **more)]}


@pytest.fixture(scope="module")
def _box(lab: Lab) -> Box:
    return lab.up("mlx", {**LIGHT, **variables()})


@pytest.fixture
def box(_box: Box) -> Box:
    """A box whose model is MLX's, converged."""
    _box.settle()
    return _box


@pytest.fixture
def unsettled(box: Box) -> Iterator[Box]:
    """The same, for a test that leaves it otherwise."""
    box.settled = False
    yield box
    box.apply().expect()


def ask(box: Box, body: dict[str, Any], path: str = CHAT, **arguments: Any) -> Any:
    """The answer to a question from outside, with credentials."""
    return box.http("POST", path, auth=box.credentials, json=body, **arguments)


def said(answer: Any) -> str:
    """What the model said."""
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_second_run_changes_nothing(box: Box) -> None:
    box.expect_settled()


def test_the_model_is_offered_under_its_public_name(box: Box) -> None:
    listed = box.http("GET", "v1/models", auth=box.credentials).json()
    assert [model["id"] for model in listed["data"]] == ["local-llm"]
    assert box.http("GET", "v1/models/local-llm", auth=box.credentials).json()["id"] == "local-llm"
    assert box.http("GET", "v1/models/other", auth=box.credentials).status_code == 404
    assert box.http("GET", "v1/models").status_code == 401


def test_it_answers(box: Box) -> None:
    answer = ask(box, HELLO)
    assert len(said(answer)) >= 12
    assert answer.json()["model"] == "local-llm"
    assert answer.json()["usage"]["completion_tokens"] == 12
    # Nothing random is asked for, so the same question has the same answer.
    assert said(ask(box, HELLO)) == said(answer)
    text = ask(box, {"model": "local-llm", "prompt": "Hello", "max_tokens": 4}, "v1/completions")
    assert text.json()["choices"][0]["text"]
    assert box.http("POST", CHAT, json=HELLO).status_code == 401


def test_it_streams(box: Box) -> None:
    with ask(box, {**HELLO, "stream": True, "stream_options": {"include_usage": True}}, stream=True) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines(decode_unicode=True) if "data: " in line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])
    assert text == said(ask(box, HELLO))
    assert len(events) > 4
    assert events[-1]["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"model": "/etc"}, 404),
        ({"model": "mlx-community/another"}, 404),
        ({"model": "default_model"}, 404),
        ({"adapters": "/var/lib/boxwright/models"}, 400),
        ({"draft_model": "/var/lib/boxwright/models"}, 400),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1"}}]}
                ]
            },
            400,
        ),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, 400),
        ({"logit_bias": {"100000": 1}}, 400),
        ({"seed": -1}, 400),
        ({"tools": 5}, 400),
        ({"messages": [{"role": "user", "content": "x " * CONTEXT}]}, 400),
    ],
)
def test_what_a_client_may_not_choose(box: Box, changed: dict[str, Any], status: int) -> None:
    before = box.pid("mlx")
    answer = ask(box, {**HELLO, **changed})
    assert (answer.status_code, "error" in answer.json()) == (status, True)
    assert box.pid("mlx") == before
    assert said(ask(box, HELLO))


def test_answers_end_where_the_context_does(box: Box) -> None:
    usage = ask(box, {**HELLO, "max_tokens": 100_000}).json()["usage"]
    assert usage["total_tokens"] == CONTEXT


def test_what_it_has_not_is_not_found(box: Box) -> None:
    assert ask(box, {"model": "local-llm", "input": "x"}, "v1/embeddings").status_code == 404
    assert ask(box, {"model": "local-llm", "input": "x"}, "v1/responses").status_code == 404


def test_only_the_gateway_speaks_of_origins(box: Box) -> None:
    origin = "https://page.example"
    inventory = box.with_variables("origins", gateway_cors_origins=[origin])
    box.settled = False
    assert "mlx: running" not in box.changes(inventory)
    answer = ask(box, HELLO, headers={"Origin": origin})
    assert answer.raw.headers.getlist("Access-Control-Allow-Origin") == [origin]
    # The engine itself says nothing: MLX's own server would welcome everybody.
    asked = f"curl -si -H 'Origin: {origin}' -d '{json.dumps(HELLO)}' http://127.0.0.1:8083/{CHAT}"
    assert "access-control" not in box.sh(asked).lower()
    box.settle()


def test_it_is_on_loopback_and_has_an_account_of_its_own(box: Box) -> None:
    assert box.sh("ss -Hltn | awk '$4 ~ /:8083$/ { print $4 }'").split() == ["127.0.0.1:8083"]
    assert box.sh(f"stat -c %U /proc/{box.pid('mlx')}").strip() == "mlx"
    box.run("boxwright", "verify").expect()


def test_a_killed_server_comes_back(box: Box) -> None:
    before = box.pid("mlx")
    box.sh(f"kill -9 {before}")
    eventually("the model answers again", lambda: box.restarted("mlx", before) and box.answers())
    assert said(ask(box, HELLO))
    box.expect_settled()


def test_drift_is_repaired(unsettled: Box) -> None:
    box = unsettled
    expected = said(ask(box, HELLO))
    model = box.sh('python3 -c \'import json; print(json.load(open("/etc/boxwright/mlx.json"))["model"])\'').strip()
    box.sh("sed -i 's/512/300/' /etc/boxwright/mlx.json && echo '# by hand' >>/opt/boxwright/mlx/server.py")
    # What the process was started with is what is put back, so nothing is restarted.
    assert set(box.changes()) == {"mlx: write the settings", "mlx: write the program"}
    box.sh(f"printf x | dd of={model}/model.safetensors bs=1 seek=400000 conv=notrunc status=none")
    assert box.changes() == ["inference: fetch model.safetensors"]
    # It was restarted in between, and has read what somebody wrote.
    box.sh("sed -i 's/512/300/' /etc/boxwright/mlx.json && systemctl restart mlx")
    assert box.changes() == ["mlx: write the settings", "mlx: running"]
    box.sh("systemctl disable --now mlx")
    assert box.changes() == ["mlx: running"]
    assert said(ask(box, HELLO)) == expected
    box.expect_settled()


def test_another_model_takes_its_place(unsettled: Box) -> None:
    box = unsettled
    before = said(ask(box, HELLO))
    other = box.with_variables("other", **variables(2, name="second"))
    assert "mlx: running" in box.changes(other)
    listed = box.http("GET", "v1/models", auth=box.credentials).json()
    assert [model["id"] for model in listed["data"]] == ["second"]
    assert said(ask(box, {**HELLO, "model": "second"})) != before
    box.expect_settled(other)


def refused(box: Box, label: str, changed: dict[str, Any]) -> str:
    """A run with another model that must fail; what it said. The old one goes on serving, in the same process."""
    before, pid = said(ask(box, HELLO)), box.pid("mlx")
    done = box.apply(inventory=box.with_variables(label, **changed)).expect(1)
    assert box.pid("mlx") == pid
    assert said(ask(box, HELLO)) == before
    return done.text


def test_a_file_with_a_wrong_checksum_is_not_served(unsettled: Box) -> None:
    entry = tiny_model.published(3, context=CONTEXT)
    for file in entry["files"]:
        if file["name"] == "tokenizer.json":
            file["sha256"] = "0" * 64
    text = refused(unsettled, "checksum", {"inference_models": [entry]})
    assert "tokenizer.json" in text
    assert "0" * 64 in text


def test_a_folder_that_is_not_complete_is_not_served(unsettled: Box) -> None:
    box = unsettled
    entry = tiny_model.published(3, context=CONTEXT)
    entry["files"] = [file for file in entry["files"] if file["name"] != "tokenizer_config.json"]
    text = refused(box, "incomplete", {"inference_models": [entry]})
    assert "it has no tokenizer_config.json" in text
    # A folder that somebody copied, and whose copy ended early.
    model = box.sh('python3 -c \'import json; print(json.load(open("/etc/boxwright/mlx.json"))["model"])\'').strip()
    box.sh(f"rm -rf /srv/copy && cp -r {model} /srv/copy && truncate -s 300000 /srv/copy/model.safetensors")
    entry = {"name": "local-llm", "path": "/srv/copy", "context": CONTEXT}
    assert "model.safetensors is incomplete" in refused(box, "copy", {"inference_models": [entry]})
    # Nobody but root may read it.
    box.sh(f"cp {model}/model.safetensors /srv/copy/ && chmod 700 /srv/copy")
    assert "/srv/copy" in refused(box, "copy", {"inference_models": [entry]})
    box.sh("chmod 755 /srv/copy")
    box.apply(inventory=box.with_variables("copy", inference_models=[entry])).expect()
    assert said(ask(box, HELLO))


def test_a_model_that_cannot_be_loaded_is_taken_back(unsettled: Box) -> None:
    """Its files are whole, but not of one model: only MLX itself finds that out."""
    box = unsettled
    model = box.sh('python3 -c \'import json; print(json.load(open("/etc/boxwright/mlx.json"))["model"])\'').strip()
    expected = said(ask(box, HELLO))
    layers = 's/"num_hidden_layers": 2/"num_hidden_layers": 3/'
    box.sh(f"rm -rf /srv/odd && cp -r {model} /srv/odd && sed -i '{layers}' /srv/odd/config.json")
    entry = {"name": "local-llm", "path": "/srv/odd", "context": CONTEXT}
    done = box.apply(inventory=box.with_variables("odd", inference_models=[entry])).expect(1)
    assert "model.layers.2" in done.text
    eventually("the old model answers", box.answers)
    assert said(ask(box, HELLO)) == expected


def test_a_server_that_hangs_is_started_anew(box: Box) -> None:
    box.expect_new_process_when_it_hangs("mlx")
    box.expect_settled()


def test_numbers_for_prometheus_are_on_the_box_alone(box: Box) -> None:
    def numbers() -> dict[str, float]:
        lines = box.sh("curl --silent --fail http://127.0.0.1:8083/metrics").splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}

    said(ask(box, HELLO))
    before = numbers()
    said(ask(box, HELLO))
    assert ask(box, {**HELLO, "model": "another"}).status_code == 404
    answered, refused = 'mlx_requests_total{status="200"}', 'mlx_requests_total{status="404"}'
    eventually("the refused one is counted", lambda: numbers().get(refused, 0) == before.get(refused, 0) + 1)
    # At least: the watchdog asks as well.
    eventually("the answered one is counted", lambda: numbers()[answered] >= before[answered] + 1)
    assert numbers()["mlx_request_seconds_total"] > before["mlx_request_seconds_total"]
    assert box.http("GET", "metrics", auth=box.credentials).status_code == 404


def test_an_older_version_and_back(unsettled: Box) -> None:
    box = unsettled
    text = needed.requirements_of("mlx").read_text()
    (line,) = (part for part in text.split("\n") if part.startswith("mlx-lm=="))
    entry = text[text.index(line) :].split("\nnumpy")[0]
    older = Wheel(name="mlx-lm", version="0.32.1", sha256={"any": OLDER}, licence="MIT")
    mirror.fill_wheels(Progress(io.StringIO(), plain=True), lambda: [older])
    inventory = box.with_variables("older", mlx_requirements=text.replace(entry, requirements([older]).strip()))
    version = (
        f"curl -s -d '{json.dumps(HELLO)}' http://127.0.0.1:8083/{CHAT} | grep -o '\"system_fingerprint\": \"[0-9.]*'"
    )
    assert box.sh(version).strip().endswith('"0.32.2')
    assert {"mlx: install the server", "mlx: running", "mlx: remove older versions"} <= set(box.changes(inventory))
    assert box.sh(version).strip().endswith('"0.32.1')
    box.expect_settled(inventory)
    assert "mlx: running" in box.changes()
    assert box.sh(version).strip().endswith('"0.32.2')


def test_it_is_there_after_a_reboot(box: Box) -> None:
    box.container.restart()
    eventually("the box booted", lambda: box.succeeds("systemctl is-system-running | grep -E 'running|degraded'"), 120)
    eventually("the model answers", box.answers, 120)
    box.expect_settled()


def test_another_engine_takes_its_place_and_it_comes_back(unsettled: Box) -> None:
    box = unsettled
    none = box.with_variables("none", inference_engine="none")
    assert "mlx: stop and remove the service" in box.changes(none)
    assert not box.succeeds("systemctl cat mlx || getent passwd mlx || ls /opt/boxwright/mlx /etc/boxwright/mlx.json*")
    # What was fetched stays.
    assert box.succeeds("ls -d /var/lib/boxwright/models/*tiny-mlx")
    box.expect_settled(none)
    box.apply().expect()
    assert said(ask(box, HELLO))


def test_removal_takes_all_of_it_and_a_second_one_nothing(unsettled: Box) -> None:
    box = unsettled

    def removed(*options: str) -> list[str]:
        changed: list[str] = (
            box.run("boxwright", "remove", "--json", *options).expect().json["hosts"][box.host]["changed"]
        )
        return changed

    assert {"mlx: stop and remove the service", "mlx: remove the server", "mlx: remove the account"} <= set(removed())
    assert not box.succeeds("systemctl cat mlx || getent passwd mlx || ls /opt/boxwright/mlx /etc/boxwright/mlx.json")
    assert removed() == []
    assert box.succeeds("ls -d /var/lib/boxwright/models/*tiny-mlx")
    assert "inference: remove the models" in removed("--purge")
    assert removed("--purge") == []
