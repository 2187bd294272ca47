"""What is to be done, from what was found: pure functions, one row for each thing that can be the matter."""

from dataclasses import replace

import pytest
from harness import run
from pyinfra.api.exceptions import OperationValueError

from boxwright.artifacts import MirrorSettings
from boxwright.facts.docker import ComposeState, Container, ImageState
from boxwright.facts.services import Record, ServiceState
from boxwright.operations import apt, docker, python_packages, system, users
from boxwright.operations.api import Content
from boxwright.operations.systemd import needed, stale
from boxwright.services import PackagedService, Service
from boxwright.systemd import identity

SERVICE = Service(
    name="x",
    description="x",
    command=("/bin/x",),
    restart_files=("/a",),
    reload_files=("/b",),
    reload_command=("/bin/true",),
)
GOOD = ServiceState(
    load="loaded",
    active="active",
    sub="running",
    enabled="enabled",
    needs_reload=False,
    invocation="one",
    fragment=SERVICE.unit_path,
    executable="/bin/x",
    started=Record("one", identity(SERVICE), ("1  /a",)),
    loaded=Record("one", identity(SERVICE), ("2  /b",)),
    started_now=("1  /a",),
    loaded_now=("2  /b",),
)


@pytest.mark.parametrize(
    ("change", "verbs"),
    [
        ({}, ()),
        ({"enabled": "static"}, ()),
        ({"enabled": "disabled"}, ("enable",)),
        ({"enabled": "enabled-runtime"}, ("enable",)),
        ({"enabled": "masked"}, ("unmask", "enable")),
        ({"needs_reload": True}, ("daemon-reload",)),
        ({"active": "inactive", "sub": "dead"}, ("start",)),
        ({"active": "failed", "sub": "failed"}, ("reset-failed", "start")),
        ({"active": "deactivating"}, ("start",)),
        ({"active": "activating", "sub": "start-post"}, ("start",)),
        ({"active": "activating", "sub": "start-post", "started": None}, ("restart",)),
        ({"active": "activating", "sub": "start-post", "started_now": ("9  /a",)}, ("restart",)),
        ({"active": "activating", "sub": "auto-restart"}, ("restart",)),
        ({"executable": "/bin/x (deleted)"}, ("restart",)),
        ({"started": None}, ("restart",)),
        ({"started": Record("another", identity(SERVICE), ("1  /a",))}, ("restart",)),
        ({"started": Record("one", "another", ("1  /a",))}, ("restart",)),
        ({"started_now": ("9  /a",)}, ("restart",)),
        ({"loaded_now": ("9  /b",)}, ("reload",)),
        ({"loaded": None}, ("reload",)),
        ({"active": "reloading", "loaded_now": ("9  /b",)}, ("reload",)),
        ({"started_now": ("9  /a",), "loaded_now": ("9  /b",)}, ("restart",)),
        (
            {"needs_reload": True, "enabled": "disabled", "started_now": ("9  /a",)},
            ("daemon-reload", "enable", "restart"),
        ),
        (
            {"load": "not-found", "active": "inactive", "enabled": "", "started": None, "loaded": None},
            ("enable", "start"),
        ),
    ],
)
def test_what_a_service_needs(change, verbs):
    assert needed(SERVICE, replace(GOOD, **change)) == verbs


def test_the_reason_names_the_files():
    found = replace(GOOD, started_now=("9  /a", "3  /c d"))
    assert stale(SERVICE, found) == "changed since its start: /a, /c d"


def test_a_packaged_service_is_not_reloaded():
    packaged = PackagedService(name="x", restart_files=("/a",))
    found = replace(GOOD, started=Record("one", identity(packaged), ("1  /a",)), loaded=None)
    assert needed(packaged, found) == ()


WEB = Container("1", "web", "d-web-1", "running", "healthy", "sha256:7", "tiny:1", "net-id", {"net": "net-id"})
SIDE = replace(WEB, id="2", service="side", name="d-side-1", health="")
PROJECT = ComposeState("", ("web", "side"), frozenset(), (WEB, SIDE), {"tiny:1": "sha256:7"}, {"net": "net-id"})


@pytest.mark.parametrize(
    ("web", "reason", "anew"),
    [
        ({"status": "exited"}, "it is exited", False),
        ({"status": "created"}, "it is created", False),
        ({"status": "paused"}, "it is paused", True),
        ({"status": "restarting"}, "it is restarting", True),
        ({"health": "unhealthy"}, "it is unhealthy", True),
        ({"health": "starting"}, "it is not ready yet", False),
        ({"networks": {}}, "it is not attached to the network net-id", True),
        ({"networks": {"net": "old-id"}, "network_mode": "net"}, "the network net was made anew", True),
        ({"image": "sha256:6"}, "its image changed", False),
    ],
)
def test_drift_of_a_container(web, reason, anew):
    found = docker.drift(replace(PROJECT, containers=(replace(WEB, **web), SIDE)))
    assert found == docker.Drift({"web": reason}, ("web",) if anew else ())


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"network_mode": "net"},
        {"network_mode": "host", "networks": {}},
        {"network_mode": "container:abc", "networks": {}},
    ],
)
def test_no_drift(fine):
    assert not docker.drift(replace(PROJECT, containers=(replace(WEB, **fine), SIDE))).reasons


def test_drift_of_a_project():
    assert docker.drift(replace(PROJECT, containers=(WEB,))).reasons == {"side": "it has no container"}
    assert docker.drift(replace(PROJECT, outdated=frozenset({"d-web-1"}))).reasons == {
        "web": "its configuration changed"
    }
    assert docker.drift(replace(PROJECT, services=("web",))).orphans == ("2",)
    assert docker.drift(ComposeState(problem="no file")).reasons == {"": "no file"}


class TestPull:
    """Which reference an image is pulled by."""

    DIGEST = "sha256:" + "0" * 64
    MIRROR = MirrorSettings(registry="http://10.0.0.3:5000")

    def arguments(self, reference, mirror, digest, state):
        lines = {"": ["absent"]}.get(state.id, [f"image {state.id} " + " ".join(f"r@{each}" for each in state.digests)])
        result = run(lambda: docker.image(reference, mirror, digest), lambda asked: (True, lines))
        return [asked.arguments for asked in result.asked[1:]]

    @pytest.mark.parametrize(
        ("mirror", "digest", "source"),
        [
            (None, None, "ghcr.io/a/b:1"),
            (MIRROR, None, "10.0.0.3:5000/ghcr.io/a/b:1"),
            (None, DIGEST, f"ghcr.io/a/b@{DIGEST}"),
            (MIRROR, DIGEST, f"10.0.0.3:5000/ghcr.io/a/b@{DIGEST}"),
        ],
    )
    def test_source(self, mirror, digest, source):
        keep = "keep" if digest else ""
        assert self.arguments("ghcr.io/a/b:1", mirror, digest, ImageState()) == [("ghcr.io/a/b:1", source, keep)]
        assert self.arguments("ghcr.io/a/b:1", mirror, digest, ImageState("sha256:7", (self.DIGEST,))) == []

    def test_an_image_that_was_not_pulled_by_the_digest(self):
        assert self.arguments("ghcr.io/a/b:1", None, self.DIGEST, ImageState("sha256:7", ()))
        assert not self.arguments("ghcr.io/a/b:1", None, None, ImageState("sha256:7", ()))

    def test_a_digest_in_the_name(self):
        with pytest.raises(OperationValueError, match="apart from its name"):
            run(lambda: docker.image(f"a@{self.DIGEST}"), lambda asked: (True, []), dry=True)


def test_keys_of_others_stay():
    block = ("# BEGIN keys of boxwright", "k1", "# END keys of boxwright")
    assert users.authorized_keys((), ["k1"]) == block
    assert users.authorized_keys(("theirs", "", *block), ["k1"]) == ("theirs", *block)
    assert users.authorized_keys((*block, "theirs"), ["k1"]) == ("theirs", *block)
    assert users.authorized_keys(("theirs", *block), []) == ("theirs",)
    assert users.authorized_keys(block, []) == ()


@pytest.mark.parametrize(
    "operation",
    [
        lambda: users.system_user("a b"),
        lambda: users.system_user("-x"),
        lambda: users.user_absent("a.b"),
        lambda: apt.packages(["curl; reboot"]),
        lambda: apt.packages(["-oAPT::x"]),
        lambda: system.timezone("../../etc/passwd"),
        lambda: docker.network("x", subnet="172.30.77.1/24"),
        lambda: docker.network("x", subnet="172.30.77.0/24", bridge="a-name-too-long-by-one"),
    ],
)
def test_what_is_refused_before_anything_is_asked(operation):
    asked = []
    with pytest.raises(ValueError, match=r"^not |host bits set"):
        run(operation, lambda each: (asked.append(each), (True, []))[1], dry=True)
    assert asked == []


@pytest.mark.parametrize(
    "operation",
    [lambda: apt.packages([]), lambda: users.group_members("docker", ()), lambda: users.users(())],
    ids=["packages", "members", "accounts"],
)
def test_nothing_asked_for_costs_nothing(operation):
    result = run(operation, lambda asked: (True, []))
    assert (result.changed, result.asked) == ([False], [])


def test_a_path_is_known_before_the_environment_is():
    base = "/opt/x"
    path = python_packages.venv_path(base, "a==1\n")
    assert path == python_packages.venv_path(base, "a==1\n")
    assert path.startswith("/opt/x/")
    others = {
        python_packages.venv_path(base, "a==2\n"),
        python_packages.venv_path(base, "a==1\n", "/usr/bin/python3.12"),
    }
    assert len({path, *others}) == 3
    assert python_packages.venv_marker(path) == f"{path}/.boxwright-complete"


def test_content_shows_only_its_size():
    content = Content("sécret")
    assert {str(content), repr(content), f"{content}", f"{content!r}", f"{content:>3}"} == {"<7 bytes>"}
    assert (content.text, type(content.text)) == ("sécret", str)
