"""The engines on the double of a Mac: under launchd, with accounts and paths of a Mac, asked on its loopback.

The double is Linux underneath: llama.cpp, Ollama and MLX are the real programs as Linux has them, and compute on the
processor. LM Studio is its own double.
"""

from __future__ import annotations

import functools
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from kit import MODEL_ENTRY, Done, Lab, eventually
from mac_mirror import FILES, PYTHON, archive_of_ollama, bundle_of_lm_studio, packages_of_mlx

from boxwright.lab import engine, mirror, needed, network, wheels
from boxwright.lab.locks import locked
from boxwright.lab.progress import Progress
from boxwright.paths import cache_dir
from tests.doubles.macos import MacDouble

pytestmark = pytest.mark.lab

DEPLOY = Path(__file__).parent / "engines_deploy.py"
PORTS = {"llamacpp": 8081, "ollama": 11434, "mlx": 8083, "lmstudio": 1234}


@dataclass
class Mac:
    """The Mac, and runs of `engines_deploy.py` on it."""

    lab: Lab
    double: MacDouble
    variables: dict[str, Any]
    # What it was last given.
    given: dict[str, Any] = field(default_factory=dict)

    def run(self, data: dict[str, Any] | None = None, /, **more: Any) -> Done:
        """A run by boxwright's own runner; its result is JSON."""
        self.given = more
        folder = self.lab.folder / "mac"
        folder.mkdir(exist_ok=True)
        inventory = self.double.inventory(folder, **{**self.variables, **more})
        program = (
            "import json, sys; from pathlib import Path; from boxwright.errors import Refused; "
            "from boxwright.runner import run; "
            "result = run(Path(sys.argv[1]), inventory=Path(sys.argv[2]), data=json.loads(sys.argv[3])); "
            "print(json.dumps(result.to_json())); sys.exit(result.exit_code)"
        )
        return self.lab.run(sys.executable, "-c", program, str(DEPLOY), str(inventory), json.dumps(data or {}))

    def changes(self, data: dict[str, Any] | None = None, /, **more: Any) -> list[str]:
        """The names of what such a run changed; it must succeed."""
        found: list[str] = self.run(data, **more).expect().json["hosts"]["mac"]["changed"]
        return found

    def settled(self) -> None:
        """Another run as the last one changes nothing."""
        assert self.changes(**self.given) == []

    def settled_but_for_waiting(self) -> None:
        """The same after launchd itself has started something: the next run waits until it is ready, and says so."""
        assert not [name for name in self.changes(**self.given) if not name.endswith(" running")]
        self.settled()

    def sh(self, text: str) -> str:
        """What a command of root's prints."""
        return self.double.sh(text).strip()

    def pid(self, service: str) -> int:
        """The main process of a service; 0 where there is none."""
        said = self.sh(f"launchctl print system/boxwright.{service}")
        return next((int(line[7:]) for line in said.splitlines() if line.startswith("\tpid = ")), 0)

    def owner(self, service: str) -> str:
        """The account of that process."""
        return self.sh(f"ps -ww -o user= -p {self.pid(service)}")

    def chat(self, port: int, model: str = "local-llm") -> bool:
        """Whether a question is answered with text."""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4})
        kind = "Content-Type: application/json"
        said = self.sh(f"curl -s -m 60 -H '{kind}' -d '{body}' http://127.0.0.1:{port}/v1/chat/completions")
        try:
            return bool(json.loads(said)["usage"]["completion_tokens"])
        except (ValueError, KeyError):
            return False

    def comes_back(self, service: str, port: int, former: int, seconds: float = 300) -> None:
        """Returns when another process of the service answers."""
        eventually(
            f"{service} comes back: {self.sh(f'tail -n 5 /var/log/boxwright/{service}/{service}.log')}",
            lambda: self.pid(service) not in (0, former) and self.chat(port),
            seconds,
        )


@pytest.fixture(scope="module")
def published() -> Iterator[str]:
    """The address at which a Mac finds what publishers have: the lab's mirror, served from here."""
    with Progress(plain=True) as progress:
        mirror.fill_wheels(progress, needed.wheels)
        with locked(cache_dir() / "lab" / "model.lock"):
            wheels.fill_model(FILES, mirror.mirror_dir() / "partial-model")
        client = engine.ensure(progress)
    gateway = str(network.subnet_of(network.ensure(client))[1])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer((gateway, 0), functools.partial(Quiet, directory=str(FILES)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{gateway}:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def mac(lab: Lab, published: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mac]:
    formula = tmp_path_factory.mktemp("formula") / "python"
    (formula / "bin").mkdir(parents=True)
    # That of the Linux below: pip takes wheels for it.
    (formula / "bin" / "python3.13").symlink_to("/usr/libexec/double/linux/bin/python3.13")
    with MacDouble(full_disk_access=True, throttle=2) as double:
        double.formula("python@3.13", "3.13.5", formula)
        variables = {"gateway_names": ["llm.example"], "mirror_url": published, "inference_models": [MODEL_ENTRY]}
        yield Mac(lab, double, variables)


@pytest.fixture
def llamacpp(mac: Mac) -> Mac:
    """With llama.cpp running, as a run has left it."""
    mac.run().expect()
    return mac


# llama.cpp


def test_llama_cpp_serves_under_launchd(llamacpp: Mac) -> None:
    assert llamacpp.chat(8081)
    assert llamacpp.owner("llamacpp") == "_llamacpp"
    assert llamacpp.sh("lsof -nP -iTCP:8081 -sTCP:LISTEN -Fn | grep '^n'") == "n127.0.0.1:8081"
    assert llamacpp.sh("stat -f '%Su:%Sg %Lp' /Library/LaunchDaemons/boxwright.llamacpp.plist") == "root:wheel 644"
    llamacpp.settled()


def test_the_checks_of_the_roles_hold(llamacpp: Mac) -> None:
    """Read back by other tools. The double has no graphics processor and no gateway, and its lsof no mapped files."""
    inventory = llamacpp.double.inventory(llamacpp.lab.folder / "mac", **llamacpp.variables)
    words = ["--boxwright-inventory", str(inventory), "-q", "-p", "no:cacheprovider"]
    words += ["-k", "not graphics and not embeddings and not declared_one"]
    paths = ["roles/inference/checks.py", "roles/llamacpp/checks.py"]
    done = llamacpp.lab.run(sys.executable, "-m", "pytest", *words, *paths).expect()
    assert " passed" in done.out
    assert "failed" not in done.out


def test_an_engine_that_ends_is_started_again(llamacpp: Mac) -> None:
    former = llamacpp.pid("llamacpp")
    llamacpp.sh(f"kill -9 {former}")
    llamacpp.comes_back("llamacpp", 8081, former)
    llamacpp.settled_but_for_waiting()


def test_what_was_changed_by_hand_is_put_right(llamacpp: Mac) -> None:
    former = llamacpp.pid("llamacpp")
    llamacpp.sh("echo '# by hand' >>/opt/boxwright/llamacpp/server.py; chmod 666 /etc/boxwright/llamacpp.json")
    assert llamacpp.changes() == ["llamacpp: write the program", "llamacpp: write the settings"]
    # It was started with what is there again.
    assert llamacpp.pid("llamacpp") == former
    llamacpp.sh("launchctl bootout system/boxwright.llamacpp")
    assert llamacpp.changes() == ["llamacpp: running"]
    assert llamacpp.chat(8081)
    llamacpp.settled()


def test_a_context_that_the_model_has_not_leaves_the_server_alone(llamacpp: Mac) -> None:
    former = llamacpp.pid("llamacpp")
    failed = llamacpp.run(inference_models=[{**MODEL_ENTRY, "context": 1000000}]).expect(1)
    assert "is longer than that of the model" in failed.out
    assert llamacpp.pid("llamacpp") == former
    assert llamacpp.chat(8081)
    llamacpp.run().expect()


def test_another_program_on_the_port_is_named(llamacpp: Mac) -> None:
    listener = "import socket, time; s = socket.create_server(('127.0.0.1', 8085)); time.sleep(600)"
    llamacpp.double.as_user(f'{PYTHON} -c "{listener}" >/dev/null 2>&1 </dev/null &')
    eventually("it listens", lambda: llamacpp.sh("lsof -nP -iTCP:8085 -sTCP:LISTEN -Fp"))
    try:
        refused = llamacpp.run(llamacpp_port=8085).expect(2)
        (problem,) = refused.json["problems"]
        assert (problem["code"], problem["variable"]) == ("BW113", "llamacpp_port")
        assert "of operator, /opt/homebrew" in problem["message"]
        assert llamacpp.chat(8081)
    finally:
        llamacpp.sh("pkill -f create_server")
    llamacpp.run().expect()


def test_the_watchdog_restarts_an_engine_that_hangs(llamacpp: Mac) -> None:
    # It has to have seen that this process answers: until then it may be loading its model.
    former = llamacpp.pid("llamacpp")
    watchdog = llamacpp.pid("boxwright-watchdog")
    llamacpp.sh(f"kill -9 {watchdog}")
    eventually("another watchdog", lambda: llamacpp.pid("boxwright-watchdog") not in (0, watchdog))
    seen = "curl -s http://127.0.0.1:8081/metrics | awk '/^llamacpp:n_decode_total / { print $2 }'"
    asked = llamacpp.sh(seen)
    eventually("it has asked the model", lambda: llamacpp.sh(seen) != asked, 300)
    llamacpp.sh(f"kill -STOP {former}")
    llamacpp.comes_back("llamacpp", 8081, former)
    assert "hangs, restart number 1" in llamacpp.sh("cat /var/log/boxwright/boxwright-watchdog/boxwright-watchdog.log")
    llamacpp.settled_but_for_waiting()


def test_it_serves_after_a_boot(llamacpp: Mac) -> None:
    llamacpp.double.reboot()
    eventually("llama.cpp answers", lambda: llamacpp.chat(8081), 300)
    eventually("the watchdog runs", lambda: llamacpp.pid("boxwright-watchdog"))
    llamacpp.settled_but_for_waiting()


def test_as_an_agent_it_serves_while_its_user_is_signed_in(llamacpp: Mac) -> None:
    """From daemon to agent, with the watchdog and the roles' checks, which know both; Ollama takes over from it."""
    llamacpp.double.logout("operator")
    daemon = llamacpp.pid("llamacpp")
    away = llamacpp.run(inference_agent_user="operator").expect()
    assert "nothing is served after a start of the Mac" in away.text
    assert "llamacpp does not run: it is a LaunchAgent of operator" in away.text
    assert llamacpp.sh(f"lsof -nP -iTCP:8081 -sTCP:LISTEN -Fn; ps -p {daemon} -o pid=") == ""
    llamacpp.double.login("operator")
    eventually("llama.cpp answers", lambda: llamacpp.chat(8081), 300)
    llamacpp.settled_but_for_waiting()
    said = llamacpp.sh("launchctl print gui/501/boxwright.llamacpp")
    (pid,) = [int(line[7:]) for line in said.splitlines() if line.startswith("\tpid = ")]
    assert llamacpp.sh(f"ps -ww -o user= -p {pid}") == "operator"
    assert llamacpp.sh("lsof -nP -iTCP:8081 -sTCP:LISTEN -Fp | sed -n 's/^p//p'") == str(pid)
    assert json.loads(llamacpp.sh("cat /etc/boxwright/watchdog.json"))["engines"][0]["session"] == "operator"
    inventory = llamacpp.double.inventory(llamacpp.lab.folder / "mac", **llamacpp.variables, **llamacpp.given)
    words = ["--boxwright-inventory", str(inventory), "-q", "-p", "no:cacheprovider"]
    checks = "engines or no_other_server or test_watchdog"
    done = llamacpp.lab.run(sys.executable, "-m", "pytest", *words, "-k", checks, "roles/inference/checks.py").expect()
    assert "failed" not in done.out
    assert " passed" in done.out


# Ollama


def test_ollama_takes_over(mac: Mac) -> None:
    variables = {"inference_engine": "ollama", "ollama_threads": 1, **archive_of_ollama()}
    mac.run(**variables).expect()
    assert mac.sh("launchctl print system/boxwright.llamacpp >/dev/null 2>&1; echo $?") == "113"
    assert mac.chat(11434)
    assert mac.owner("ollama") == "_ollama"
    assert mac.sh("lsof -nP -iTCP:11434 -sTCP:LISTEN -Fn | grep '^n'") == "n127.0.0.1:11434"
    mac.settled()
    # Whoever asks changes no model: the store is another account's.
    said = mac.sh("""curl -s -X DELETE http://127.0.0.1:11434/api/delete -d '{"model": "local-llm"}'""")
    assert "permission denied" in said
    # A model more, and one less again, restarts nothing.
    serving = mac.pid("ollama")
    other = {**MODEL_ENTRY, "name": "more", "preload": False}
    assert "ollama: model more" in mac.changes(**{**variables, "inference_models": [MODEL_ENTRY, other]})
    assert mac.chat(11434, "more")
    pruned = mac.changes(**{**variables, "inference_prune": True})
    assert "ollama: remove other models" in pruned
    assert "more" not in mac.sh("curl -s http://127.0.0.1:11434/api/tags")
    assert mac.pid("ollama") == serving
    mac.sh(f"kill -9 {serving}")
    mac.comes_back("ollama", 11434, serving)
    mac.settled_but_for_waiting()
    # What made the models has left nothing.
    assert mac.sh("pgrep -U _ollamastore; ls -d /var/lib/boxwright/ollama-models-new 2>/dev/null") == ""


# LM Studio


def test_lm_studio_takes_over(mac: Mac) -> None:
    mac.run(inference_engine="lmstudio", **bundle_of_lm_studio()).expect()
    assert mac.chat(1234)
    assert mac.owner("lmstudio") == "_lmstudio"
    mac.settled()
    # Its daemon is no child of what launchd has started; there is never a second.
    daemons = "pgrep -U _lmstudio -f '/llmster$'"
    former = mac.pid("lmstudio")
    mac.sh(f"kill -9 {former}")
    mac.comes_back("lmstudio", 1234, former)
    eventually("one daemon", lambda: len(mac.sh(daemons).split()) == 1)
    daemon, former = mac.sh(daemons), mac.pid("lmstudio")
    mac.sh(f"kill -9 {daemon}")
    mac.comes_back("lmstudio", 1234, former)
    # A model more is loaded beside the other.
    former = mac.pid("lmstudio")
    changed = mac.changes(**{**mac.given, "inference_models": [MODEL_ENTRY, {**MODEL_ENTRY, "name": "more"}]})
    assert changed[:2] == ["lmstudio: write the list of models", "lmstudio: running"]
    assert mac.chat(1234, "more")
    assert mac.pid("lmstudio") == former


# MLX


def test_mlx_takes_over(mac: Mac) -> None:
    models = [tiny_model.published(context=512)]
    variables = {"inference_engine": "mlx", "inference_models": models, **packages_of_mlx()}
    mac.run(**variables).expect()
    assert mac.sh("pgrep -U _lmstudio; id _lmstudio 2>&1").endswith("no such user")
    assert mac.chat(8083)
    assert mac.owner("mlx") == "_mlx"
    mac.settled()


# The end


def test_everything_goes_and_goes_once(mac: Mac) -> None:
    mac.run(inference_engine="lmstudio", **bundle_of_lm_studio()).expect()
    # The worst case: nobody told the daemon to end.
    mac.sh(f"kill -9 {mac.pid('lmstudio')}; launchctl bootout system/boxwright.lmstudio")
    assert mac.changes({"remove": True, "purge": True}, **mac.given)
    assert mac.changes({"remove": True, "purge": True}, **mac.given) == []
    left = mac.sh(
        "ls -d /Library/LaunchDaemons/boxwright.* /opt/boxwright/* /etc/boxwright/* /var/run/lmstudio "
        "/var/lib/boxwright/ollama* /var/lib/boxwright/lmstudio* /var/lib/boxwright/models 2>/dev/null"
    )
    assert left == ""
    accounts = mac.sh("dscl . -list /Users; dscl . -list /Groups").split()
    assert not {"_llamacpp", "_ollama", "_ollamastore", "_mlx", "_lmstudio"} & set(accounts)
    assert mac.double.strays() == []
    assert mac.sh("ps -axo comm= | grep -c -e homebrew -e boxwright") == "0"
