"""Models and engines on a box: embeddings, pruning, changing over, and the watchdog over an engine that hangs."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest
from kit import LIGHT, MODEL_ENTRY, Box, Lab, eventually

from boxwright.artifacts import Wheel, requirements
from boxwright.lab import mirror
from boxwright.lab.progress import Progress

pytestmark = pytest.mark.lab

EMBEDDING = {**MODEL_ENTRY, "name": "embedder", "kind": "embedding"}
MODELS = "/var/lib/boxwright/models"
# Of the wheel of xllamacpp 2026.9.11063 for x86_64, as PyPI tells it.
OLDER = "329ac1478b66be40d8338d15272bcd9aebfe09834ca4daf7813cc2c8c1bdad90"


@pytest.fixture(scope="module")
def box(lab: Lab) -> Box:
    """A box with the gateway and llama.cpp."""
    box = lab.up("inference", LIGHT)
    box.apply().expect()
    return box


def embedded(box: Box) -> Any:
    return box.http(
        "POST", "v1/embeddings", auth=box.credentials, json={"model": "embedder", "input": ["One.", "Two."]}
    )


def test_embeddings_have_a_server_of_their_own(box: Box) -> None:
    """It comes without a restart of the other one, and goes again."""
    chat = box.pid("llamacpp")
    both = box.with_variables("embeddings", inference_models=[MODEL_ENTRY, EMBEDDING])
    box.apply(inventory=both).expect()
    assert box.changes(both) == []
    answer = embedded(box)
    assert answer.status_code == 200
    vectors = [row["embedding"] for row in answer.json()["data"]]
    assert [len(vector) for vector in vectors] == [576, 576]
    assert vectors[0] != vectors[1]
    assert box.answers()
    assert box.http("POST", "v1/embeddings", json={"input": "One."}).status_code == 401
    assert box.pid("llamacpp") == chat
    done = box.run("boxwright", "verify", inventory=both).expect()
    assert "The embedding model answers" in done.text

    box.apply().expect()
    assert box.changes() == []
    assert not box.succeeds("systemctl cat llamacpp-embedding")
    assert not box.succeeds("ss -Hltn | grep -E ':8082 '")
    assert box.pid("llamacpp") == chat


def test_a_model_that_is_on_the_box_already(box: Box) -> None:
    """It is served from where it is, and is not touched; without it nothing is changed."""
    file = box.sh(f"ls {MODELS}/*.gguf").strip()
    box.sh(f"install -D -m 0644 {file} /srv/own/own.gguf")
    own = {"name": "own", "path": "/srv/own/own.gguf", "context": 1024}
    inventory = box.with_variables("own", inference_models=[own], inference_prune=True)
    box.apply(inventory=inventory).expect()
    assert box.changes(inventory) == []
    assert [row["id"] for row in box.http("GET", "v1/models", auth=box.credentials).json()["data"]] == ["own"]
    # What was fetched for the other model is gone, as was asked.
    assert box.sh(f"ls -A {MODELS}") == ""
    missing = box.with_variables("missing", inference_models=[{**own, "path": "/srv/own/missing.gguf"}])
    done = box.apply(inventory=missing)
    assert done.code == 2
    assert "BW116" in done.text
    assert "/srv/own/missing.gguf does not exist" in done.text
    box.apply().expect()
    assert box.changes() == []
    assert box.succeeds("test -e /srv/own/own.gguf")


def test_what_cannot_be_served_leaves_the_old_model_in_service(box: Box) -> None:
    """A file that is no model and a context that is too long are seen before the engine is touched; a model that fails
    only when it is loaded is taken back."""
    served = box.pid("llamacpp")
    file = box.sh(f"ls {MODELS}/*.gguf").strip()
    box.sh(
        "mkdir -p /srv/own && head -c 100000 /dev/urandom >/srv/own/noise.gguf"
        f" && head -c 50000000 {file} >/srv/own/half.gguf"
    )
    for model, said in (
        ({"name": "noise", "path": "/srv/own/noise.gguf"}, "/srv/own/noise.gguf is not a GGUF file"),
        ({**MODEL_ENTRY, "context": 8193}, "8193 tokens is longer than that of the model, which is 8192"),
    ):
        done = box.apply(inventory=box.with_variables("unfit", inference_models=[model]))
        assert done.code == 1
        assert said in done.text
        assert box.pid("llamacpp") == served
        assert box.answers()
    # Of another architecture than any that the engine knows, as a model has that is newer than the engine.
    box.sh(f"LC_ALL=C sed '0,/llama/s//llamb/' {file} >/srv/own/future.gguf")
    for name, said in (("half", "llama.cpp could not serve"), ("future", "unknown model architecture: 'llamb'")):
        unfit = box.with_variables("unfit", inference_models=[{"name": name, "path": f"/srv/own/{name}.gguf"}])
        done = box.apply(inventory=unfit)
        assert done.code == 1
        assert said in done.text
        assert "Traceback" not in done.text
        assert "runs again with its last good configuration" in done.text
        offered = box.http("GET", "v1/models", auth=box.credentials).json()["data"]
        assert [row["id"] for row in offered] == ["local-llm"]
    box.apply().expect()
    assert box.changes() == []
    assert box.answers()
    box.sh("rm -r /srv/own")


def test_an_older_version_and_back(box: Box) -> None:
    older = Wheel(name="xllamacpp", version="2026.9.11063", sha256={"x86_64": OLDER}, licence="MIT")
    mirror.fill_wheels(Progress(io.StringIO(), plain=True), lambda: [older])
    inventory = box.with_variables("older", llamacpp_requirements=requirements([older]))
    installed = "ls -d /opt/boxwright/llamacpp/*/lib/python3*/site-packages/xllamacpp-*.dist-info"
    newer = box.sh(installed)
    assert {"llamacpp: install the server", "llamacpp: running", "llamacpp: remove older versions"} <= set(
        box.changes(inventory)
    )
    assert "xllamacpp-2026.9.11063" in box.sh(installed)
    assert box.answers()
    box.expect_settled(inventory)
    box.settled = False
    # One that is not the named one is not installed, and what serves goes on.
    before = box.pid("llamacpp")
    wrong = box.with_variables("wrong", llamacpp_requirements=f"xllamacpp==2026.9.11063 --hash=sha256:{'0' * 64}\n")
    assert "xllamacpp==2026.9.11063" in box.apply(inventory=wrong).expect(1).text
    assert box.pid("llamacpp") == before
    assert "llamacpp: running" in box.changes()
    assert box.sh(installed) == newer
    assert box.answers()
    box.expect_settled()


def test_no_engine_at_all(box: Box) -> None:
    """What was there is stopped and taken away, the gateway offers no /v1, and back again. Models' files stay."""
    none = box.with_variables("none", inference_engine="none")
    box.apply(inventory=none).expect()
    assert box.changes(none) == []
    assert not box.succeeds("systemctl cat llamacpp || systemctl cat boxwright-watchdog")
    assert not box.succeeds("ss -Hltn | grep -E ':8081 '")
    assert box.http("GET", "v1/models", auth=box.credentials).status_code == 404
    assert box.succeeds(f"ls {MODELS}/*.gguf")
    box.run("boxwright", "verify", inventory=none).expect()
    box.apply().expect()
    assert box.changes() == []
    assert box.answers()


def test_an_engine_that_hangs_is_restarted(box: Box) -> None:
    """A process that is stopped goes on running for systemd. It is back within a minute, and the journal says why."""
    before = box.pid("llamacpp")
    box.sh(f"kill -STOP {before}")
    began = time.monotonic()
    eventually("another process serves", lambda: box.restarted("llamacpp", before) and box.answers(), 60)
    assert time.monotonic() - began < 60
    said = box.said_by_watchdog()
    assert "llamacpp hangs, restart number 1: http://127.0.0.1:8081/health did not answer within 5 s" in said
    assert box.changes() == []


def test_an_engine_that_accepts_and_never_answers_is_restarted(box: Box) -> None:
    """Its health page may even say that all is well: a program of ours takes the engine's place and does just that."""
    silent = "/etc/systemd/system/llamacpp.service.d/silent.conf"
    program = (
        "import http.server,time\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers(); "
        "self.wfile.write(b'ok')\n"
        "    def do_POST(self):\n"
        "        time.sleep(3600)\n"
        "    def log_message(self, *a): pass\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', 8081), H).serve_forever()\n"
    )
    box.settled = False
    box.put("/opt/boxwright/llamacpp/silent.py", program)
    box.sh("systemctl restart boxwright-watchdog; mkdir -p $(dirname " + silent + ")")
    box.put(
        silent, "[Service]\nExecStartPost=\nExecStart=\nExecStart=/usr/bin/python3 /opt/boxwright/llamacpp/silent.py\n"
    )
    box.sh("systemctl daemon-reload; systemctl restart llamacpp")
    before = box.pid("llamacpp")
    box.sh(f"rm -r $(dirname {silent}); systemctl daemon-reload")
    eventually("the real engine serves", lambda: box.restarted("llamacpp", before) and box.answers(), 75)
    assert "v1/chat/completions did not answer within 10 s" in box.said_by_watchdog()
    box.sh("rm /opt/boxwright/llamacpp/silent.py")
    box.expect_settled()


def test_an_engine_that_is_merely_busy_goes_on(box: Box) -> None:
    """All its slots are taken for longer than a question may take, so that the watchdog's own waits in vain."""
    box.settled = False
    hangs = box.said_by_watchdog().count("llamacpp hangs")
    before = box.pid("llamacpp")
    box.sh("systemctl restart boxwright-watchdog")
    question = json.dumps({"prompt": "Once upon a time", "n_predict": 8000, "ignore_eos": True})
    ask = f"curl -s -m 25 -o /dev/null -d '{question}' http://127.0.0.1:8081/completion"
    box.sh(f"for i in 1 2 3 4; do {ask} & done; wait; true")
    assert box.pid("llamacpp") == before
    assert box.said_by_watchdog().count("llamacpp hangs") == hangs
    box.expect_settled()


def test_the_watchdog_goes_when_it_is_not_wanted(box: Box) -> None:
    without = box.with_variables("unwatched", inference_watchdog=False)
    assert box.changes(without) == [
        "inference: stop and remove the watchdog",
        "inference: remove the watchdog",
        "inference: remove what is watched",
    ]
    assert box.changes(without) == []
    assert not box.succeeds("systemctl cat boxwright-watchdog || ls /usr/local/lib/boxwright/watchdog.py")
    assert "inference: watchdog running" in box.changes()
    box.expect_settled()
