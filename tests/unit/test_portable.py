"""Scripts that reach Linux and Macs alike say nothing that only one of them understands."""

import ast
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from boxwright import shell

ROOT = Path(__file__).parents[2]

# What GNU's programs or the kernel of Linux have and a Mac does not, with what to write instead.
LINUX_ONLY = {
    r"\bstat -\w*c\b": "details, target_details",
    r"\bstat --(format|printf)": "details, target_details",
    r"\bsha(256|512)sum\b(?!\.)": "sha256, sha512",
    r"/proc/": "opened_details and its like",
    r"\bflock\b": "try_lock, wait_lock",
    r"\bsync (-|\")": "sync_file, sync_disk, opened_sync",
    r"\bmv -\w*T": "move_onto",
    r"--one-file-system": "remove_tree",
    r"-printf\b": "find . and a parser",
    r"\bsed -i\b": "sed into a new file",
    r"\breadlink -(\w*[me])\b": "readlink, readlink -f",
    r"\bdate (-\w*d\b|--date)": "date +%s and arithmetic",
    r"\bgetent\b": "id, or boxwright.directory_service",
    r"\b(useradd|usermod|userdel|groupadd)\b": "boxwright.operations.users",
    r"\brunuser\b": "as_user",
    r"(?<![\w-])timeout (\d|--kill|\")": "nothing yet",
    r"\bnproc\b": "sysctl",
    r"\b(tac|setsid|numfmt|shuf|truncate -s)\b": "awk",
    r"\bcp -\w*T|\bcp --": "cp -p and move_onto",
    r"\bgrep -\w*P\b": "grep -E, sed",
    r"\bbase64 -w": "base64 | tr -d",
    r"\bxargs -\w*[rd]\b": "a loop",
    r"\bsort -\w*V\b": "Python",
    r"\b(systemctl|journalctl|systemd-run|apt-get|dpkg)\b": "boxwright.operations",
}

REFUSED = "refused on a Mac when the settings are read"
NOT_YET = "its role is not for Macs yet"
ELSEWHERE = "what runs on a Mac is another constant"
# What reaches Linux alone, each with its reason: a folder, a module, or `module:NAME` of one of its functions, classes
# and constants. All other strings of the program are looked at.
LINUX = {
    "boxwright/lab": "the lab's boxes are containers",
    "boxwright/shell.py:_PORTABLE": "both halves of what others use in place of them; they are tried below",
    "boxwright/preflight/linux.py": ELSEWHERE,
    "boxwright/api_admin.py:AdminApi": "tells people where the log is, which is another place on a Mac",
    "roles/api/checks.py:test_no_secret_in_the_environment": "a check of boxes with Linux alone, by its mark",
    "boxwright/facts/accounts.py:_ACCOUNT": ELSEWHERE,
    "boxwright/operations/users.py:_HOME_OF": ELSEWHERE,
    "boxwright/operations/users.py:system_user": ELSEWHERE,
    "boxwright/operations/users.py:user_absent": ELSEWHERE,
    "boxwright/operations/users.py:users": ELSEWHERE,
    "boxwright/operations/users.py:_groups": ELSEWHERE,
    "boxwright/facts/system.py:Boot": "asked by the role nvidia",
    "boxwright/facts/system.py:Enabled": "units of systemd",
    "boxwright/operations/system.py:enabled": "units of systemd",
    "boxwright/facts/apt.py": "apt",
    "boxwright/facts/apt_repositories.py": "apt",
    "boxwright/operations/apt.py": "apt",
    "boxwright/operations/apt_repositories.py": "apt",
    "boxwright/facts/power.py": "systemd's targets; a Mac has another operation",
    "boxwright/operations/power.py": "systemd's targets; a Mac has another operation",
    "boxwright/facts/nvidia.py": REFUSED,
    "boxwright/operations/nvidia.py": REFUSED,
    "roles/nvidia": REFUSED,
    "boxwright/facts/firewall.py": REFUSED,
    "boxwright/operations/firewall.py": REFUSED,
    "roles/firewall": REFUSED,
    "boxwright/facts/sshd.py": REFUSED,
    "boxwright/operations/sshd.py": REFUSED,
    "boxwright/facts/guard.py": "guards firewall and sshd: " + REFUSED,
    "boxwright/operations/guard.py": "guards firewall and sshd: " + REFUSED,
    "boxwright/guard.py": "guards firewall and sshd: " + REFUSED,
    "boxwright/systemd.py": ELSEWHERE,
    "boxwright/facts/services.py": ELSEWHERE,
    "boxwright/operations/systemd.py": ELSEWHERE,
    "boxwright/testing/probes.py": ELSEWHERE,
    "boxwright/systems.py:as_user": ELSEWHERE,
    "boxwright/operations/ollama.py:_MAKE": "each half of its functions has the words of its own system",
    "boxwright/operations/ollama.py:Store": ELSEWHERE,
    "boxwright/operations/ollama.py:account_free": "what Ollama's installer leaves on Linux",
    "roles/ollama/tasks.py:service": "an exception from systemd's sandbox",
    "roles/ollama/checks.py": ELSEWHERE,
    "roles/lmstudio/checks.py": ELSEWHERE,
    "boxwright/facts/tailscale.py": ELSEWHERE,
    "boxwright/operations/tailscale.py": ELSEWHERE,
    "boxwright/tailnet.py": ELSEWHERE,
    "roles/tailscale": ELSEWHERE,
    "roles/gateway/authority.py": REFUSED,
    "roles/gateway/checks.py": ELSEWHERE,
    "roles/gateway/nginx.py": REFUSED,
    "roles/host/checks.py": NOT_YET,
    "roles/inference/checks.py": ELSEWHERE,
    "roles/llamacpp/checks.py": ELSEWHERE,
}


@dataclass(frozen=True)
class Said:
    """Words in a string of the program that only Linux understands: where, and what there is for both."""

    module: str
    name: str
    line: int
    word: str
    instead: str

    @property
    def excuse(self) -> str | None:
        """The entry of LINUX that it falls under."""
        return next(
            (
                entry
                for entry in LINUX
                if f"{self.module}:{self.name}" == entry or self.module == entry or self.module.startswith(f"{entry}/")
            ),
            None,
        )


def documentation(tree: ast.Module) -> set[int]:
    """Its docstrings, by the identity of their nodes."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }


def name_of(statement: ast.stmt) -> str:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return statement.name
    if isinstance(statement, ast.Assign):
        return ast.unparse(statement.targets[0])
    return ast.unparse(statement.target) if isinstance(statement, ast.AnnAssign) else ""


def words(text: str) -> list[tuple[str, str]]:
    """What in a script only Linux understands, and what to write instead. Comments do not count."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [(match.group(), instead) for pattern, instead in LINUX_ONLY.items() for match in re.finditer(pattern, code)]


@cache
def said() -> list[Said]:
    found = []
    for folder in ("boxwright", "roles", "deploys"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            skipped = documentation(tree)
            for statement in tree.body:
                for node in ast.walk(statement):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
                        found += [
                            Said(str(path.relative_to(ROOT)), name_of(statement), node.lineno, word, instead)
                            for word, instead in words(node.value)
                        ]
    return found


def test_scripts_that_can_reach_a_mac_say_nothing_that_only_linux_understands() -> None:
    assert [
        f"{each.module}:{each.line} {each.name}: {each.word!r}; for both there is: {each.instead}"
        for each in said()
        if not each.excuse
    ] == []


def test_what_is_excused_is_needed() -> None:
    """An entry goes when its module learns to speak to both."""
    assert set(LINUX) - {each.excuse for each in said()} == set()


@pytest.mark.parametrize(
    "text",
    [
        "stat -c %s -- x",
        'size=$(stat -Lc "%s" x)',
        "sha256sum <x",
        "exec 3>x; chmod 0600 /proc/self/fd/3",
        "flock -w 3 9",
        'sync -f -- "$x"',
        "mv -fT -- a b",
        "rm -rf --one-file-system -- x",
        'find . -printf "%f"',
        "sed -i s/a/b/ x",
        "readlink -m x",
        "date -d yesterday",
        "date --date=yesterday",
        "getent passwd x",
        "timeout 10 x",
        "grep -oP x y",
        "true\n  useradd x",
    ],
)
def test_a_script_for_linux_is_seen(text: str) -> None:
    assert words(text)


@pytest.mark.parametrize(
    "text",
    ["details %s %z x", "sha256 <x", "mv -f -- a b", "curl --connect-timeout 20", "# stat -c\nx", "x.sha256sum.txt"],
)
def test_a_script_for_both_is_let_through(text: str) -> None:
    assert words(text) == []


def run(text: str, folder: Path, *arguments: str) -> str:
    """What a script prints here, with the functions of Linux and with those of a Mac where this machine has the tools
    that they are made of; both must say the same.
    """
    needed = shell.portable(text)
    assert needed.startswith("if [ -d /System/Library ]; then\n"), "a script that needs nothing of the kind"
    mac = needed.replace("[ -d /System/Library ]", "true")
    answers = [
        subprocess.run(
            [*interpreter, "-c", functions + text, "x", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for functions, interpreter in ((needed, ["sh"]), (mac, ["bash", "--posix"]))
    ]
    assert answers[0] == answers[1]
    return answers[0]


class TestFunctions:
    """What both halves do alike. That of a Mac is tried here as far as perl and shasum go; its stat and rm are tried
    against the double of a Mac.
    """

    def test_a_file_that_is_open_is_changed_whatever_lies_at_its_path(self, tmp_path: Path) -> None:
        text = """
            exec 3>"$1"
            mv -- "$1" "$1.moved"
            ln -s -- precious "$1"
            : >precious
            chmod 0600 precious
            opened_chmod 0644 || exit 1
            opened_chown :"$(id -gn)" || exit 1
            opened_sync || exit 1
            ls -l "$1.moved" precious | cut -c 1-10
            rm -f -- "$1" "$1.moved"
        """
        assert run(text, tmp_path, "a file").split() == ["-rw-r--r--", "-rw-------"]

    def test_an_owner_that_there_is_not(self, tmp_path: Path) -> None:
        text = 'exec 3>x; for owner; do opened_chown "$owner" 2>/dev/null || echo refused; done'
        assert run(text, tmp_path, "no-such-user", ":no-such-group", "root:no-such-group") == "refused\n" * 3

    def test_digests(self, tmp_path: Path) -> None:
        (tmp_path / "a b").write_text("abc")
        text = 'sha256 <"$1"; sha256 "$1"; sha512 <"$1" | cut -c 1-16'
        digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert run(text, tmp_path, "a b") == f"{digest}  -\n{digest}  a b\nddaf35a193617aba\n"

    def test_a_lock_is_held_until_its_shell_ends(self, tmp_path: Path) -> None:
        text = """
            holds() { ( exec 9<"$1"; if try_lock; then echo got it; else echo held; fi ) }
            exec 9<"$1" || exit 1
            try_lock || exit 1
            holds "$1"
            ( exec 9<"$1"; wait_lock 1 && echo got it too; true )
            exec 9<&-
            holds "$1"
            ( exec 9<"$1"; wait_lock 1 && echo waited for nothing )
        """
        assert run(text, tmp_path, str(tmp_path)) == "held\ngot it\nwaited for nothing\n"

    def test_what_is_moved_onto_something(self, tmp_path: Path) -> None:
        text = """
            for to in file link folder full; do
                rm -rf file link folder full new precious
                mkdir folder full precious
                : >full/x; : >new; : >file
                ln -s precious link
                move_onto new "$to" 2>/dev/null && echo "$to" replaced || echo "$to" left
                ls precious full/new folder/new 2>/dev/null
            done
            rm -rf file link folder full new precious
            mkdir new
            : >new/x
            move_onto new other && ls other
            rm -rf other
        """
        lines = run(text, tmp_path).splitlines()
        assert [line for line in lines if line not in ("", "precious:")] == [
            "file replaced",
            "link replaced",
            "folder left",
            "full left",
            "x",
        ]

    def test_only_what_is_named_is_sent(self) -> None:
        assert shell.portable("echo nothing of the kind") == ""
        sent = shell.portable("sync_file x; undetails; details-not")
        assert "sync_file()" in sent
        assert "try_lock()" not in sent

    def test_a_script_finds_what_homebrew_installed_last_of_all(self, tmp_path: Path) -> None:
        """And on Linux looks where it looked before."""
        (text,) = (str(bit.obj) for bit in shell.script('echo "$PATH"').bits if "PATH" in str(getattr(bit, "obj", "")))
        mac = text.replace("[ ! -d /System/Library ]", "false")
        assert mac != text
        linux = "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
        for each, path in ((text, linux), (mac, f"{linux}:/opt/homebrew/bin:/opt/homebrew/sbin:/usr/local/bin")):
            said = subprocess.run(
                ["sh", "-c", each], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
            )
            assert said.stdout == f"{path}\n"
