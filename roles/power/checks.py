"""What must hold of a Mac that serves unattended."""

import re
from typing import Any

import pytest


def _on_ac(host: Any) -> dict[str, str]:
    """What pmset shows for AC power, by name."""
    text = host.check_output("pmset -g custom")
    section = text.partition("AC Power:")[2]
    section = re.split(r"^\S.*:\s*$", section, maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\s*(\S.*?)\s+(\d+)(?:\s+\(.*)?$", section, re.MULTILINE))


def test_awake(host: Any, box: Any) -> None:
    """The Mac does not sleep on AC power."""
    if box.host.sleep != "never":
        pytest.skip("the Mac may sleep (host_sleep)")
    assert _on_ac(host)["sleep"] == "0"
    assert re.search(r"^\s*SleepDisabled\s+1$", host.check_output("pmset -g"), re.MULTILINE)


def test_starts_again(host: Any, box: Any) -> None:
    """The Mac starts by itself when power comes back."""
    if box.power.start_up == "as_is":
        pytest.skip("System Settings decides when the Mac starts (power_start_up)")
    shown = _on_ac(host)
    on = [name for name in ("autorestart", "autorestartatconnect") if shown.get(name) == "1"]
    assert on == ["autorestart" if box.power.start_up == "after_power_failure" else "autorestartatconnect"]


def test_serves_after_a_power_cut(host: Any, box: Any) -> None:
    """FileVault does not keep the Mac from serving after a start: nobody has to give a password first."""
    said = host.run("fdesetup status").stdout.strip()
    if box.power.accept_filevault:
        pytest.skip(f"accepted (power_accept_filevault): after each start somebody must unlock the Mac. {said}")
    assert said.startswith("FileVault is Off.")
    assert "will be enabled" not in said


def test_updates_do_not_restart_it(host: Any) -> None:
    """macOS does not restart by itself to install updates."""
    updates = "/Library/Preferences/com.apple.SoftwareUpdate AutomaticallyInstallMacOSUpdates"
    if host.run(f"defaults read {updates}").stdout.strip() == "1":
        pytest.skip("it does, by System Settings > General > Software Update: expect some minutes without an answer")


def test_nobody_is_signed_in(host: Any) -> None:
    """Nobody is signed in at each start without a password."""
    found = host.run("defaults read /Library/Preferences/com.apple.loginwindow autoLoginUser")
    if found.rc == 0 and found.stdout.strip():
        pytest.skip(f"{found.stdout.strip()} is (System Settings > Users & Groups); boxwright does not need it")


def test_kept_awake(host: Any, box: Any) -> None:
    """caffeinate keeps the Mac awake."""
    if not box.power.caffeinate:
        pytest.skip("power_caffeinate is false")
    assert re.search(r"^\s*PreventSystemSleep\s+1$", host.check_output("pmset -g assertions"), re.MULTILINE)
