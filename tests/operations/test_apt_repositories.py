"""Package repositories on a real Debian: a test signs them itself with real gpg and serves them over HTTP."""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from machine import Machine
from signed_repository import Key, Server, package, publish

from boxwright.artifacts import AptRepository, MirrorSettings
from boxwright.operations import apt, apt_repositories

pytestmark = pytest.mark.lab

SOURCES = "/etc/apt/sources.list.d/boxwright-tools.sources"
KEYRING = "/etc/apt/keyrings/boxwright-tools.gpg"


@pytest.fixture(scope="module")
def machine():
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def keys():
    """By name: the pinned one, another one, and one that will have expired."""
    old = datetime.now(UTC) - timedelta(days=9)
    made = {"good": Key(created=old), "other": Key("Somebody Else"), "expired": Key("Of Old", created=old)}
    yield made
    for key in made.values():
        key.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("repositories"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def debs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    return [package(folder, "sample-tool", says="one"), package(folder, "sample-more", depends="sample-tool")]


@pytest.fixture
def site(machine, server, keys, debs):
    """A repository `tools` on a server, and what an operator may do with it; the machine is clean afterwards."""
    site = Site(machine, server, keys, debs)
    yield site
    assert machine.run(lambda: apt_repositories.repository_absent("tools")).ok


class Site:
    def __init__(self, machine, server, keys, debs):
        self.machine, self.server, self.keys, self.debs = machine, server, keys, debs
        self.root = server.folder
        gateway = machine.sh("ip -4 route show default").split()[2]
        self.url = f"http://{gateway}:{server.port}"
        self.repository = AptRepository(
            name="tools",
            url=f"{self.url}/tools",
            suite="trixie",
            key_url=f"{self.url}/tools/key.asc",
            key_fingerprint=keys["good"].fingerprint,
            licence="MIT",
        )

    def publish(self, key="good", **options):
        publish(self.root / "tools", self.keys[key], self.debs, **options)

    def add(self, mirror=None, dry=False, **changes):
        wanted = replace(self.repository, **changes)
        return self.machine.run(lambda: apt_repositories.repository(wanted, mirror), dry=dry)

    def refused(self, *words, **changes):
        """The repository is refused with these words, in one sentence, and nothing of it is left on the machine."""
        before = self.machine.sh(
            f"sha256sum {SOURCES} {KEYRING}; ls /tmp /etc/apt/sources.list.d; apt-get indextargets"
        )
        result = self.add(**changes)
        assert not result.ok
        for word in words:
            assert word in " ".join(result.printed.split()), result.printed
        after = self.machine.sh(f"sha256sum {SOURCES} {KEYRING}; ls /tmp /etc/apt/sources.list.d; apt-get indextargets")
        assert after == before


def test_added_used_and_taken_away(site, machine):
    site.publish()
    assert site.add(dry=True).changed == [True]
    assert "No such file" in machine.sh(f"ls {SOURCES}")
    first = site.add()
    assert first.changed == [True], first.printed
    assert machine.sh(f"stat -c '%U %G %a' {SOURCES} {KEYRING}") == "root root 644\n" * 2
    again = site.add()
    assert (again.changed, len(again.asked)) == ([False], 1)
    machine.run(lambda: apt.packages(["sample-more"]))
    assert machine.sh("sample-tool") == "one\n"
    assert machine.run(lambda: apt.packages_absent(["sample-more"])).changed == [True]
    assert machine.run(lambda: apt_repositories.repository_absent("tools")).changed == [True]
    assert machine.run(lambda: apt_repositories.repository_absent("tools")).changed == [False]
    assert "Unable to locate" in machine.sh("apt-get install --simulate sample-tool")
    assert "tools" not in machine.sh("ls /var/lib/apt/lists /etc/apt/keyrings /etc/apt/sources.list.d")


def test_what_drifted_is_repaired(site, machine):
    site.publish()
    site.add()
    for harm in (
        f"rm {SOURCES}",
        f"echo 'Enabled: no' >>{SOURCES}",
        f"rm {KEYRING}",
        f"echo >{KEYRING}",
        f"chmod 600 {KEYRING}",
        "rm -r /var/lib/boxwright/repositories",
    ):
        machine.sh(harm)
        assert site.add().changed == [True], harm
        assert site.add().changed == [False], harm


def test_only_its_own_lists_are_refreshed(site, machine):
    site.publish()
    machine.sh("apt-get update --quiet=2; touch -d 2020-01-01 /var/lib/apt/lists/*")
    assert site.add().ok
    found = machine.sh("find /var/lib/apt/lists -maxdepth 1 -name '*_*' -newermt 2021-01-01 -printf '%f\\n'")
    assert found
    assert all("_tools_" in name for name in found.split())
    assert "Debian" in machine.sh("apt-cache policy curl") or "500" in machine.sh("apt-cache policy curl")


def test_from_a_mirror(site, machine):
    publish(site.root / "mirror/packages.example.org/linux/debian", site.keys["good"], site.debs)
    result = site.add(
        MirrorSettings(url=f"{site.url}/mirror"),
        url="https://packages.example.org/linux/debian",
        key_url="https://packages.example.org/linux/debian/key.asc",
    )
    assert result.changed == [True], result.printed
    assert "sample-tool" in machine.sh("apt-cache pkgnames sample-tool")


class TestRefused:
    def test_another_key(self, site, keys):
        site.publish("other")
        site.refused(
            "holds another key than the pinned one",
            f"expected {keys['good'].fingerprint}",
            f"found {keys['other'].fingerprint}",
        )

    def test_the_pinned_key_but_lists_that_another_one_signed(self, site, keys):
        site.publish("other", public=keys["good"].public())
        site.refused(f"not signed with the pinned key {keys['good'].fingerprint}, but with another one")

    def test_of_several_keys_only_the_pinned_one_counts(self, site, keys, machine):
        both = keys["other"].public(armored=False) + keys["good"].public(armored=False)
        site.publish("other", public=both)
        site.refused("not signed with the pinned key")
        site.publish("good", public=both)
        assert site.add().ok
        listed = subprocess.run(
            ["gpg", "--show-keys", "--with-colons"],
            input=machine.container.exec_run(["cat", KEYRING]).output,
            capture_output=True,
            check=True,
        ).stdout.decode()
        fingerprints = [line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:")]
        assert fingerprints == [keys["good"].fingerprint]

    def test_armored_keys_one_after_the_other(self, site, keys):
        site.publish("good", public=keys["other"].public() + keys["good"].public().replace(b"\n", b"\r\n"))
        assert site.add().changed == [True]

    def test_not_a_key(self, site):
        for text in (b"<html>Not today</html>", b"", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQEN\n-----END"):
            site.publish(public=text)
            site.refused("is not an OpenPGP key")

    def test_no_key(self, site):
        site.publish()
        site.refused("its key cannot be fetched", "404", key_url=f"{site.url}/tools/no.asc")

    def test_a_key_that_has_expired(self, site, keys):
        key = keys["expired"]
        site.publish("expired")
        assert site.add(key_fingerprint=key.fingerprint).ok
        site.machine.run(lambda: apt_repositories.repository_absent("tools"))
        key.expire(after=timedelta(days=2))
        (site.root / "tools/key.asc").write_bytes(key.public())
        site.refused("its signature, or the key that made it, has expired", key_fingerprint=key.fingerprint)

    def test_a_signature_that_has_expired(self, site):
        then = datetime.now(UTC) - timedelta(days=5)
        site.publish(signing=[*Key.at(then), "--default-sig-expire", "1d"])
        site.refused("its signature, or the key that made it, has expired")

    def test_lists_that_are_too_old(self, site):
        site.publish(valid_until=datetime.now(UTC) - timedelta(days=2))
        site.refused("valid only until a time that has passed", "the mirror or the publisher has not brought them up")

    def test_a_missing_suite(self, site):
        site.publish(suite="bookworm")
        site.refused("/tools has no suite 'trixie': does the publisher, or the mirror, support this release?")

    def test_a_missing_component(self, site):
        site.publish()
        site.refused("its suite 'trixie' lacks a component", components=("nightly",))

    def test_another_architecture(self, site):
        site.publish(architecture="riscv64")
        site.refused("has no packages for this box's architecture, amd64, but for riscv64")

    def test_lists_without_a_signature(self, site):
        site.publish()
        (site.root / "tools/dists/trixie/InRelease").unlink()
        site.refused("its lists are not signed")

    def test_lists_that_were_altered(self, site):
        site.publish()
        lists = site.root / "tools/dists/trixie/InRelease"
        lists.write_text(lists.read_text().replace("Origin: Test", "Origin: Evil"))
        site.refused("its signature does not fit its lists")

    def test_packages_that_do_not_fit_the_lists(self, site):
        site.publish()
        for path in (site.root / "tools/dists/trixie/main/binary-amd64").iterdir():
            path.write_bytes(path.read_bytes() + b"\n")
        site.refused("its lists do not fit together")

    def test_a_server_that_is_not_there(self, site):
        site.publish()
        site.refused("its server cannot be reached at http://127.0.0.1:9/tools", url="http://127.0.0.1:9/tools")

    def test_a_clock_that_is_behind(self, site):
        """The clock of a container is that of its machine, so the lists come from the future instead."""
        site.publish(date=datetime.now(UTC) + timedelta(hours=5))
        site.refused("its lists are dated later than this box's clock, which says 20", "set the clock of the box")

    def test_the_one_that_was_there_stays(self, site, machine):
        site.publish()
        site.add()
        site.refused("no suite 'sid'", "what was there before stays", suite="sid")
        assert machine.sh(f"grep Suites {SOURCES}") == "Suites: trixie\n"
        assert "sample-tool" in machine.sh("apt-get install --simulate sample-tool")


class TestOthers:
    """Files of others that name the same repository under another key, for which apt refuses to work."""

    @pytest.mark.parametrize("form", ["list", "sources"])
    def test_put_aside_and_back(self, site, machine, form):
        site.publish()
        texts = {
            "list": f"# theirs\ndeb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] {site.url}/tools/ trixie main\n",
            "sources": f"Types: deb\nURIs: {site.url}/tools\nSuites: trixie\nComponents: main\nSigned-By: /x.gpg\n",
        }
        path = f"/etc/apt/sources.list.d/theirs.{form}"
        machine.put(path, texts[form].encode())
        result = site.add()
        assert result.changed == [True], result.printed
        assert "No such file" in machine.sh(f"ls {path}")
        assert machine.sh("apt-get update --quiet=2") == ""
        assert site.add().changed == [False]
        machine.run(lambda: apt_repositories.repository_absent("tools"))
        assert machine.sh(f"cat {path}") == texts[form]
        machine.sh(f"rm {path}")

    def test_beside_another_repository(self, site, machine):
        site.publish()
        path = "/etc/apt/sources.list.d/theirs.list"
        text = f"deb {site.url}/tools trixie main\ndeb {site.url}/else trixie main\n"
        machine.put(path, text.encode())
        result = site.add()
        assert not result.ok
        assert f"{path} names {site.url}/tools too, beside other repositories" in result.printed
        machine.sh(f"rm {path}")

    def test_what_does_not_count(self, site, machine):
        site.publish()
        machine.put("/etc/apt/sources.list.d/a.list", f"# deb {site.url}/tools trixie main\n".encode())
        off = f"Enabled: no\nTypes: deb\nURIs: {site.url}/tools\nSuites: trixie\nComponents: main\n"
        machine.put("/etc/apt/sources.list.d/b.sources", off.encode())
        assert site.add().ok
        assert machine.sh("ls /etc/apt/sources.list.d | grep -c disabled").strip() == "0"
        machine.sh("rm /etc/apt/sources.list.d/a.list /etc/apt/sources.list.d/b.sources")
