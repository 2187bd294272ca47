"""What a Mac prints, for several releases of macOS, and what follows from it. The texts are those that the commands of
macOS print, blanks and tabs included.
"""

import plistlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.exceptions import FactProcessError

from boxwright import kept, unattended
from boxwright.errors import Refused
from boxwright.facts import application_firewall, homebrew, mac
from boxwright.facts.homebrew import BrewState
from boxwright.facts.mac import QuietState
from boxwright.facts.pmset import Pmset, PowerState, parse_capable, parse_values
from boxwright.facts.unattended import StartState, Unattended, parse_schedule
from boxwright.inventory import load
from boxwright.operations.homebrew import unusable
from boxwright.operations.mac import quiet_actions
from boxwright.operations.pmset import possible
from boxwright.preflight import Machine
from boxwright.settings import parse_box
from roles.host import darwin
from roles.power import tasks as power
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
STUDIO = Machine("Darwin", "arm64", "macos", "26.5.2", systemd=False, memory=128 * 2**30, disk_free=2**40)


def a_box(*groups: str, **variables: Any) -> Box:
    defaults = {"gateway_names": ["llm.example"], "inference_models": [MODEL]}
    return parse_box(Box, "box", groups, {**defaults, **variables}, None, None)


def a_mac(**variables: Any) -> Box:
    return a_box("darwin", **variables)


# pmset -g, of a Mac that was told once not to sleep, while caffeinate runs; and of one that never was.
LIVE = """\
System-wide power settings:
 SleepDisabled\t\t1
Currently in use:
 standby              0
 Sleep On Power Button 1
 autorestart          1
 powernap             1
 hibernatefile        /var/vm/sleepimage
 sleep                0 (sleep prevented by powerd, caffeinate)
 displaysleep         90 (display sleep prevented by screensharingd)
"""
LIVE_FRESH = LIVE.partition("Currently")[1] + LIVE.partition("Currently")[2]
# pmset -g custom of a Mac Studio with M2 Max and macOS 26.5.2; with a UPS at it.
CUSTOM = """\
AC Power:
 Sleep On Power Button 1
 autorestartatconnect 0
 lowpowermode         0
 standby              0
 ttyskeepawake        1
 powernap             1
 displaysleep         90
 womp                 1
 networkoversleep     0
 sleep                1
 tcpkeepalive         1
 autorestart          1
 disksleep            10
"""
CUSTOM_UPS = "UPS Power:\n sleep                10\n womp                 0\n" + CUSTOM
CAPABLE = """\
Capabilities for AC Power:
 displaysleep
 disksleep
 sleep
 womp
 autorestart
 autorestartatconnect
 powernap
 standby
 ttyskeepawake
 tcpkeepalive
 lowpowermode
"""


def pmset(live: str = LIVE, custom: str = CUSTOM, cap: str = CAPABLE, record: str = "") -> PowerState:
    parts = {"live": live, "custom": custom, "cap": cap, "record": record}
    return Pmset().process([f"{part}|{line}" for part, text in parts.items() for line in text.splitlines()] + ["end"])


class TestPmset:
    def test_values_stand_where_they_belong(self) -> None:
        """Names with blanks, values with a reason behind them, a path, and another source of power before ours."""
        found = parse_values(LIVE.splitlines(), "Currently in use")
        assert (found["sleep"], found["displaysleep"], found["Sleep On Power Button"]) == ("0", "90", "1")
        assert "hibernatefile" not in found
        assert "SleepDisabled" not in found
        for custom in (CUSTOM, CUSTOM_UPS):
            assert pmset(custom=custom).values["sleep"] == "1"
            assert pmset(custom=custom).values["womp"] == "1"
            assert len(pmset(custom=custom).values) == 14

    def test_disablesleep_shows_elsewhere(self) -> None:
        assert pmset().values["disablesleep"] == "1"
        assert pmset(LIVE.replace("\t\t1", "\t\t0")).values["disablesleep"] == "0"
        # Absent until it was set once.
        assert pmset(LIVE_FRESH).values["disablesleep"] == "0"

    def test_capabilities_are_whole_names(self) -> None:
        assert "powermode" not in parse_capable(CAPABLE.splitlines())
        assert "lowpowermode" in parse_capable(CAPABLE.splitlines())

    @pytest.mark.parametrize("output", [["live|x"], ["what|x", "end"], ["live|x", "end"]])
    def test_what_is_no_answer(self, output: list[str]) -> None:
        with pytest.raises(FactProcessError):
            Pmset().process(output)

    def test_what_a_mac_lacks(self) -> None:
        older = pmset(
            custom=CUSTOM.replace(" autorestartatconnect 0\n", ""), cap=CAPABLE.replace(" autorestartatconnect\n", "")
        )
        wanted = {"sleep": 0, "disablesleep": 1, "autorestart": 1, "autorestartatconnect": 0, "highpowermode": 1}
        can, missing = possible(older, wanted)
        assert can == {"sleep": "0", "disablesleep": "1", "autorestart": "1"}
        assert missing == ("highpowermode",)
        assert possible(older, {"autorestartatconnect": 1}) == ({}, ("autorestartatconnect",))


class TestKept:
    """What is set, noted and put back."""

    def test_set_noted_and_put_back(self) -> None:
        before = {"sleep": "1", "womp": "1", "disablesleep": "0"}
        way = kept.changes(before, {}, {"sleep": "0", "womp": "1", "disablesleep": "1"})
        # What was right before is not ours.
        assert (way.new, way.recorded) == (
            {"sleep": "0", "disablesleep": "1"},
            {"sleep": ("1", "0"), "disablesleep": ("0", "1")},
        )
        after = {**before, **way.new}
        assert not kept.changes(after, way.recorded, {"sleep": "0", "womp": "1", "disablesleep": "1"})
        back = kept.changes(after, way.recorded, {})
        assert (back.back, back.new, back.recorded) == ({"sleep": "1", "disablesleep": "0"}, {}, {})
        assert bool(back)

    def test_drift_keeps_the_first_note(self) -> None:
        way = kept.changes({"sleep": "10"}, {"sleep": ("1", "0")}, {"sleep": "0"})
        assert (way.new, way.recorded) == ({"sleep": "0"}, {"sleep": ("1", "0")})

    def test_what_somebody_changed_since_stays(self) -> None:
        way = kept.changes({"sleep": "10"}, {"sleep": ("1", "0")}, {})
        assert (way.back, way.recorded, bool(way)) == ({}, {}, True)

    def test_never_both_that_exclude_each_other(self) -> None:
        way = kept.changes(
            {"autorestart": "1", "autorestartatconnect": "0"}, {}, {"autorestartatconnect": "1", "autorestart": "0"}
        )
        assert list(way.new) == ["autorestart", "autorestartatconnect"]

    def test_the_note(self) -> None:
        assert kept.parse_recorded(["server|time.apple.com|192.0.2.1"]) == {"server": ("time.apple.com", "192.0.2.1")}
        with pytest.raises(FactProcessError):
            kept.parse_recorded(["sleep 1 0"])


class TestPower:
    def test_by_default(self) -> None:
        assert power.settings(a_mac()) == {
            "sleep": 0,
            "disablesleep": 1,
            "autorestart": 1,
            "autorestartatconnect": 0,
            "womp": 1,
        }

    def test_what_is_declared_and_nothing_else(self) -> None:
        box = a_mac(
            host_sleep="as_is",
            power_start_up="as_is",
            power_wake_on_network=False,
            power_display_sleep=10,
            power_nap=False,
            power_tcp_keep_alive=True,
        )
        assert power.settings(box) == {"womp": 0, "displaysleep": 10, "powernap": 0, "tcpkeepalive": 1}

    @pytest.mark.parametrize("start_up", ["after_power_failure", "when_connected"])
    def test_one_of_two(self, start_up: str) -> None:
        settings = power.settings(a_mac(power_start_up=start_up))
        assert settings["autorestart"] + settings["autorestartatconnect"] == 1


class TestStart:
    @pytest.mark.parametrize(
        ("text", "on"),
        [
            ("Automatic checking for updates is turned on", True),
            ("Automatic checking for updates is turned off", False),
            ("Software Update Tool", None),
            ("", None),
        ],
    )
    def test_schedule(self, text: str, on: bool | None) -> None:
        assert parse_schedule(text) is on

    def test_all_in_one_answer(self) -> None:
        output = ["filevault=FileVault is Off.", "schedule=Automatic checking for updates is turned on"]
        found = Unattended().process([*output, "updates=1", "responses=0", "login=ada", "end"])
        assert found == StartState("off", "FileVault is Off.", True, True, False, "ada")
        # Where macOS keeps no such setting, nothing is claimed.
        assert Unattended().process([*output, "end"]) == StartState("off", "FileVault is Off.", True)
        with pytest.raises(FactProcessError):
            Unattended().process(output)

    def test_filevault_is_refused_until_it_is_accepted(self) -> None:
        problem = unattended.problem("on", accepted=False)
        assert problem is not None
        assert (problem.code, problem.variable) == ("BW119", "power_accept_filevault")
        assert "power_accept_filevault: true" in str(problem.help)
        assert unattended.problem("on", accepted=True) is None
        assert unattended.problem("off", accepted=False) is None
        assert unattended.problem("", accepted=False) is None

    def test_what_is_said(self) -> None:
        assert list(unattended.words(StartState("off", "FileVault is Off.", True, False, True, ""))) == []
        said = " | ".join(unattended.words(StartState("on", "FileVault is On.", True, True, False, "ada")))
        for words in ("over SSH with a password", "restarts for them", "security responses", "ada is signed in"):
            assert words in said
        assert "said: nothing" in next(unattended.words(StartState("", "")))
        assert "somebody else must" in next(unattended.words(StartState("off", "", looks_for_updates=False)))

    def test_who_looks(self) -> None:
        (starts,) = power.need(a_mac()).conditions
        assert [problem.code for problem in starts(replace(STUDIO, filevault="on"))] == ["BW119"]
        assert list(starts(replace(STUDIO, filevault="off"))) == []
        (starts,) = power.need(a_mac(power_accept_filevault=True)).conditions
        assert list(starts(replace(STUDIO, filevault="on"))) == []
        assert power.need(a_mac(power_enabled=False)).conditions == ()
        assert power.need(a_box()).conditions == ()


# socketfilterfw --listapps
APPS_14 = (
    "ALF: total number of apps = 3 \n\n"
    "1 :  /opt/boxwright/caddy/bin/caddy \n \t ( Allow incoming connections ) \n\n"
    "2 :  /usr/libexec/sshd-keygen-wrapper \n \t ( Allow incoming connections ) \n\n"
    "3 :  /Applications/A Program.app \n \t ( Block incoming connections ) \n\n"
)
APPS_15 = (
    "Total number of apps = 3\n"
    "1 : /opt/boxwright/caddy/bin/caddy\n             (Allow incoming connections)\n"
    "2 : /usr/libexec/sshd-session\n             (Block incoming connections)\n"
    "3 : /Applications/A Program.app\n             (Block incoming connections)\n"
)


class TestApplicationFirewall:
    @pytest.mark.parametrize(
        ("text", "state"),
        [
            ("Firewall is enabled. (State = 1)", 1),
            ("Firewall is enabled. (State = 2)", 2),
            ("Firewall is disabled. (State = 0)", 0),
        ],
    )
    def test_state(self, text: str, state: int) -> None:
        assert application_firewall.parse_state(text) == state

    def test_what_is_no_state(self) -> None:
        with pytest.raises(FactProcessError):
            application_firewall.parse_state("Firewall settings cannot be read")

    @pytest.mark.parametrize("text", [APPS_14, APPS_15])
    def test_programs(self, text: str) -> None:
        found = application_firewall.parse_programs(text.splitlines())
        assert found["/opt/boxwright/caddy/bin/caddy"] is True
        assert found["/Applications/A Program.app"] is False
        assert len(found) == 3

    def test_names_without_a_path_are_left_out(self) -> None:
        text = "Total number of apps = 2\nsshd-keygen-wrapper (state: 1)\nGoogle Chrome (state: 4)\n"
        assert application_firewall.parse_programs(text.splitlines()) == {}

    def test_all_in_one_answer(self) -> None:
        lines = ["state|Firewall is enabled. (State = 1)", *(f"program|{line}" for line in APPS_15.splitlines())]
        found = application_firewall.ApplicationFirewall().process([*lines, "record|added /opt/x y", "end"])
        assert (found.state, found.recorded, len(found.programs)) == (1, {"/opt/x y": "added"}, 3)


class TestHomebrew:
    def test_what_it_says(self) -> None:
        output = ["person=ada", "recorded=jq asked", "recorded=oniguruma dependency", "owner=ada"]
        output += ["installed=jq", "installed=python@3.13", "pinned=jq", "end"]
        found = homebrew.Homebrew().process(output)
        assert (found.owner, found.person, found.installed, found.pinned) == (
            "ada",
            "ada",
            {"jq", "python@3.13"},
            {"jq"},
        )
        assert found.recorded == (("jq", "asked"), ("oniguruma", "dependency"))
        with pytest.raises(FactProcessError):
            homebrew.Homebrew().process(output[:-1])

    @pytest.mark.parametrize(
        ("owner", "person", "words"),
        [
            ("ada", "ada", ""),
            ("", "ada", "Homebrew is not installed"),
            ("ada", "bob", "`sudo chown -R bob /opt/homebrew`"),
            ("root", "root", "refuses to run so"),
        ],
    )
    def test_who_may_use_it(self, owner: str, person: str, words: str) -> None:
        said = unusable(BrewState(owner, person))
        assert words in said
        assert bool(words) == bool(said)

    def test_a_formula_of_a_tap(self) -> None:
        assert homebrew.short("user/tap/formula") == "formula"
        assert homebrew.short("python@3.13") == "python@3.13"


class TestMac:
    def test_network_time(self) -> None:
        lines = ["said|Network Time: On", "said|Network Time Server: time.apple.com", "end"]
        assert mac.NetworkTime().process(lines).values == {"using": "on", "server": "time.apple.com"}
        # What systemsetup says without root, on standard output and with success.
        with pytest.raises(FactProcessError):
            mac.NetworkTime().process(["said|You need administrator access to run this tool... exiting!", "end"])

    def test_names_of_a_fresh_mac(self) -> None:
        assert mac.ComputerNames().process(["name|ComputerName=Mac Studio (2)", "end"]) == {
            "ComputerName": "Mac Studio (2)"
        }

    @pytest.mark.parametrize(
        ("status", "row", "state"),
        [
            ("0", '\t\t"com.apple.screensharing" => enabled', (True, True)),
            ("113", '\t\t"com.apple.screensharing" => disabled', (False, False)),
            ("113", '\t\t"com.apple.screensharing" => true', (False, False)),
            ("0", '\t\t"com.apple.screensharing" => false', (True, True)),
            ("113", '\t\t"com.apple.ftpd" => disabled', (False, False)),
        ],
    )
    def test_screen_sharing(self, status: str, row: str, state: tuple[bool, bool]) -> None:
        lines = ["", "\tdisabled services = {", row, "\t}"]
        found = mac.ScreenSharing().process([f"loaded|{status}", *(f"disabled|{line}" for line in lines), "end"])
        assert (found.loaded, found.enabled) == state
        assert not found.ours

    def test_any_other_failure_says_nothing(self) -> None:
        with pytest.raises(FactProcessError):
            mac.ScreenSharing().process(["loaded|1", "end"])

    def test_wired_limit(self) -> None:
        assert mac.WiredLimit().process(["value|0", "end"]).values == {"iogpu.wired_limit_mb": "0"}
        # A virtual Mac.
        assert mac.WiredLimit().process(["end"]).values == {}


class TestQuietFolders:
    def state(self, **changed: Any) -> QuietState:
        empty: dict[str, Any] = {"absent": (), "indexed": (), "included": (), "recorded": (), "may_ask": False}
        return QuietState(**{**empty, **changed})

    def test_marked_and_excluded(self) -> None:
        found = self.state(indexed=("/a",), included=("/a", "/b"))
        assert quiet_actions(found, ["/a", "/b"]) == [("mark", "/a"), ("exclude", "/a"), ("exclude", "/b")]
        assert quiet_actions(self.state(), ["/a", "/b"]) == []

    def test_a_refusal_is_not_tried_again_without_the_access(self) -> None:
        found = self.state(included=("/a",), recorded=(("refused", "/a"),))
        assert quiet_actions(found, ["/a"]) == []
        found = self.state(included=("/a",), recorded=(("refused", "/a"),), may_ask=True)
        assert quiet_actions(found, ["/a"]) == [("exclude", "/a")]

    def test_only_what_is_ours_is_taken_back(self) -> None:
        found = self.state(recorded=(("mark", "/a"), ("excluded", "/a"), ("mark", "/b")))
        assert quiet_actions(found, ["/b"]) == [("unmark", "/a"), ("include", "/a")]

    def test_parsed(self) -> None:
        lines = ["indexed|/a b", "included|/a b", "record|excluded /c d", "access|yes", "end"]
        assert mac.QuietFolders().process(lines) == self.state(
            indexed=("/a b",), included=("/a b",), recorded=(("excluded", "/c d"),), may_ask=True
        )


class TestHost:
    def test_memory_for_graphics(self) -> None:
        box = a_mac(host_wired_memory="112GiB")
        assert darwin.wired_megabytes(box) == 114688
        (fits,) = darwin.need(box).conditions
        assert list(fits(STUDIO)) == []
        daemon = plistlib.loads(darwin.wired_daemon(114688).encode())
        assert daemon["ProgramArguments"] == ["/usr/sbin/sysctl", "iogpu.wired_limit_mb=114688"]
        assert daemon["RunAtLoad"] is True
        # It ends at once: kept alive, it would be started every ten seconds.
        assert "KeepAlive" not in daemon

    def test_more_than_can_be_spared(self) -> None:
        (fits,) = darwin.need(a_mac(host_wired_memory="121GiB")).conditions
        (problem,) = fits(STUDIO)
        assert (problem.code, problem.variable) == ("BW120", "host_wired_memory")
        assert "120.0 GiB at most" in str(problem.help)
        with pytest.raises(Refused) as refused:
            a_mac(host_wired_memory="60GiB", host_memory="64GiB")
        assert [problem.code for problem in refused.value.problems] == ["BW120"]
        assert a_mac(host_wired_memory="56GiB", host_memory="64GiB").host.wired_memory

    def test_folders(self) -> None:
        assert darwin.quiet_folders(a_mac(host_model_folders=["/Users/Shared/models"])) == (
            "/var/lib/boxwright",
            "/Users/Shared/models",
        )
        with pytest.raises(Refused):
            a_mac(host_model_folders=["models"])

    def test_one_time_server(self) -> None:
        with pytest.raises(Refused) as refused:
            a_mac(host_time_servers=["192.0.2.1", "192.0.2.2"])
        assert refused.value.problems[0].variable == "host_time_servers"
        assert a_box(host_time_servers=["192.0.2.1", "192.0.2.2"])

    @pytest.mark.parametrize("name", ["Studio 1", "-a", "a.b", "a" * 64])
    def test_names_that_no_network_knows(self, name: str) -> None:
        with pytest.raises(Refused):
            a_mac(host_computer_name=name)


class TestSystems:
    """Roles and variables that one of the systems does not have."""

    def test_a_mac_is_right_without_a_word(self) -> None:
        box = a_mac()
        assert not box.docker.enabled
        assert box.openwebui.native(box)
        assert box.power.enabled
        assert [role for role in Box.model_fields if role not in ("name", "groups") and not box.has(role)] == [
            "nvidia",
            "docker",
            "vllm",
            "fail2ban",
            "sshd",
            "firewall",
        ]

    def test_linux_is_as_it_was(self) -> None:
        box = a_box()
        assert box.docker.enabled
        assert box.openwebui.enabled
        assert not box.power.enabled
        assert not box.has("power")

    @pytest.mark.parametrize(
        ("groups", "variables", "variable", "words"),
        [
            (["darwin"], {"docker_enabled": True}, "docker_enabled", "group_vars/darwin.yml"),
            (["darwin"], {"nvidia_enabled": True}, "nvidia_enabled", "on a Mac"),
            (["darwin"], {"firewall_enabled": True}, "firewall_enabled", "on a Mac"),
            (["darwin"], {"fail2ban_enabled": True}, "fail2ban_enabled", "on a Mac"),
            (["darwin"], {"sshd_enabled": "yes"}, "sshd_enabled", "on a Mac"),
            (["darwin"], {"host_unattended_upgrades": "security"}, "host_unattended_upgrades", "group_vars/linux.yml"),
            ([], {"power_enabled": True}, "power_enabled", "group `darwin`"),
            ([], {"host_screen_sharing": True}, "host_screen_sharing", "group_vars/darwin.yml"),
            ([], {"host_wired_memory": "8GiB"}, "host_wired_memory", "on Linux"),
            ([], {"host_model_folders": ["/models"]}, "host_model_folders", "on Linux"),
        ],
    )
    def test_refused(self, groups: list[str], variables: dict[str, Any], variable: str, words: str) -> None:
        with pytest.raises(Refused) as refused:
            a_box(*groups, **variables)
        (problem,) = [problem for problem in refused.value.problems if problem.code == "BW027"]
        assert problem.variable == variable
        assert words in f"{problem.message} {problem.help}"

    def test_where_it_was_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
        (tmp_path / "hosts.yml").write_text("darwin:\n  hosts:\n    studio:\n    mini:\nlinux:\n  hosts:\n    pc:\n")
        (tmp_path / "group_vars").mkdir()
        common = "gateway_names: [llm.example]\ninference_engine: none\nfirewall_enabled: true\n"
        (tmp_path / "group_vars" / "all.yml").write_text(common)
        (tmp_path / "group_vars" / "linux.yml").write_text("host_screen_sharing: true\n")
        with pytest.raises(Refused) as refused:
            load(tmp_path / "hosts.yml")
        found = {
            (problem.host, problem.variable, Path(problem.location.path).name, problem.location.line)
            for problem in refused.value.problems
            if problem.location
        }
        assert found == {
            ("studio, mini", "firewall_enabled", "all.yml", 3),
            ("pc", "host_screen_sharing", "linux.yml", 1),
        }

    def test_an_engine(self) -> None:
        folder = {"name": "local-llm", "path": "/srv/model", "size": 1000}
        with pytest.raises(Refused) as refused:
            a_mac(inference_engine="vllm", inference_models=[folder])
        (problem,) = [problem for problem in refused.value.problems if problem.code == "BW027"]
        assert problem.variable == "inference_engine"
        assert "llamacpp, ollama, lmstudio, mlx" in str(problem.help)

    @pytest.mark.parametrize(
        "variables",
        [
            {"docker_enabled": False},
            {"host_unattended_upgrades": "as_is"},
            # For another kind of host in the same file; nothing is switched on by it.
            {"docker_repository": "docker", "firewall_allow": [{"port": "80", "sources": ["192.0.2.0/24"]}]},
        ],
    )
    def test_what_says_nothing_else_is_accepted(self, variables: dict[str, Any]) -> None:
        assert a_mac(**variables).docker.enabled is False
