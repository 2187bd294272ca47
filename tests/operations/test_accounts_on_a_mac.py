"""Accounts of services and people on a Mac (tests/doubles/macos), read back with id, dscl and sudo themselves."""

from dataclasses import dataclass

import pytest
from pyinfra.api.exceptions import OperationValueError

from boxwright.operations import users
from tests.doubles.macos import MacDouble

pytestmark = pytest.mark.lab

KEYS = ("ssh-ed25519 AAAA first 'key'", "ssh-ed25519 BBBB second")


@dataclass
class Person:
    name: str
    groups: tuple = ()
    ssh_keys: tuple = ()
    sudo: str = "none"


@pytest.fixture(scope="module")
def double():
    with MacDouble(full_disk_access=True) as found:
        yield found


class Mac:
    """The double, and operations on it."""

    def __init__(self, double):
        self.double = double

    def sh(self, text):
        return self.double.sh(text)

    def run(self, deploy, **options):
        return self.double.run(deploy, **options)

    def service(self, name="_engine", **arguments):
        return self.run(lambda: users.system_user(name, **arguments))

    def people(self, *people, **options):
        return self.run(lambda: users.users(people), **options)

    def gone(self, name, **arguments):
        return self.run(lambda: users.user_absent(name, **arguments))

    def record(self, record, attribute):
        """A value of a record, as dscl prints it."""
        return self.sh(f"dscl . -read {record} {attribute}").strip().partition(": ")[2]


@pytest.fixture
def mac(double):
    found = Mac(double)
    yield found
    double.set(full_disk_access=True)
    for name in {"_engine", "_other", "ada", "bob"} & set(double.sh("dscl . -list /Users").split()):
        assert found.gone(name, home=True).changed == [True]
    double.sh("dscl . -delete /Groups/com.apple.access_ssh")


class TestServices:
    def test_made_once(self, mac):
        assert mac.run(lambda: users.system_user("_engine"), dry=True).changed == [True]
        assert "no such user" in mac.sh("id _engine")
        first = mac.service(groups=["_developer"])
        assert first.changed == [True], first.printed
        again = mac.service(groups=["_developer"])
        assert (again.changed, len(again.asked)) == ([False], 1)
        uid = int(mac.sh("id -u _engine"))
        assert 300 <= uid <= 399
        assert int(mac.sh("id -g _engine")) == uid
        assert "_developer" in mac.sh("id -Gn _engine").split()
        assert mac.record("/Users/_engine", "UserShell") == "/usr/bin/false"
        assert mac.record("/Users/_engine", "NFSHomeDirectory") == "/var/empty"
        assert mac.record("/Users/_engine", "IsHidden") == "1"
        assert mac.record("/Users/_engine", "Password") == "*"
        assert mac.sh("sudo -n -u _engine id -un").strip() == "_engine"

    def test_each_has_a_number_of_its_own(self, mac):
        mac.sh("dscl . -create /Users/_taken UniqueID 300; dscl . -create /Groups/_taken_too PrimaryGroupID 301")
        mac.service("_engine")
        mac.service("_other")
        assert {mac.sh(f"id -u {name}").strip() for name in ("_engine", "_other")} == {"302", "303"}
        mac.sh("dscl . -delete /Users/_taken; dscl . -delete /Groups/_taken_too")

    def test_no_number_is_left(self, mac):
        every = "number=300; while [ $number -lt 400 ]; do dscl . {}; number=$((number + 1)); done"
        mac.sh(every.format("-create /Groups/_taken$number PrimaryGroupID $number"))
        result = mac.service()
        assert "no number from 300 to 399 is free for _engine" in result.printed
        assert "eDSRecordNotFound" in mac.sh("dscl . -read /Users/_engine RecordName")
        mac.sh(every.format("-delete /Groups/_taken$number"))

    @pytest.mark.parametrize(
        "harm",
        [
            "dscl . -create /Users/_engine UserShell /bin/zsh",
            "dscl . -create /Users/_engine NFSHomeDirectory /Users/Shared",
            "dscl . -delete /Users/_engine IsHidden",
            "dscl . -create /Users/_engine PrimaryGroupID 20",
            # As a run leaves it that was killed while it made the account.
            "dscl . -delete /Users/_engine UniqueID",
            "dscl . -delete /Users/_engine UniqueID; dscl . -delete /Users/_engine PrimaryGroupID; "
            "dscl . -delete /Groups/_engine PrimaryGroupID",
            "dscl . -delete /Users/_engine",
        ],
    )
    def test_what_drifted_or_was_left_half_made_is_completed(self, mac, harm):
        home = "/var/lib/boxwright/an engine"
        mac.service(home=home)
        uid = mac.sh("id -u _engine")
        mac.sh(harm)
        result = mac.service(home=home)
        assert result.changed == [True], result.printed
        assert mac.service(home=home).changed == [False]
        assert mac.record("/Users/_engine", "UserShell") == "/usr/bin/false"
        assert mac.sh("dscl . -read /Users/_engine NFSHomeDirectory") == f"NFSHomeDirectory:\n {home}\n"
        assert mac.record("/Users/_engine", "IsHidden") == "1"
        assert mac.sh("id -gn _engine").strip() == "_engine"
        assert mac.sh("id -u _engine") == uid

    def test_gone_with_its_group(self, mac):
        mac.service(groups=["_developer"])
        assert mac.gone("_engine").changed == [True]
        assert mac.gone("_engine").changed == [False]
        for record in ("/Users/_engine", "/Groups/_engine"):
            assert "eDSRecordNotFound" in mac.sh(f"dscl . -read {record} RecordName")
        assert "_engine" not in mac.sh("dscl . -read /Groups/_developer GroupMembership")

    def test_the_empty_home_of_all_services_stays(self, mac):
        mac.service()
        assert mac.gone("_engine", home=True).changed == [True]
        assert mac.sh("ls -d /var/empty").strip() == "/var/empty"

    def test_without_full_disk_access(self, mac, double):
        double.set(full_disk_access=False)
        result = mac.service()
        assert not result.ok
        assert "macOS refuses to write /Users/_engine" in result.printed
        assert "Allow full disk access for remote users" in result.printed
        assert "eDSRecordNotFound" in mac.sh("dscl . -read /Groups/_engine RecordName")
        double.set(full_disk_access=True)
        mac.service()
        double.set(full_disk_access=False)
        assert "macOS refuses to remove the account _engine" in mac.gone("_engine").printed

    @pytest.mark.parametrize("name", ["engine", "_a.b", "-x", "_" + "x" * 40])
    def test_a_name_that_is_none(self, mac, name):
        with pytest.raises(OperationValueError, match="not the name of"):
            mac.run(lambda: users.system_user(name), dry=True)


class TestPeople:
    def test_made_once(self, mac):
        ada, bob = Person("ada", ("admin",), KEYS, "password"), Person("bob", sudo="passwordless")
        assert mac.people(ada, bob, dry=True).changed == [True]
        first = mac.people(ada, bob)
        assert first.changed == [True], first.printed
        again = mac.people(ada, bob)
        assert (again.changed, len(again.asked)) == ([False], 1)
        assert sorted(int(mac.sh(f"id -u {name}")) for name in ("ada", "bob")) == [502, 503]
        assert mac.sh("id -gn ada").strip() == "staff"
        assert "admin" in mac.sh("id -Gn ada").split()
        assert mac.record("/Users/ada", "Password") == "*"
        assert mac.record("/Users/ada", "UserShell") == "/bin/zsh"
        assert "No such key" in mac.sh("dscl . -read /Users/ada IsHidden 2>&1")
        keys = mac.sh("cat /Users/ada/.ssh/authorized_keys").splitlines()
        assert [line for line in keys if not line.startswith("#")] == list(KEYS)
        for path, mode in ((".ssh", "drwx------"), (".ssh/authorized_keys", "-rw-------")):
            assert mac.sh(f"ls -ld /Users/ada/{path}").startswith(mode)
        assert mac.sh("ls -ld /Users/ada/.ssh/authorized_keys").split()[2:4] == ["ada", "staff"]
        assert "Library" in mac.sh("ls /Users/ada"), "the home is not as macOS makes one"
        for name, tag in (("ada", ""), ("bob", "NOPASSWD: ")):
            assert mac.sh(f"ls -l /private/etc/sudoers.d/boxwright-{name}").split()[:4:2] == ["-r--r-----", "root"]
            assert f"{name} ALL=(ALL:ALL) {tag}ALL" in mac.sh(f"cat /private/etc/sudoers.d/boxwright-{name}")
        assert mac.sh("ls -l /private/etc/sudoers.d/boxwright-ada").split()[3] == "wheel"
        assert mac.sh("sudo -n -u bob sudo -n id -un").strip() == "root"
        assert "password is required" in mac.sh("sudo -n -u ada sudo -n id -un")

    @pytest.mark.parametrize(
        "harm",
        [
            "dseditgroup -o edit -d ada -t user admin",
            "echo 'ssh-rsa EVIL' >/Users/ada/.ssh/authorized_keys",
            "rm /Users/ada/.ssh/authorized_keys",
            "rm -rf /Users/ada",
            "chmod 0644 /etc/sudoers.d/boxwright-ada",
            "chown root:staff /etc/sudoers.d/boxwright-ada",
            "echo 'ada ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/boxwright-ada",
        ],
    )
    def test_what_drifted_is_repaired(self, mac, harm):
        ada = Person("ada", ("admin",), KEYS, "password")
        mac.people(ada)
        mac.sh(harm)
        result = mac.people(ada)
        assert result.changed == [True], result.printed
        assert mac.people(ada).changed == [False]
        assert "admin" in mac.sh("id -Gn ada").split()
        assert "BBBB second" in mac.sh("cat /Users/ada/.ssh/authorized_keys")
        assert "password is required" in mac.sh("sudo -n -u ada sudo -n id -un")

    def test_one_that_was_left_half_made_is_completed(self, mac):
        mac.sh("dscl . -create /Users/ada; dscl . -create /Users/ada UserShell /bin/zsh")
        assert mac.people(Person("ada", ssh_keys=KEYS)).changed == [True]
        assert mac.people(Person("ada", ssh_keys=KEYS)).changed == [False]
        assert int(mac.sh("id -u ada")) > 500

    def test_keys_and_rights_that_are_taken_out_go_and_those_of_others_stay(self, mac):
        mac.people(Person("ada", ("admin",), KEYS, "password"))
        mac.sh("echo 'ssh-rsa CCCC her own' >>/Users/ada/.ssh/authorized_keys")
        assert mac.people(Person("ada")).changed == [True]
        assert mac.people(Person("ada")).changed == [False]
        assert mac.sh("cat /Users/ada/.ssh/authorized_keys") == "ssh-rsa CCCC her own\n"
        assert "No such file" in mac.sh("ls /etc/sudoers.d/boxwright-ada")
        assert "admin" in mac.sh("id -Gn ada").split()

    def test_all_keys_are_taken_out(self, mac):
        mac.people(Person("ada", ssh_keys=KEYS))
        result = mac.people(Person("ada"))
        assert result.changed == [True], result.printed
        assert mac.sh("cat /Users/ada/.ssh/authorized_keys") == ""
        assert mac.people(Person("ada")).changed == [False]

    def test_a_link_in_the_home_leads_root_nowhere(self, mac):
        mac.people(Person("bob"))
        mac.sh("mkdir -p -m 0700 /var/root/.ssh; rm -rf /Users/bob/.ssh; ln -s /var/root/.ssh /Users/bob/.ssh")
        mac.sh("chown -h bob /Users/bob/.ssh")
        assert not mac.people(Person("bob", ssh_keys=("ssh-rsa EVIL",))).ok
        assert mac.sh("ls -A /var/root/.ssh") == ""

    def test_who_may_come_by_ssh(self, mac):
        """On a Mac whose list of them exists, a person with a key is put on it; without one, it is not made."""
        mac.people(Person("ada", ssh_keys=KEYS))
        assert "eDSRecordNotFound" in mac.sh("dscl . -read /Groups/com.apple.access_ssh RecordName")
        mac.sh("dseditgroup -o create -i 399 com.apple.access_ssh </dev/null")
        assert mac.people(Person("ada", ssh_keys=KEYS), Person("bob")).changed == [True]
        assert mac.people(Person("ada", ssh_keys=KEYS), Person("bob")).changed == [False]
        assert "yes ada" in mac.sh("dseditgroup -o checkmember -m ada com.apple.access_ssh")
        assert "no bob" in mac.sh("dseditgroup -o checkmember -m bob com.apple.access_ssh")
        assert mac.people(Person("bob", ssh_keys=KEYS)).changed == [True]
        assert "yes bob" in mac.sh("dseditgroup -o checkmember -m bob com.apple.access_ssh")

    def test_members_of_a_group(self, mac):
        mac.people(Person("ada"))
        assert mac.run(lambda: users.group_members("_developer", ["ada", "operator"])).changed == [True]
        assert mac.run(lambda: users.group_members("_developer", ["ada", "operator"])).changed == [False]
        result = mac.run(lambda: users.group_members("nogroup-here", ["ada"]))
        assert "the group 'nogroup-here' does not exist" in result.printed
        mac.sh("dseditgroup -o edit -d operator -t user _developer")

    def test_gone_with_or_without_the_home(self, mac):
        mac.people(Person("ada", ("admin",), KEYS, "password"), Person("bob", ("admin",)))
        assert mac.gone("ada").changed == [True]
        assert mac.gone("bob", home=True).changed == [True]
        for name in ("ada", "bob"):
            assert mac.gone(name).changed == [False]
            assert "no such user" in mac.sh(f"id {name}")
            assert name not in mac.sh("dscl . -read /Groups/admin GroupMembership").split()
        assert "No such file" in mac.sh("ls /etc/sudoers.d/boxwright-ada")
        assert mac.sh("ls -d /Users/ada").strip() == "/Users/ada"
        assert "No such file" in mac.sh("ls -d /Users/bob")
        mac.sh("rm -rf /Users/ada")

    def test_without_full_disk_access(self, mac, double):
        mac.people(Person("bob"))
        double.set(full_disk_access=False)
        result = mac.people(Person("ada"))
        assert "macOS refuses to write /Users/ada" in result.printed
        assert "Allow full disk access for remote users" in result.printed
        result = mac.gone("bob")
        assert not result.ok
        assert "remove the account bob" in result.printed
        assert mac.sh("id -un bob").strip() == "bob"

    def test_the_last_administrator_stays(self, mac):
        result = mac.gone("operator", home=True)
        assert not result.ok
        assert "remove the account operator" in result.printed
        assert "admin" in mac.sh("id -Gn operator").split()
        assert ".ssh" in mac.sh("ls -A /Users/operator").split()
