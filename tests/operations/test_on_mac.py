"""What only a Mac has, on a Mac that is a double (tests/doubles/macos): set, set again, repaired, put back."""

import json
import os
import re
import subprocess
import sys

import pyinfra
import pytest
from harness import run

from boxwright.facts.unattended import Unattended
from boxwright.operations import application_firewall, homebrew, mac, pmset
from boxwright.paths import repository_root
from boxwright.settings import parse_box
from roles.host import tasks as host
from roles.power import tasks as power
from roles.registry import Box
from tests.doubles.macos import ROOT, MacDouble

pytestmark = pytest.mark.lab

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}


def a_mac(**variables):
    defaults = {"gateway_names": ["llm.example"], "inference_models": [MODEL]}
    return parse_box(Box, "mac", ("darwin",), {**defaults, **variables}, None, None)


@pytest.fixture(scope="module")
def studio():
    with MacDouble(version="26.5.2") as double:
        yield double


def apply(double, deploy, **options):
    """What operations changed; they must succeed, and change nothing when they are run again."""
    result = run(deploy, double.answer, system="darwin", **options)
    assert result.ok, result.printed
    if not options.get("dry"):
        again = run(deploy, double.answer, system="darwin")
        assert again.ok, again.printed
        assert not any(again.changed), again.printed
    return result


def notes(double):
    """What boxwright keeps on the Mac."""
    return double.sh("ls /var/lib/boxwright 2>/dev/null").split()


POWER = {"sleep": 0, "disablesleep": 1, "womp": 0, "autorestart": 1, "autorestartatconnect": 0}


class TestPower:
    @pytest.fixture(autouse=True)
    def _as_before(self, studio):
        yield
        apply(studio, lambda: pmset.settings_absent())
        studio.sh("pmset restoredefaults; pmset -c disablesleep 0")

    def shown(self, double, *names):
        text = double.sh("pmset -g custom")
        found = dict(re.findall(r"^ (\S+) +(\d+)", text, re.MULTILINE))
        found["disablesleep"] = "".join(re.findall(r"SleepDisabled\s+(\d)", double.sh("pmset -g"))) or "0"
        return [found.get(name) for name in names]

    def test_set_and_put_back(self, studio):
        before = studio.sh("pmset -g custom")
        dry = apply(studio, lambda: pmset.settings(POWER), dry=True)
        assert (dry.changed, studio.sh("pmset -g custom")) == ([True], before)
        first = apply(studio, lambda: pmset.settings(POWER))
        assert first.changed == [True]
        assert self.shown(studio, *POWER) == ["0", "1", "0", "1", "0"]
        assert apply(studio, lambda: pmset.settings_absent()).changed == [True]
        assert studio.sh("pmset -g custom") == before
        assert self.shown(studio, "disablesleep") == ["0"]
        assert notes(studio) == []

    @pytest.mark.parametrize("harm", ["pmset -c sleep 10", "pmset disablesleep 0", "pmset -a womp 1"])
    def test_drift(self, studio, harm):
        apply(studio, lambda: pmset.settings(POWER))
        studio.sh(harm)
        assert apply(studio, lambda: pmset.settings(POWER)).changed == [True]
        assert self.shown(studio, "sleep", "disablesleep", "womp") == ["0", "1", "0"]
        apply(studio, lambda: pmset.settings_absent())
        assert self.shown(studio, "sleep", "disablesleep", "womp") == ["1", "0", "1"]

    def test_what_is_wanted_no_more_comes_back_and_what_others_set_stays(self, studio):
        apply(studio, lambda: pmset.settings(POWER))
        apply(studio, lambda: pmset.settings({"sleep": 0}))
        assert self.shown(studio, "sleep", "disablesleep", "womp", "autorestart") == ["0", "0", "1", "0"]
        studio.sh("pmset -c sleep 30")
        apply(studio, lambda: pmset.settings_absent())
        assert self.shown(studio, "sleep") == ["30"]

    def test_what_the_mac_lacks_is_said(self, studio):
        result = apply(studio, lambda: pmset.settings({"womp": 0, "powermode": 2}))
        assert result.changed == [True]
        assert "this Mac has no `powermode`" in result.printed

    def test_without_root_nothing_is_believed(self, studio):
        """pmset says on standard output that it must be root, and ends with 0."""

        def answer(asked):
            if "put()" not in asked.text:
                return studio.answer(asked)
            words = json.dumps(["/bin/sh", "-c", asked.text, "boxwright", *asked.arguments])
            studio.put("/tmp/asked.json", words.encode(), 0o644)
            script = "import json, os; words = json.load(open('/tmp/asked.json')); os.execv(words[0], words)"
            code, out, err = studio.as_user(f'{ROOT}/linux/bin/python3 -c "{script}"')
            return code == 0, (out if code == 0 else err).splitlines()

        studio.sh("mkdir -p /private/var/lib/boxwright && chmod 777 /private/var/lib/boxwright")
        result = run(lambda: pmset.settings({"disablesleep": 1}), answer, system="darwin")
        assert not result.ok
        assert "disablesleep could not be set to 1: it is 0" in result.printed
        assert "must be run as root" in result.printed
        studio.sh("rm -rf /private/var/lib/boxwright")

    def test_a_run_that_was_killed_is_completed_and_undone(self, studio):
        def answer(asked):
            # It dies when the note is written and the first setting made.
            if "put()" in asked.text:
                studio.answer(type(asked)(asked.text, asked.arguments[:5], ""))
                return False, ["killed"]
            return studio.answer(asked)

        assert not run(lambda: pmset.settings({"sleep": 0, "womp": 0}), answer, system="darwin").ok
        assert self.shown(studio, "sleep", "womp") == ["0", "1"]
        apply(studio, lambda: pmset.settings_absent())
        assert self.shown(studio, "sleep", "womp") == ["1", "1"]

    def test_the_role(self, studio):
        def deploy(**variables):
            return lambda: power.apply(a_mac(**variables))

        # Without it macOS makes no account.
        studio.set(full_disk_access=True)
        result = apply(studio, deploy(power_caffeinate=True))
        assert any(result.changed)
        assert self.shown(studio, "sleep", "disablesleep", "autorestart", "womp") == ["0", "1", "1", "1"]
        assert "PreventSystemSleep             1" in studio.sh("pmset -g assertions")
        studio.reboot()
        held = "pmset -g assertions | grep -q 'PreventSystemSleep  *1'"
        assert studio.as_root(f"for i in $(seq 300); do {held} && exit; sleep 0.1; done; exit 1")[0] == 0, studio.sh(
            "launchctl print system/boxwright.caffeinate; ls -l /usr/libexec/double/volatile/awake"
        )
        assert not any(run(deploy(power_caffeinate=True), studio.answer, system="darwin").changed)
        apply(studio, deploy())
        assert "PreventSystemSleep             0" in studio.sh("pmset -g assertions")
        assert "no such user" in studio.sh("id _caffeinate")
        apply(studio, deploy(power_enabled=False))
        assert self.shown(studio, "sleep", "disablesleep", "autorestart", "womp") == ["1", "0", "0", "1"]
        studio.set(full_disk_access=False)

    def test_what_is_said_of_the_next_start(self, studio):
        studio.set(filevault=True)
        result = run(lambda: power.apply(a_mac(power_accept_filevault=True)), studio.answer, system="darwin")
        assert "FileVault is on: after each start somebody must unlock the Mac" in result.printed
        studio.set(filevault=False)


class TestStart:
    """What a Mac says of its next start."""

    def found(self, double):
        found = []
        assert run(lambda: found.append(pyinfra.host.get_fact(Unattended)), double.answer, system="darwin").ok
        return found[0]

    @pytest.mark.parametrize("version", ["14.8.1", "15.7.3", "26.5.2", "27.0"])
    def test_what_it_says(self, studio, version):
        studio.set(version=version, filevault=False)
        keys = "/Library/Preferences/com.apple.SoftwareUpdate AutomaticallyInstallMacOSUpdates"
        studio.sh(f"defaults delete {keys}")
        found = self.found(studio)
        assert (found.filevault, found.installs_updates, found.login) == ("off", None, "")
        studio.sh(f"defaults write {keys} -bool true")
        studio.sh("defaults write /Library/Preferences/com.apple.loginwindow autoLoginUser ada")
        studio.set(filevault=True)
        found = self.found(studio)
        assert (found.filevault, found.installs_updates, found.login) == ("on", True, "ada")
        assert "FileVault is On." in found.filevault_said
        studio.sh(f"defaults delete {keys}; defaults delete /Library/Preferences/com.apple.loginwindow autoLoginUser")
        studio.set(version="26.5.2", filevault=False)

    def test_updates_are_looked_for(self, studio):
        assert self.found(studio).looks_for_updates is True
        studio.sh("softwareupdate --schedule off")
        assert self.found(studio).looks_for_updates is False
        studio.sh("softwareupdate --schedule on")


class TestHomebrew:
    @pytest.fixture(autouse=True)
    def _formulae(self, studio, tmp_path):
        for name in ("jq", "tree", "wget"):
            (tmp_path / name / "bin").mkdir(parents=True)
            (tmp_path / name / "bin" / name).write_text("#!/bin/sh\necho it works\n")
            (tmp_path / name / "bin" / name).chmod(0o755)
            studio.formula(name, "1.0", tmp_path / name)
        yield
        for name in ("jq", "tree", "wget"):
            studio.as_user(f"/opt/homebrew/bin/brew unpin {name}; /opt/homebrew/bin/brew uninstall {name}")
        studio.sh("rm -rf /private/var/lib/boxwright")

    def operators(self, double, deploy, person="operator"):
        """As the operator comes: with sudo, which says who that is."""

        def answer(asked):
            return double.answer(type(asked)(f"SUDO_USER={person}; {asked.text}", asked.arguments, asked.stdin))

        return run(deploy, answer, system="darwin")

    def there(self, double):
        return double.as_user("/opt/homebrew/bin/brew list --versions; echo --; /opt/homebrew/bin/brew list --pinned")[
            1
        ]

    def test_installed_pinned_and_removed(self, studio):
        studio.as_user("/opt/homebrew/bin/brew install tree")
        before = self.there(studio)

        def deploy():
            return homebrew.packages(["jq", "tree"])

        result = self.operators(studio, deploy)
        assert (result.ok, result.changed) == (True, [True]), result.printed
        assert self.there(studio).split() == ["jq", "1.0", "tree", "1.0", "--", "jq", "tree"]
        assert studio.sh("ls -ld /opt/homebrew/Cellar/jq").split()[2] == "operator"
        assert self.operators(studio, deploy).changed == [False]
        # Somebody took it away, or let it be upgraded.
        studio.as_user("/opt/homebrew/bin/brew unpin jq")
        assert self.operators(studio, deploy).changed == [True]
        result = self.operators(studio, lambda: homebrew.packages_absent())
        assert (result.ok, result.changed) == (True, [True]), result.printed
        assert self.there(studio) == before
        assert notes(studio) == []
        assert self.operators(studio, lambda: homebrew.packages_absent()).changed == [False]

    def test_one_of_several(self, studio):
        self.operators(studio, lambda: homebrew.packages(["jq", "wget"]))
        assert self.operators(studio, lambda: homebrew.packages_absent(["jq"])).changed == [True]
        assert self.there(studio).split() == ["wget", "1.0", "--", "wget"]
        self.operators(studio, lambda: homebrew.packages_absent(["wget"]))
        assert notes(studio) == []

    def test_a_formula_that_is_not_there(self, studio):
        result = self.operators(studio, lambda: homebrew.packages(["jq", "no-such-thing"]))
        assert not result.ok
        assert "No available formula" in result.printed
        # What was installed before it failed is noted, and goes.
        self.operators(studio, lambda: homebrew.packages_absent())
        assert self.there(studio).strip() == "--"

    def test_who_may_use_it(self, studio):
        result = self.operators(studio, lambda: homebrew.packages(["jq"]), person="bob")
        assert not result.ok
        assert "Homebrew belongs to operator, and boxwright comes as bob" in result.printed
        studio.sh("mv /opt/homebrew/bin/brew /opt/homebrew/bin/brew.away")
        try:
            result = self.operators(studio, lambda: homebrew.packages(["jq"]))
            assert not result.ok
            assert "Homebrew is not installed" in result.printed
            # Nothing of ours is there, so nothing needs it.
            assert self.operators(studio, lambda: homebrew.packages_absent()).ok
        finally:
            studio.sh("mv /opt/homebrew/bin/brew.away /opt/homebrew/bin/brew")


class TestApplicationFirewall:
    TOOL = "/usr/libexec/ApplicationFirewall/socketfilterfw"
    DOOR, BLOCKED = "/opt/boxwright/caddy/a b/caddy", "/opt/boxwright/blocked"

    @pytest.fixture(params=["14.8.1", "26.5.2"])
    def double(self, studio, request):
        studio.set(version=request.param, managed=False)
        studio.sh(f"mkdir -p '/opt/boxwright/caddy/a b'; touch '{self.DOOR}' {self.BLOCKED}")
        studio.sh(f"{self.TOOL} --setglobalstate on; {self.TOOL} --add {self.BLOCKED} --blockapp {self.BLOCKED}")
        yield studio
        studio.set(version="26.5.2", managed=False)
        apply(studio, lambda: application_firewall.reachable_no_more())
        studio.sh(f"{self.TOOL} --remove {self.BLOCKED}; {self.TOOL} --setblockall off")
        studio.sh(f"{self.TOOL} --setglobalstate off; rm -r /opt/boxwright")

    def state(self, double, path):
        said = double.sh(f"{self.TOOL} --getappblocked '{path}'")
        return "blocked" if "blocked" in said else "permitted" if "permitted" in said else "not there"

    def test_allowed_and_taken_back(self, double):
        def wanted():
            return application_firewall.reachable([self.DOOR, self.BLOCKED])

        before = double.sh(f"{self.TOOL} --listapps; {self.TOOL} --getstealthmode")
        assert apply(double, wanted).changed == [True]
        assert self.state(double, self.DOOR) == self.state(double, self.BLOCKED) == "permitted"
        double.sh(f"{self.TOOL} --blockapp '{self.DOOR}'")
        assert apply(double, wanted).changed == [True]
        assert self.state(double, self.DOOR) == "permitted"
        # Another program in its place.
        apply(double, lambda: application_firewall.reachable([self.BLOCKED]))
        assert self.state(double, self.DOOR) == "not there"
        apply(double, lambda: application_firewall.reachable_no_more())
        assert double.sh(f"{self.TOOL} --listapps; {self.TOOL} --getstealthmode") == before
        assert notes(double) == []

    def test_nothing_where_it_is_off(self, double):
        double.sh(f"{self.TOOL} --setglobalstate off")
        assert apply(double, lambda: application_firewall.reachable([self.DOOR])).changed == [False]
        assert self.state(double, self.DOOR) == "not there"

    def test_closed_to_all(self, double):
        double.sh(f"{self.TOOL} --setblockall on")
        result = apply(double, lambda: application_firewall.reachable([self.DOOR]))
        assert "blocks all incoming connections" in result.printed

    def test_a_program_that_is_not_there(self, double):
        """It is said, and what is noted of the attempt stands in nobody's way."""
        result = run(lambda: application_firewall.reachable(["/opt/none"]), double.answer, system="darwin")
        assert not result.ok
        assert "does not let /opt/none be reached" in result.printed
        apply(double, lambda: application_firewall.reachable_no_more())
        assert notes(double) == []

    def test_a_managed_mac(self, double):
        double.set(managed=True)
        result = run(lambda: application_firewall.reachable([self.DOOR]), double.answer, system="darwin")
        assert not result.ok
        assert "cannot be modified from command line on managed Mac" in result.printed
        assert "let its administrator allow" in result.printed
        double.set(managed=False)


class TestHost:
    @pytest.fixture(autouse=True)
    def _gone(self, studio):
        studio.set(full_disk_access=False)
        yield
        studio.sh("rm -rf /private/var/lib/boxwright /Users/Shared/models")

    def test_network_time(self, studio):
        studio.sh("systemsetup -setusingnetworktime off")
        apply(studio, lambda: mac.network_time("192.0.2.1"))
        assert "network time: on" in studio.sh("systemsetup -getusingnetworktime").lower()
        assert "192.0.2.1" in studio.sh("systemsetup -getnetworktimeserver")
        studio.sh("systemsetup -setusingnetworktime off")
        assert apply(studio, lambda: mac.network_time("192.0.2.1")).changed == [True]
        apply(studio, lambda: mac.network_time())
        assert "time.apple.com" in studio.sh("systemsetup -getnetworktimeserver")
        apply(studio, lambda: mac.network_time_absent())
        assert "network time: off" in studio.sh("systemsetup -getusingnetworktime").lower()
        assert notes(studio) == []
        studio.sh("systemsetup -setusingnetworktime on")

    def test_named(self, studio):
        assert apply(studio, lambda: mac.named("studio-1")).changed == [True]
        assert (
            studio.sh("for n in ComputerName LocalHostName HostName; do scutil --get $n; done").split()
            == ["studio-1"] * 3
        )
        studio.sh("scutil --set LocalHostName other")
        assert apply(studio, lambda: mac.named("studio-1")).changed == [True]

    def test_folders(self, studio):
        folders = ["/var/lib/boxwright", "/Users/Shared/models"]
        studio.sh("mkdir -p /private/var/lib/boxwright /Users/Shared/models")
        assert apply(studio, lambda: mac.quiet_folders(folders)).changed == [True]
        for folder in folders:
            assert studio.sh(f"ls {folder}/.metadata_never_index").strip() == f"{folder}/.metadata_never_index"
            assert studio.sh(f"tmutil isexcluded {folder}").startswith("[Excluded]")
        studio.sh("rm /Users/Shared/models/.metadata_never_index; tmutil removeexclusion /var/lib/boxwright")
        assert apply(studio, lambda: mac.quiet_folders(folders)).changed == [True]
        apply(studio, lambda: mac.quiet_folders(folders[:1]))
        assert studio.sh("ls -A /Users/Shared/models") == ""
        assert studio.sh("tmutil isexcluded /Users/Shared/models").startswith("[Included]")
        apply(studio, lambda: mac.quiet_folders_absent())
        assert studio.sh("tmutil isexcluded /var/lib/boxwright").startswith("[Included]")
        assert studio.sh("ls -d /var/lib/boxwright 2>&1 >/dev/null") != ""

    def test_time_machine_takes_no_orders(self, studio):
        """As it would be where the mark needs Full Disk Access too."""
        studio.sh("mkdir -p /private/var/lib/boxwright")

        def answer(asked):
            refuse = 'tmutil() { [ "$1" != addexclusion ] || return 80; command tmutil "$@"; }\n'
            return studio.answer(type(asked)(refuse + asked.text, asked.arguments, asked.stdin))

        def deploy():
            return mac.quiet_folders(["/var/lib/boxwright"])

        result = run(deploy, answer, system="darwin")
        assert (result.ok, result.changed) == (True, [True]), result.printed
        again = run(deploy, answer, system="darwin")
        assert (again.ok, again.changed) == (True, [False])
        assert "Allow full disk access for remote users" in again.printed
        studio.sh(
            "mkdir -p '/Library/Application Support/com.apple.TCC'; "
            "echo x >'/Library/Application Support/com.apple.TCC/TCC.db'"
        )
        assert run(deploy, studio.answer, system="darwin").changed == [True]
        assert studio.sh("tmutil isexcluded /var/lib/boxwright").startswith("[Excluded]")
        studio.sh("rm -f '/Library/Application Support/com.apple.TCC/TCC.db'")

    def test_a_link_in_place_of_the_mark_is_not_followed(self, studio):
        studio.sh(
            "mkdir -p /Users/Shared/models; echo precious >/private/etc/precious; "
            "ln -s /private/etc/precious /Users/Shared/models/.metadata_never_index"
        )
        apply(studio, lambda: mac.quiet_folders(["/Users/Shared/models"]))
        assert studio.sh("cat /private/etc/precious") == "precious\n"
        apply(studio, lambda: mac.quiet_folders_absent())

    def test_a_folder_that_is_not_there(self, studio):
        result = run(lambda: mac.quiet_folders(["/Users/Shared/none"]), studio.answer, system="darwin")
        assert not result.ok
        assert "/Users/Shared/none should be a folder" in result.printed

    def unloaded(self, double):
        """Its label stays for some seconds after it was told to go."""
        gone = "for i in $(seq 300); do launchctl print system/com.apple.screensharing >/dev/null 2>&1 || exit 0; "
        assert double.as_root(f"{gone} sleep 0.1; done; exit 1")[0] == 0
        assert double.as_root("launchctl print system/com.apple.screensharing")[0] == 113

    def test_screen_sharing(self, studio):
        assert apply(studio, lambda: mac.screen_sharing()).changed == [True]
        assert studio.as_root("launchctl print system/com.apple.screensharing")[0] == 0
        studio.sh("launchctl bootout system/com.apple.screensharing")
        self.unloaded(studio)
        assert apply(studio, lambda: mac.screen_sharing()).changed == [True]
        assert apply(studio, lambda: mac.screen_sharing_absent()).changed == [True]
        self.unloaded(studio)
        assert '"com.apple.screensharing" => disabled' in studio.sh("launchctl print-disabled system")

    def test_screen_sharing_of_its_owner_stays(self, studio):
        plist = "/System/Library/LaunchDaemons/com.apple.screensharing.plist"
        studio.sh(f"launchctl enable system/com.apple.screensharing; launchctl bootstrap system {plist}")
        assert apply(studio, lambda: mac.screen_sharing()).changed == [False]
        assert apply(studio, lambda: mac.screen_sharing_absent()).changed == [False]
        assert studio.as_root("launchctl print system/com.apple.screensharing")[0] == 0
        studio.sh("launchctl bootout system/com.apple.screensharing; launchctl disable system/com.apple.screensharing")

    def test_memory_for_graphics(self, studio):
        read = "sysctl -n iogpu.wired_limit_mb"
        assert apply(studio, lambda: mac.wired_limit(49152)).changed == [True]
        assert studio.sh(read) == "49152\n"
        studio.sh("sysctl iogpu.wired_limit_mb=0")
        assert apply(studio, lambda: mac.wired_limit(49152)).changed == [True]
        apply(studio, lambda: mac.wired_limit_absent())
        assert studio.sh(read) == "0\n"
        studio.set(wired_limit=False)
        result = run(lambda: mac.wired_limit(49152), studio.answer, system="darwin")
        assert not result.ok
        assert "this Mac has no iogpu.wired_limit_mb" in result.printed
        studio.set(wired_limit=True)

    def test_the_role(self, studio):
        studio.sh("mkdir -p /Users/Shared/models")
        box = a_mac(
            host_computer_name="studio-1",
            host_model_folders=["/Users/Shared/models"],
            host_wired_memory="48GiB",
            host_timezone="Europe/Berlin",
        )

        def deploy():
            from roles.host import darwin

            darwin.install(box)
            darwin.configure(box)
            darwin.activate(box)

        before = studio.sh("ls /Library/LaunchDaemons")
        assert any(apply(studio, deploy).changed)
        daemon = "/Library/LaunchDaemons/boxwright.wired-limit.plist"
        assert studio.sh(f"plutil -extract ProgramArguments.1 raw {daemon}") == "iogpu.wired_limit_mb=49152\n"
        studio.reboot()
        assert studio.sh("sysctl -n iogpu.wired_limit_mb") == "49152\n"
        result = run(lambda: host.remove(box, purge=True), studio.answer, system="darwin")
        assert result.ok, result.printed
        assert studio.sh("ls /Library/LaunchDaemons") == before
        assert notes(studio) == []
        assert studio.sh("ls -A /Users/Shared/models") == ""
        again = run(lambda: host.remove(box, purge=True), studio.answer, system="darwin")
        assert not any(again.changed), again.printed


class TestChecks:
    """`boxwright verify` on this Mac, over SSH with sudo: the checks see what is right and what is not."""

    ROLES = ("roles/host/checks.py", "roles/power/checks.py")

    def verify(self, double, tmp_path):
        """The outcome of each check, by its name."""
        inventory = double.inventory(
            tmp_path,
            gateway_names=["llm.example"],
            inference_engine="none",
            host_computer_name="studio-1",
            host_wired_memory="48GiB",
            host_users=[{"name": "ada", "ssh_keys": ["ssh-ed25519 AAAA ada"]}],
            power_caffeinate=True,
        )
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-o", "python_files=checks.py"]
        done = subprocess.run(
            [*command, "--boxwright-inventory", str(inventory), *self.ROLES],
            cwd=repository_root(),
            env={**os.environ, "BOXWRIGHT_STATE_DIR": str(tmp_path / "state")},
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.findall(r"::(test_\w+)\S* (PASSED|FAILED|SKIPPED|ERROR)", done.stdout)
        assert found, done.stdout + done.stderr
        return dict(found), done.stdout

    def test_right_and_wrong(self, studio, tmp_path):
        studio.set(full_disk_access=True, filevault=False)
        user = {"name": "ada", "ssh_keys": ["ssh-ed25519 AAAA ada"]}
        box = a_mac(host_computer_name="studio-1", host_wired_memory="48GiB", host_users=[user], power_caffeinate=True)

        def deploy():
            from roles.host import darwin

            darwin.configure(box)
            darwin.activate(box)
            power.configure(box)
            power.activate(box)

        result = run(deploy, studio.answer, system="darwin")
        assert result.ok, result.printed
        outcomes, printed = self.verify(studio, tmp_path)
        assert [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")] == [], printed
        right = {name for name, outcome in outcomes.items() if outcome == "PASSED"}
        wanted = "awake starts_again serves_after_a_power_cut kept_awake name_of_a_mac memory_for_graphics remote_login"
        wanted += " models_are_not_indexed models_are_not_backed_up clock_of_a_mac timezone_of_a_mac users_of_a_mac"
        assert {f"test_{name}" for name in wanted.split()} <= right, printed
        # Those of Linux are not even tried.
        assert "test_no_failed_unit" not in outcomes
        studio.set(filevault=True)
        studio.sh(
            "pmset -c sleep 10 autorestart 0; sysctl iogpu.wired_limit_mb=0; scutil --set ComputerName other; "
            "rm /var/lib/boxwright/.metadata_never_index; systemsetup -setusingnetworktime Off; "
            "launchctl disable system/com.openssh.sshd; chmod o+w /var/lib/boxwright/pmset"
        )
        outcomes, printed = self.verify(studio, tmp_path)
        assert {name for name, outcome in outcomes.items() if outcome == "FAILED"} == {
            "test_awake",
            "test_starts_again",
            "test_serves_after_a_power_cut",
            "test_memory_for_graphics",
            "test_name_of_a_mac",
            "test_models_are_not_indexed",
            "test_clock_of_a_mac",
            "test_remote_login",
            "test_nothing_of_ours_is_open_to_all",
        }, printed
