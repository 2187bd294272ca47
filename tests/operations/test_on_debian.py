"""Packages, accounts, the time zone and virtual environments on a real Debian."""

import hashlib
import io
import zipfile
from dataclasses import dataclass

import pytest
from harness import run
from machine import Machine

from boxwright.artifacts import MirrorSettings, Wheel, requirements
from boxwright.operations import apt, files, python_packages, system, users

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def machine():
    machine = Machine()
    yield machine
    machine.close()


def installed(machine, *names):
    """Those of the packages that dpkg has installed."""
    listed = machine.sh("dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\\n'").splitlines()
    return {name for name in names if f"ii  {name}" in listed}


class TestPackages:
    NAMES = ("tree", "jq")

    def present(self, machine, names=NAMES, **options):
        return machine.run(lambda: apt.packages(names), **options)

    def absent(self, machine, names=NAMES):
        return machine.run(lambda: apt.packages_absent(names))

    def test_installed_once_and_removed_with_what_came_along(self, machine):
        before = machine.sh("dpkg-query --show")
        assert self.present(machine, dry=True).changed == [True]
        assert machine.sh("dpkg-query --show") == before
        first = self.present(machine)
        assert first.changed == [True], first.printed
        assert installed(machine, *self.NAMES, "libjq1") == {*self.NAMES, "libjq1"}
        again = self.present(machine)
        assert (again.changed, len(again.asked)) == ([False], 1)
        assert self.absent(machine).changed == [True]
        assert machine.sh("dpkg-query --show") == before
        assert self.absent(machine).changed == [False]
        assert "No such file" in machine.sh("ls /var/lib/boxwright")

    def test_configuration_that_a_removal_kept_goes_with_a_later_purge(self, machine):
        """Of the package and of what came along, also when it was installed and removed twice."""

        def purge(*names):
            return machine.run(lambda: apt.packages_absent(names, purge=True)).changed

        before = machine.sh("dpkg-query --show --showformat '${Package} ${Status}\\n'")
        # cron brings cron-daemon-common, and both have files in /etc.
        for _ in range(2):
            assert self.present(machine, ["cron"]).changed == [True]
            assert self.absent(machine, ["cron"]).changed == [True]
            assert installed(machine, "cron", "cron-daemon-common") == set()
        assert machine.sh("ls /etc/crontab /etc/default/cron") == "/etc/crontab\n/etc/default/cron\n"
        assert self.absent(machine, ["cron"]).changed == [False]
        assert purge("tree") == [False], "it is another package's"
        assert purge("cron") == [True]
        assert purge("cron") == [False]
        assert machine.sh("dpkg-query --show --showformat '${Package} ${Status}\\n'") == before
        assert "No such file" in machine.sh("ls /var/lib/boxwright")

    def test_what_was_there_before_stays(self, machine):
        assert self.present(machine, ["curl"]).changed == [False]
        assert self.absent(machine, ["curl"]).changed == [False]
        assert installed(machine, "curl")

    def test_what_something_else_needs_by_now_stays(self, machine):
        assert self.present(machine, ["libjq1"]).changed == [True]
        machine.sh("apt-get install --quiet=2 --assume-yes jq libjq1")
        result = self.absent(machine, ["libjq1"])
        assert result.ok
        assert installed(machine, "jq", "libjq1") == {"jq", "libjq1"}
        assert self.absent(machine, ["libjq1"]).changed == [False]
        machine.sh("apt-get autoremove --purge --quiet=2 --assume-yes jq libjq1")

    @pytest.mark.parametrize("first", ["jq", "libjq1"])
    def test_what_another_package_of_ours_needs_stays_until_that_goes(self, machine, first):
        """Two roles installed them; libjq1 is what jq needs."""
        before = machine.sh("dpkg-query --show")
        for name in (first, "jq", "libjq1"):
            self.present(machine, [name])
        self.absent(machine, ["libjq1"])
        assert installed(machine, "jq", "libjq1") == {"jq", "libjq1"}
        assert self.absent(machine, ["libjq1"]).changed == [False]
        assert self.absent(machine, ["jq"]).changed == [True]
        assert machine.sh("dpkg-query --show") == before

    def test_a_run_killed_in_the_middle_is_completed(self, machine):
        """Unpacked but not configured, and a dependency still missing: as a run leaves it that was killed in dpkg."""
        machine.sh("apt-get update --quiet=2")
        machine.sh("cd /tmp && apt-get download jq libjq1 && dpkg --unpack jq_*.deb libjq1_*.deb")
        assert "iU  jq" in machine.sh("dpkg --list jq")
        result = self.present(machine, ["tree"])
        assert result.changed == [True], result.printed
        assert installed(machine, "jq", "libjq1", "tree") == {"jq", "libjq1", "tree"}
        assert self.present(machine, ["tree"]).changed == [False]
        self.absent(machine, ["tree"])
        machine.sh("apt-get autoremove --purge --quiet=2 --assume-yes jq libjq1")

    def test_while_a_run_that_was_killed_is_still_at_work_on_the_box(self, machine):
        """Both are completed, and what they brought along is noted, whichever was the first."""
        command = 'sh -c "$@" & first=$!; sh -c "$@"; second=$?; wait $first && exit $second'

        def answer(asked):
            if "note dependency" not in asked.text:
                return machine.answer(asked)
            code, out, err = machine._exec(["sh", "-c", command, "both", asked.text, "boxwright", *asked.arguments])
            return code == 0, (out + err).splitlines()

        before = machine.sh("dpkg-query --show")
        result = run(lambda: apt.packages(self.NAMES), answer)
        assert result.changed == [True], result.printed
        assert self.absent(machine).changed == [True]
        assert machine.sh("dpkg-query --show") == before

    def test_a_package_that_there_is_not(self, machine):
        result = self.present(machine, ["no-such-package"])
        assert not result.ok
        assert "Unable to locate package no-such-package" in result.printed
        assert self.absent(machine, ["no-such-package"]).changed == [False], "it was noted as installed"


@dataclass
class Person:
    name: str
    groups: tuple = ()
    ssh_keys: tuple = ()
    sudo: str = "none"


class TestAccounts:
    KEYS = ("ssh-ed25519 AAAA first 'key'", "ssh-ed25519 BBBB second")

    def users(self, machine, *people, **options):
        return machine.run(lambda: users.users(people), **options)

    @pytest.fixture(autouse=True)
    def _gone(self, machine):
        machine.run(lambda: apt.packages(["sudo"]))
        yield
        for name in ("ada", "bob", "engine"):
            machine.run(lambda name=name: users.user_absent(name, home=True))

    def test_a_service_account(self, machine):
        def deploy():
            users.system_user("engine", home="/var/lib/engine", groups=["video"])

        assert machine.run(deploy, dry=True).changed == [True]
        assert machine.sh("id engine 2>&1 | grep -c 'no such user'").strip() == "1"
        assert machine.run(deploy).changed == [True]
        assert machine.run(deploy).changed == [False]
        assert machine.sh("getent passwd engine").strip().endswith("::/var/lib/engine:/usr/sbin/nologin")
        assert machine.sh("id -Gn engine").split() == ["engine", "video"]
        assert int(machine.sh("id -u engine")) < 1000
        assert machine.sh("passwd --status engine").split()[1] == "L"
        machine.sh("usermod --shell /bin/sh engine; gpasswd --delete engine video")
        assert machine.run(deploy).changed == [True]
        assert machine.run(deploy).changed == [False]
        assert machine.run(lambda: users.user_absent("engine")).changed == [True]
        assert machine.run(lambda: users.user_absent("engine")).changed == [False]

    def test_people(self, machine):
        ada, bob = Person("ada", ("adm",), self.KEYS, "password"), Person("bob", sudo="passwordless")
        assert self.users(machine, ada, bob, dry=True).changed == [True]
        assert self.users(machine, ada, bob).changed == [True]
        again = self.users(machine, ada, bob)
        assert (again.changed, len(again.asked)) == ([False], 1)
        keys = machine.sh("cat /home/ada/.ssh/authorized_keys").splitlines()
        assert [line for line in keys if not line.startswith("#")] == list(self.KEYS)
        assert machine.sh("stat -c '%U %a' /home/ada/.ssh /home/ada/.ssh/*") == "ada 700\nada 600\n"
        assert "(ALL : ALL) ALL" in machine.sh("sudo --list --other-user=ada")
        assert "NOPASSWD: ALL" in machine.sh("sudo --list --other-user=bob")
        assert machine.sh("stat -c '%U %a' /etc/sudoers.d/boxwright-*") == "root 440\nroot 440\n"

    def test_only_what_drifted_is_repaired(self, machine):
        ada = Person("ada", ("adm",), self.KEYS, "password")
        self.users(machine, ada)
        for harm, command in (
            ("gpasswd --delete ada adm", "usermod"),
            ("sed -i /BBBB/d /home/ada/.ssh/authorized_keys", "authorized_keys"),
            ("chmod 0644 /etc/sudoers.d/boxwright-ada", "visudo"),
            ("echo 'ada ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/boxwright-ada", "visudo"),
        ):
            machine.sh(harm)
            result = self.users(machine, ada)
            assert len(result.asked) == 2, harm
            assert command in result.asked[1].text + " ".join(result.asked[1].arguments)
            assert self.users(machine, ada).changed == [False]

    def test_keys_and_rights_that_are_taken_out_go_and_those_of_others_stay(self, machine):
        self.users(machine, Person("ada", ("adm",), self.KEYS, "password"))
        machine.sh("sed -i '1i ssh-rsa CCCC her own' /home/ada/.ssh/authorized_keys")
        assert self.users(machine, Person("ada")).changed == [True]
        assert self.users(machine, Person("ada")).changed == [False]
        assert machine.sh("cat /home/ada/.ssh/authorized_keys") == "ssh-rsa CCCC her own\n"
        assert machine.sh("ls /etc/sudoers.d | grep -c boxwright").strip() == "0"
        assert "adm" in machine.sh("id -Gn ada").split()

    def test_a_link_in_the_home_leads_root_nowhere(self, machine):
        self.users(machine, Person("bob"))
        machine.sh("mkdir -p -m 0700 /root/.ssh; ln -s /root/.ssh /home/bob/.ssh; chown -h bob /home/bob/.ssh")
        assert not self.users(machine, Person("bob", ssh_keys=("ssh-rsa EVIL",))).ok
        assert machine.sh("ls -A /root/.ssh") == ""

    def test_a_home_that_is_missing(self, machine):
        self.users(machine, Person("ada"))
        machine.sh("rm -rf /home/ada")
        assert self.users(machine, Person("ada", ssh_keys=self.KEYS)).changed == [True]
        assert machine.sh("stat -c '%U %a' /home/ada") == "ada 700\n"

    def test_members_of_a_group(self, machine):
        self.users(machine, Person("ada"), Person("bob"))
        assert machine.run(lambda: users.group_members("audio", ["ada", "bob"])).changed == [True]
        assert machine.run(lambda: users.group_members("audio", ["ada", "bob"])).changed == [False]
        result = machine.run(lambda: users.group_members("nogroup-here", ["ada"]))
        assert not result.ok
        assert "group 'nogroup-here' does not exist" in result.printed


def test_the_time_zone(machine):
    machine.run(lambda: apt.packages(["tzdata"]))
    for zone, offset in (("Asia/Tokyo", "+0900"), ("Etc/UTC", "+0000")):
        machine.run(lambda zone=zone: system.timezone(zone))
        assert machine.run(lambda zone=zone: system.timezone(zone)).changed == [False]
        assert machine.sh("date +%z").strip() == offset
    result = machine.run(lambda: system.timezone("Europe/Nowhere"))
    assert not result.ok
    assert "Europe/Nowhere is not in /usr/share/zoneinfo" in result.printed
    machine.sh("echo Asia/Tokyo >/etc/timezone")
    assert machine.run(lambda: system.timezone("Etc/UTC")).changed == [True]
    assert machine.sh("cat /etc/timezone") == "Etc/UTC\n"


@pytest.fixture(scope="module")
def wheel(machine):
    """A package `sample` that prints its version, served on the machine itself as a mirror does."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("sample.py", "def main(): print('sample one')\n")
        archive.writestr("sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n")
        archive.writestr("sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("sample-1.0.dist-info/entry_points.txt", "[console_scripts]\nsample = sample:main\n")
        archive.writestr("sample-1.0.dist-info/RECORD", "")
    machine.run(lambda: apt.packages(["python3", "python3-venv"]))
    machine.sh("mkdir -p /srv/mirror/wheels")
    machine.put("/srv/mirror/wheels/sample-1.0-py3-none-any.whl", packed.getvalue())
    machine.sh("systemd-run --unit=mirror python3 -m http.server --bind 127.0.0.1 --directory /srv/mirror 8077")
    machine.sh("until curl --silent --output /dev/null http://127.0.0.1:8077/; do sleep 0.1; done")
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    return Wheel(name="sample", version="1.0", sha256={"any": digest}, licence="MIT")


class TestVirtualEnvironments:
    BASE = "/opt/a folder/sample"
    MIRROR = MirrorSettings(url="http://127.0.0.1:8077")

    def venv(self, machine, wheel, **options):
        text = requirements([wheel])
        return machine.run(lambda: python_packages.venv(self.BASE, text, self.MIRROR), **options)

    def path(self, wheel):
        return python_packages.venv_path(self.BASE, requirements([wheel]))

    def test_made_once(self, machine, wheel):
        assert self.venv(machine, wheel, dry=True).changed == [True]
        assert "No such file" in machine.sh(f"ls '{self.BASE}'")
        first = self.venv(machine, wheel)
        assert first.changed == [True], first.printed
        assert machine.sh(f"'{self.path(wheel)}/bin/sample'") == "sample one\n"
        again = self.venv(machine, wheel)
        assert (again.changed, len(again.asked)) == ([False], 1)
        # Another account, as services are, can run it.
        assert machine.sh(f"runuser -u nobody -- '{self.path(wheel)}/bin/sample'") == "sample one\n"

    @pytest.mark.parametrize("harm", ["rm -rf '{0}/bin'", "echo 3.1 x >'{0}/.boxwright-complete'"])
    def test_half_made_or_of_another_python(self, machine, wheel, harm):
        self.venv(machine, wheel)
        machine.sh(harm.format(self.path(wheel)) + f"; touch '{self.path(wheel)}/litter'")
        assert self.venv(machine, wheel).changed == [True]
        assert machine.sh(f"'{self.path(wheel)}/bin/sample'") == "sample one\n"
        assert "No such file" in machine.sh(f"ls '{self.path(wheel)}/litter'")
        assert self.venv(machine, wheel).changed == [False]

    def test_a_wheel_with_another_digest(self, machine, wheel):
        wrong = Wheel(name="sample", version="1.0", sha256={"any": "0" * 64}, licence="MIT")
        result = self.venv(machine, wrong)
        assert not result.ok
        assert "Expected sha256 " + "0" * 64 in result.printed
        assert "pip could not install sample==1.0 from the mirror http://127.0.0.1:8077" in result.printed
        assert "No such file" in machine.sh(f"ls '{self.path(wrong)}'")

    def test_prune(self, machine, wheel):
        self.venv(machine, wheel)
        machine.sh(f"cd '{self.BASE}'; mkdir -p 0123456789abcdef data; touch server.py")
        assert machine.run(lambda: python_packages.prune(self.BASE, [self.path(wheel)])).changed == [True]
        assert machine.run(lambda: python_packages.prune(self.BASE, [self.path(wheel)])).changed == [False]
        left = {"data", "server.py", self.path(wheel).rpartition("/")[2]}
        assert set(machine.sh(f"ls '{self.BASE}'").split()) == left

    def test_gone(self, machine, wheel):
        self.venv(machine, wheel)
        assert machine.run(lambda: files.absent(self.BASE, recursive=True)).changed == [True]
        assert machine.run(lambda: files.absent(self.BASE, recursive=True)).changed == [False]
        assert machine.run(lambda: python_packages.prune(self.BASE, [])).changed == [False]
