"""What facts make of what a box answers: the lines are those of real Debian machines; anything else is an error."""

import json

import pytest
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts import accounts, apt, docker, files, python_packages, services, system
from boxwright.facts.files import FileState

DIGEST = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("absent", FileState("absent")),
        (f"regular empty file|root|caddy|640|0|{DIGEST}", FileState("file", "root", "caddy", 0o640, 0, DIGEST)),
        (f"regular file|root|root|4755|12|{DIGEST}", FileState("file", "root", "root", 0o4755, 12, DIGEST)),
        ("directory|ada|ada|1777|4096|", FileState("directory", "ada", "ada", 0o1777, 4096)),
        ("symbolic link|root|root|777|3|", FileState("link", "root", "root", 0o777, 3)),
        ("socket|root|root|755|0|", FileState("other", "root", "root", 0o755)),
        # BSD's stat: the kind in other letters, and once more in the mode.
        (f"Regular File|root|wheel|100644|5|{DIGEST}", FileState("file", "root", "wheel", 0o644, 5, DIGEST)),
        ("Directory|_caddy|_caddy|41777|64|", FileState("directory", "_caddy", "_caddy", 0o1777, 64)),
        ("Symbolic Link|root|wheel|120755|11|", FileState("link", "root", "wheel", 0o755, 11)),
        ("Fifo File|root|wheel|10644|0|", FileState("other", "root", "wheel", 0o644)),
    ],
)
def test_file(line, state):
    assert files.File().process([line]) == state


def test_download():
    line = "regular file|root|root|644|5|"
    for verdict, verified, remembered in (("remembered", 1, 1), ("verified", 1, 0), ("wrong", 0, 0)):
        found = files.DownloadedFile().process([line, verdict])
        assert (found.verified, found.remembered) == (bool(verified), bool(remembered))
    assert not files.DownloadedFile().process(["absent"]).verified


SERVICE = """\
MainPID=321
LoadState=loaded
ActiveState=active
FragmentPath=/etc/systemd/system/caddy.service
UnitFileState=enabled
InvocationID=27da2905c775427696f236e99fa4abc3
SubState=running
NeedDaemonReload=no
executable=/opt/boxwright/caddy/bin/caddy (deleted)
started=27da2905c775427696f236e99fa4abc3 0466f07533e32a71
started=87428fc  /etc/a b=c
started=absent  /etc/systemd/system/caddy.service.d/*.conf
loaded=27da2905c775427696f236e99fa4abc3 0466f07533e32a71
started_now=87428fc  /etc/a b=c
started_now=absent  /etc/systemd/system/caddy.service.d/*.conf
loaded_now=abc  /etc/caddy/Caddyfile
"""


def test_service():
    found = services.ServiceStatus().process(SERVICE.splitlines())
    assert (found.load, found.active, found.sub, found.enabled) == ("loaded", "active", "running", "enabled")
    assert not found.needs_reload
    assert found.executable.endswith(" (deleted)")
    assert found.started == services.Record(found.invocation, "0466f07533e32a71", found.started_now)
    assert found.started_now[0] == "87428fc  /etc/a b=c"
    assert (found.loaded.files, found.loaded_now) == ((), ("abc  /etc/caddy/Caddyfile",))


def test_service_that_systemd_does_not_know():
    text = "LoadState=not-found\nActiveState=inactive\nSubState=dead\nNeedDaemonReload=no\nMainPID=0"
    found = services.ServiceStatus().process(text.splitlines())
    assert (found.load, found.enabled, found.started, found.started_now) == ("not-found", "", None, ())


def test_unit_and_traces():
    found = services.Unit().process(["absent", f"regular file|root|root|644|5|{DIGEST}", "NeedDaemonReload=yes"])
    assert ([state.kind for state in found.files], found.needs_reload) == (["absent", "file"], True)
    text = "ActiveState=active\nNeedDaemonReload=no\nFragmentPath=/x\npath=/a b\npath=/c"
    traces = services.Traces().process(text.splitlines())
    assert (traces.paths, traces.active, traces.fragment) == (("/a b", "/c"), "active", "/x")


def test_packages():
    lines = ["installed curl", "broken libfoo:amd64", "interrupted", "recorded jq asked", "recorded libjq1 dependency"]
    found = apt.Packages().process([*lines, "end"])
    assert found == apt.PackageState(
        frozenset({"curl"}), ("libfoo:amd64",), True, (("jq", "asked"), ("libjq1", "dependency"))
    )


def test_accounts():
    text = """\
accounts
passwd ada:x:1002:1002:Ada, L:/home/ada:/bin/bash
groups ada adm
group ada
keys
key # BEGIN
key ssh-ed25519 AAAA ada@x

sudoers regular file|root|root|440|46|abc
passwd caddy:x:995:995::/var/lib/caddy:/usr/sbin/nologin
groups caddy
group caddy
sudoers absent
"""
    found = accounts.Accounts().process(text.splitlines())
    assert found["ada"].keys == ("# BEGIN", "ssh-ed25519 AAAA ada@x")
    assert found["ada"].groups == {"ada", "adm"}
    assert found["ada"].sudoers.mode == 0o440
    assert (found["caddy"].keys, found["caddy"].home, found["caddy"].uid) == (None, "/var/lib/caddy", 995)


def test_accounts_of_a_mac():
    text = """\
accounts
account ada
record NFSHomeDirectory: /Users/ada
record UniqueID: 502
record UserShell: /bin/zsh
record No such key: IsHidden
groups staff everyone admin
group staff
sudoers Regular File|root|wheel|100440|46|abc
shut_out
account _caddy
record dsAttrTypeNative:IsHidden: 1
record NFSHomeDirectory:
record  /var/lib/boxwright/a folder
record UniqueID: 301
record UserShell: /usr/bin/false
groups _caddy everyone
group _caddy
account _half
record No such key: UniqueID
record UserShell: /usr/bin/false
"""
    found = accounts.Accounts().process(text.splitlines())
    ada, caddy, half = found["ada"], found["_caddy"], found["_half"]
    assert (ada.uid, ada.home, ada.shell, ada.hidden, ada.let_in) == (502, "/Users/ada", "/bin/zsh", False, False)
    assert (ada.group, "admin" in ada.groups, ada.sudoers.group) == ("staff", True, "wheel")
    assert (caddy.uid, caddy.home, caddy.hidden, caddy.let_in) == (301, "/var/lib/boxwright/a folder", True, True)
    assert (half.uid, half.home, half.shell) == (-1, "", "/usr/bin/false")


def test_time_zone():
    answer = ["localtime=/var/db/timezone/zoneinfo/Europe/Berlin", "timezone="]
    assert system.TimeZone().process(answer) == ("Europe/Berlin", "")
    answer = ["localtime=/usr/share/zoneinfo/Etc/UTC", "timezone="]
    assert system.TimeZone().process(answer) == ("Etc/UTC", "")
    answer = ["localtime=../usr/share/zoneinfo/Europe/Berlin", "timezone=Europe/Berlin"]
    assert system.TimeZone().process(answer) == ("Europe/Berlin", "Europe/Berlin")


def test_images():
    assert docker.Image().process(["absent"]) == docker.ImageState()
    why = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running? "
    assert docker.Image().process([f"unavailable {why}"]).unavailable.startswith("Cannot connect")
    found = docker.Image().process(["image sha256:74713 10.0.0.3:5000/ghcr.io/d/tiny@sha256:05c03"])
    assert (found.id, found.digests) == ("sha256:74713", ("sha256:05c03",))


def test_network():
    answer = {
        "Id": "080f",
        "Driver": "bridge",
        "Internal": False,
        "IPAM": {"Driver": "default", "Config": [{"Subnet": "172.30.98.0/24", "Gateway": "172.30.98.1"}]},
        "Options": {"com.docker.network.bridge.name": "br-d"},
        "Containers": {},
    }
    found = docker.Network().process([f"network {json.dumps(answer)}"])
    assert (found.subnets, found.gateways, found.bridge) == (("172.30.98.0/24",), ("172.30.98.1",), "br-d")
    answer["Options"] = None
    answer["IPAM"]["Config"] = None
    found = docker.Network().process([f"network {json.dumps(answer)}"])
    assert (found.subnets, found.bridge) == ((), "")


COMPOSE = """\
service side
service web
outdated d-web-1
container b151|side|/d-side-1|running||sha256:74|ghcr.io/d/tiny:1|ea4b|d-net=ea4b,|False
container e9b6|web|/d-web-1|running|healthy|sha256:74|ghcr.io/d/tiny:1|ea4b|d-net=ea4b,other=77,|False
container e9b7|web|/d-web-run-1|exited||sha256:74|ghcr.io/d/tiny:1|ea4b|d-net=ea4b,|True
image ghcr.io/d/tiny:1|sha256:74
network d-net|ea4b
"""


def test_compose_project():
    found = docker.ComposeProject().process(COMPOSE.splitlines())
    assert (found.services, found.outdated) == (("side", "web"), {"d-web-1"})
    assert [container.name for container in found.containers] == ["d-side-1", "d-web-1"], "one-off runs do not count"
    assert found.containers[1].networks == {"d-net": "ea4b", "other": "77"}
    assert docker.ComposeProject().process(["problem no such file"]).problem == "no such file"


@pytest.mark.parametrize(
    ("fact", "lines"),
    [
        (files.File, ["regular file|root|root"]),
        (files.File, ["Permission denied"]),
        (files.DownloadedFile, ["regular file|root|root|644|5|", "perhaps"]),
        (files.Leftovers, ["/a/path"]),
        (files.Json, ["absent", "what"]),
        (files.Json, ["absent", "record {broken"]),
        (services.ServiceStatus, ["System has not been booted with systemd"]),
        (services.ServiceStatus, ["LoadState=loaded"]),
        (services.Unit, ["absent", "absent"]),
        (services.Traces, ["ActiveState=active"]),
        (apt.Packages, ["installed curl"]),
        (apt.Packages, ["dpkg-query: error", "end"]),
        (accounts.Accounts, ["passwd a:x:1:1::/:/bin/sh"]),
        (accounts.Accounts, ["accounts", "Segmentation fault"]),
        (accounts.Accounts, ["accounts", "account a", "record Data source (/Local/Default) is not valid."]),
        (system.TimeZone, ["readlink: not found"]),
        (docker.Image, ["Segmentation fault"]),
        (docker.Network, ["network {}"]),
        (docker.Network, ["network [broken"]),
        (docker.ComposeProject, ["time=now level=warning"]),
        (docker.ComposeTraces, ["container x"]),
        (python_packages.VirtualEnvironment, ["Traceback"]),
        (files.Entries, ["a"]),
    ],
)
def test_an_answer_that_is_not_understood_is_not_taken_for_nothing(fact, lines):
    with pytest.raises(FactProcessError):
        fact().process(lines)
