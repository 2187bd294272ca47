"""`boxwright token ...` as a person or a script meets it. No box: what would bring the tokens to one is a double here,
except in the last tests, where each case is a process that runs a deploy on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from boxwright import cli, masking, token_cli
from boxwright.errors import BoxwrightError, Refused
from boxwright.secrets import SecretStore

HOST = """
      ansible_connection: local
      gateway_names: [llm.test]
      inference_models: [{name: m, url: "https://models.test/one.gguf", sha256: SHA, size: 98362432}]
""".replace("SHA", "ab" * 32)
INVENTORY = f"linux:\n  hosts:\n    one:{HOST}"
TOKEN = re.compile(r"bw-[A-Za-z0-9_-]{43}")
FROM_INVENTORY = "set-by-the-inventory-1234"


class Run:
    """A command that ended."""

    def __init__(self, code: int, out: str, err: str, problems: tuple[Any, ...] = ()) -> None:
        self.code, self.out, self.err, self.problems = code, out, err, problems


class Here:
    """The command in this process. `ends` says how a run on the box ends, and `seen` what it found in the inventory."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.inventory, self.capfd = folder / "hosts.yml", capfd
        self.inventory.write_text(INVENTORY)
        self.ends: int | BaseException = 0
        self.seen: list[tuple[str, dict[str, str]]] = []

    def run_deploy(self, deploy: str, *, inventory: Path | None, limit: str, **_: Any) -> tuple[Any, str]:
        from boxwright.inventory import load

        (host,) = load(inventory, limit=limit)
        box: Any = host.box
        tokens = {name: token.get_secret_value() for name, token in box.gateway.tokens.items()}
        self.seen.append((deploy, tokens))
        if isinstance(self.ends, BaseException):
            raise self.ends
        return SimpleNamespace(exit_code=self.ends), "full"

    def __call__(self, *arguments: str) -> Run:
        self.seen.clear()
        code, problems = 0, ()
        self.capfd.readouterr()
        try:
            cli.cli.main(["token", *arguments], standalone_mode=False)
        except BoxwrightError as error:
            code, problems = error.exit_code, error.problems
        except click.Abort:
            code = 130
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = self.capfd.readouterr()
        return Run(code, out, err, problems)

    def added(self, name: str) -> str:
        """Add a token, which must succeed; what was printed."""
        done = self("add", name)
        assert done.code == 0, done.err
        return done.out.strip()

    def kept(self, host: str = "one") -> dict[str, str]:
        """The tokens in the file on this machine."""
        secrets = SecretStore().all(host)
        return {key: value for key, value in secrets.items() if key.startswith("gateway_tokens.")}

    def add_variable(self, line: str) -> None:
        self.inventory.write_text(self.inventory.read_text() + f"      {line}\n")


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Here]:
    here = Here(tmp_path, capfd)
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BOXWRIGHT_INVENTORY", str(here.inventory))
    monkeypatch.setattr(cli, "run_deploy", here.run_deploy)
    yield here
    masking.forget()


# add


def test_a_token_is_printed_once_and_alone(token: Here) -> None:
    done = token("add", "laptop")
    assert done.code == 0
    assert TOKEN.fullmatch(done.out.removesuffix("\n"))
    assert done.out.endswith("\n")
    made = done.out.strip()
    assert "one accepts this token of laptop now" in done.err
    assert made not in done.err
    assert token.seen == [("deploys/tokens.py", {"laptop": made})]
    assert token.kept() == {"gateway_tokens.laptop": made}
    assert token.added("phone") != made


def test_a_token_is_made_of_256_random_bits(token: Here) -> None:
    made = [token.added(f"client{number}") for number in range(3)]
    assert len(set(made)) == 3
    # The prefix and 43 characters of 6 bits each.
    assert all(len(each) == len("bw-") + 43 for each in made)


def test_a_name_that_is_taken_is_refused_with_the_way_on(token: Here) -> None:
    made = token.added("laptop")
    done = token("add", "laptop")
    assert (done.code, done.out, token.seen) == (2, "", [])
    assert done.problems[0].code == "BW040"
    assert done.problems[0].help == "boxwright token rotate laptop"
    assert token.kept() == {"gateway_tokens.laptop": made}


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "-x", ".x", "a/b", "a*", "a\n", "grün", "a" * 64, "a{b}", '"', "a:b", "../x"]
)
def test_names_that_a_log_could_not_show_are_refused(token: Here, name: str) -> None:
    done = token("add", "--", name)
    assert (done.code, done.out, token.seen) == (2, "", [])
    assert done.problems[0].code == "BW040"
    assert done.problems[0].help == "take a name of at most 63 letters, digits, dots, dashes and underscores"
    assert token.kept() == {}


@pytest.mark.parametrize("name", ["a", "7", "laptop-2", "ci.build_1", "A" * 63, "add", "none", "007"])
def test_names_that_are_fine(token: Here, name: str) -> None:
    """What this command takes for a name, the settings take for one too: the double of the run read them."""
    made = token.added(name)
    assert token.seen == [("deploys/tokens.py", {name: made})]


@pytest.mark.parametrize(("name", "whose"), [("boxwright", "gateway_password"), ("open-webui", "Open WebUI")])
def test_a_name_that_the_log_uses_for_another_is_refused_and_forgotten(token: Here, name: str, whose: str) -> None:
    done = token("add", name)
    assert (done.code, done.out) == (2, "")
    assert (done.problems[0].code, done.problems[0].variable) == ("BW022", "gateway_tokens")
    assert whose in done.problems[0].message
    assert token.kept() == {}
    # Nothing is left behind that would stand in the way of every other command.
    assert token("list").code == 0


@pytest.mark.parametrize(
    ("ends", "code"), [(1, 1), (2, 2), (130, 130), (KeyboardInterrupt(), 130), (Refused([]), 2), (SystemExit(143), 143)]
)
def test_a_token_that_did_not_reach_the_box_is_forgotten(token: Here, ends: int | BaseException, code: int) -> None:
    token.ends = ends
    done = token("add", "laptop")
    assert (done.code, done.out) == (code, "")
    assert "laptop has no token" in done.err
    assert token.kept() == {}
    token.ends = 0
    assert token.added("laptop")


def test_a_token_for_which_nothing_asks_is_told_of(token: Here) -> None:
    token.add_variable("gateway_auth: basic")
    done = token("add", "laptop")
    assert (done.code, bool(TOKEN.fullmatch(done.out.strip()))) == (0, True)
    assert "`gateway_auth` is basic" in done.err
    assert "accepts" not in done.err
    token.add_variable('gateway_routes: [{path: /vllm, upstreams: ["127.0.0.1:8000"], auth: bearer}]')
    assert "accepts" in token("add", "phone").err


# rotate


def test_another_token_takes_the_place_of_the_old_one(token: Here) -> None:
    old, other = token.added("laptop"), token.added("phone")
    done = token("rotate", "laptop")
    made = done.out.strip()
    assert TOKEN.fullmatch(made)
    assert made != old
    assert token.seen == [("deploys/tokens.py", {"laptop": made, "phone": other})]
    assert token.kept() == {"gateway_tokens.laptop": made, "gateway_tokens.phone": other}


@pytest.mark.parametrize("ends", [1, KeyboardInterrupt(), Refused([])])
def test_a_rotation_that_failed_keeps_the_old_token(token: Here, ends: int | BaseException) -> None:
    old = token.added("laptop")
    token.ends = ends
    done = token("rotate", "laptop")
    assert done.code != 0
    assert done.out == ""
    assert "laptop keeps its old token" in done.err
    assert token.kept() == {"gateway_tokens.laptop": old}


@pytest.mark.parametrize("verb", ["rotate", "revoke"])
def test_a_token_that_is_not_there(token: Here, verb: str) -> None:
    token.added("laptop")
    done = token(verb, "nosuch")
    assert (done.code, done.out, token.seen) == (2, "", [])
    assert (done.problems[0].code, done.problems[0].help) == ("BW040", "it has: laptop")


# revoke


def test_a_revoked_token_is_forgotten(token: Here) -> None:
    token.added("laptop")
    other = token.added("phone")
    done = token("revoke", "laptop")
    assert (done.code, done.out) == (0, "")
    assert "one refuses the token of laptop now" in done.err
    assert token.seen == [("deploys/tokens.py", {"phone": other})]
    assert token.kept() == {"gateway_tokens.phone": other}


@pytest.mark.parametrize("ends", [1, KeyboardInterrupt(), Refused([])])
def test_a_revoked_token_that_may_still_be_accepted_is_told_of(token: Here, ends: int | BaseException) -> None:
    token.added("laptop")
    token.ends = ends
    done = token("revoke", "laptop")
    assert done.code != 0
    assert "one may still accept it" in done.err
    assert "boxwright apply" in done.err
    assert "refuses" not in done.err
    # The next run takes it away: it is in no inventory any more.
    assert token.kept() == {}


# list


def test_a_list_has_names_and_no_tokens(token: Here) -> None:
    made = [token.added("phone"), token.added("laptop")]
    token.add_variable(f"gateway_tokens: {{ci: {FROM_INVENTORY}}}")
    text = token("list")
    assert text.out.splitlines() == [
        "one  ci  (inventory)",
        "one  laptop  (control machine)",
        "one  phone  (control machine)",
    ]
    machine = token("list", "--json")
    assert json.loads(machine.out) == [
        {"host": "one", "name": "ci", "kept": "inventory"},
        {"host": "one", "name": "laptop", "kept": "control machine"},
        {"host": "one", "name": "phone", "kept": "control machine"},
    ]
    for done in (text, machine):
        assert done.code == 0
        assert not any(secret in done.out + done.err for secret in [*made, FROM_INVENTORY])
    assert token.seen == []


def test_an_empty_list_says_how_to_begin(token: Here) -> None:
    assert token("list").out == ""
    assert "boxwright token add NAME" in token("list").err
    assert json.loads(token("list", "--json").out) == []


# Several hosts, and the inventory's own tokens


def test_a_token_is_for_one_host(token: Here) -> None:
    token.inventory.write_text(f"{INVENTORY}    two:{HOST}")
    done = token("add", "laptop")
    assert (done.code, done.out, token.seen) == (2, "", [])
    assert (done.problems[0].code, done.problems[0].help) == ("BW006", "choose one with --limit")
    assert TOKEN.fullmatch(token("add", "laptop", "--limit", "two").out.strip())
    assert (token.kept("one"), len(token.kept("two"))) == ({}, 1)
    # The same name on another host is another token.
    token("add", "laptop", "--limit", "one")
    assert token.kept("one") != token.kept("two")
    assert [line.split()[:2] for line in token("list").out.splitlines()] == [["one", "laptop"], ["two", "laptop"]]


@pytest.mark.parametrize("verb", ["rotate", "revoke"])
def test_a_token_of_the_inventory_is_changed_there(token: Here, verb: str) -> None:
    token.add_variable(f"gateway_tokens: {{ci: {FROM_INVENTORY}}}")
    done = token(verb, "ci")
    assert (done.code, done.out, token.seen) == (2, "", [])
    assert "set in the inventory" in done.problems[0].message
    assert "`gateway_tokens`" in done.problems[0].help


@pytest.mark.parametrize("verb", ["rotate", "revoke"])
def test_the_inventory_wins_over_a_token_that_was_made(token: Here, verb: str) -> None:
    """Its value is what counts on the box; changing the other one would change nothing."""
    token.added("ci")
    token.add_variable(f"gateway_tokens: {{ci: {FROM_INVENTORY}}}")
    done = token(verb, "ci")
    assert (done.code, token.seen) == (2, [])
    assert "set in the inventory" in done.problems[0].message
    assert "(inventory)" in token("list").out


# As processes

COMMAND = """
import os
from boxwright import cli, token_cli
token_cli.DEPLOY = os.environ["TEST_DEPLOY"]
cli.main()
"""
# Tells every secret that it has, in the ways in which a run says something.
TELLS = """
from pathlib import Path
from pyinfra import host
from pyinfra.operations import server
tokens = " ".join(token.get_secret_value() for token in host.data.box.gateway.tokens.values())
arguments = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.parent.name != "self"]
seen = any(token.encode() in each for token in tokens.split() for each in arguments)
server.shell(name=f"gateway: tell {tokens}", commands=[f"echo {tokens} SEEN={seen}; exit {code}"])
"""


@pytest.fixture
def boxwright(tmp_path: Path) -> Callable[..., Run]:
    (tmp_path / "hosts.yml").write_text(INVENTORY)

    def call(*arguments: str, code: int = 0) -> Run:
        (tmp_path / "deploy.py").write_text(TELLS.replace("{code}", str(code)))
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "BOXWRIGHT_STATE_DIR": str(tmp_path / "state"),
            "BOXWRIGHT_INVENTORY": str(tmp_path / "hosts.yml"),
            "TEST_DEPLOY": str(tmp_path / "deploy.py"),
        }
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return Run(done.returncode, done.stdout, done.stderr)

    return call


def test_a_new_token_is_on_standard_output_and_nowhere_else(boxwright: Callable[..., Run], tmp_path: Path) -> None:
    done = boxwright("token", "add", "laptop")
    assert done.code == 0, done.err
    made = done.out.removesuffix("\n")
    assert TOKEN.fullmatch(made)
    logs = [path.read_text() for path in (tmp_path / "state/log").iterdir()]
    assert logs
    assert made not in done.err + "".join(logs)
    store = tmp_path / "state/secrets/one.json"
    assert made in store.read_text()
    assert store.stat().st_mode & 0o777 == 0o600
    # The run's own text came by, masked; and no process was given the token as an argument.
    assert "tell ***" in done.err + "".join(logs)


def test_a_token_that_failed_is_shown_nowhere(boxwright: Callable[..., Run], tmp_path: Path) -> None:
    done = boxwright("token", "add", "laptop", code=1)
    assert (done.code, done.out) == (1, "")
    assert "SEEN=False" in done.err
    assert "laptop has no token" in done.err
    assert not TOKEN.search(done.err)
    everything = "".join(path.read_text() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert "tell ***" in everything
    assert not TOKEN.search(everything)


@pytest.mark.parametrize("arguments", [["token", "--help"], ["token", "add", "--help"]])
def test_help_brings_nothing_heavy_with_it(arguments: list[str]) -> None:
    heavy = ["pyinfra", "ansible", "rich", "pydantic", "requests", "jinja2", "gevent", "paramiko", "secrets"]
    assert loaded(arguments, heavy, {}) == "LOADED [] 0"


def test_a_list_asks_no_box(boxwright: Callable[..., Run], tmp_path: Path) -> None:
    environment = {"BOXWRIGHT_STATE_DIR": str(tmp_path / "state"), "BOXWRIGHT_INVENTORY": str(tmp_path / "hosts.yml")}
    assert loaded(["token", "list"], ["pyinfra", "gevent", "paramiko", "requests"], environment) == "LOADED [] 0"


def loaded(arguments: list[str], modules: list[str], environment: dict[str, str]) -> str:
    """Which of `modules` a command imports, and how it ends."""
    program = textwrap.dedent(
        f"""
        import sys
        from boxwright.cli import main
        try:
            main({arguments})
        except SystemExit as ended:
            print("LOADED", sorted(set({modules}) & set(sys.modules)), ended.code)
        """
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout.splitlines()[-1]


def test_the_default_deploy_is_there() -> None:
    from boxwright.paths import repository_root

    assert (repository_root() / token_cli.DEPLOY).is_file()
