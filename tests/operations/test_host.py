"""The host role on a real Debian: sleep, updates by real unattended-upgrades, the time service, and apt in trouble."""

import shlex
from dataclasses import replace

import pytest
from harness import run
from machine import Machine
from signed_repository import Key, Server, package, publish

from boxwright.artifacts import AptRepository
from boxwright.operations import apt, apt_repositories, files, power
from boxwright.preflight import Machine as Described
from boxwright.settings import parse_box
from roles.host import linux
from roles.host import tasks as host
from roles.registry import Box

pytestmark = pytest.mark.lab

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
DEBIAN = Described("Linux", "x86_64", "debian", "13", True, 2**33, 2**36, codename="trixie", container=True)


@pytest.fixture(scope="module")
def machine():
    machine = Machine()
    yield machine
    machine.close()


def a_box(**variables):
    defaults = {"gateway_names": ["llm.example"], "inference_models": [MODEL]}
    return parse_box(Box, "box", (), {**defaults, **variables}, None, None)


class TestSleep:
    @pytest.fixture(autouse=True)
    def _awake(self, machine):
        yield
        machine.run(lambda: power.may_sleep())

    def lid(self, machine):
        """What logind itself says it does when the lid is closed."""
        manager = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
        return machine.sh(f"busctl get-property {manager} HandleLidSwitch").split('"')[1]

    def test_never_and_again(self, machine):
        machine.sh("systemctl start systemd-logind")
        before = machine.sh("find /etc/systemd /var/lib/boxwright | sort")
        assert self.lid(machine) == "suspend"
        assert machine.run(lambda: power.stay_awake(), dry=True).changed == [True]
        assert machine.run(lambda: power.stay_awake()).changed == [True]
        again = machine.run(lambda: power.stay_awake())
        assert (again.changed, len(again.asked)) == ([False], 1)
        assert self.lid(machine) == "ignore"
        assert "masked" in machine.sh("systemctl start suspend.target")
        assert machine.run(lambda: power.may_sleep()).changed == [True]
        assert machine.run(lambda: power.may_sleep()).changed == [False]
        assert self.lid(machine) == "suspend"
        assert machine.sh("find /etc/systemd /var/lib/boxwright | sort") == before

    def test_what_drifted(self, machine):
        machine.run(lambda: power.stay_awake())
        for harm in (
            "systemctl unmask suspend.target",
            f"rm {power.SETTINGS}",
            f"sed -i s/ignore/suspend/ {power.SETTINGS}",
            # Changed by hand, taken up by logind, and changed back: the file is right, logind is not.
            f"cp {power.SETTINGS} /root/x; sed -i s/ignore/poweroff/ {power.SETTINGS}; "
            f"kill -HUP $(systemctl show --value -p MainPID systemd-logind); sleep 0.5; cp /root/x {power.SETTINGS}",
        ):
            machine.sh(harm)
            assert machine.run(lambda: power.stay_awake()).changed == [True], harm
            assert self.lid(machine) == "ignore"
            assert machine.run(lambda: power.stay_awake()).changed == [False], harm

    def test_what_somebody_else_masked_stays(self, machine):
        machine.sh("systemctl mask hibernate.target")
        machine.run(lambda: power.stay_awake())
        machine.run(lambda: power.may_sleep())
        assert machine.sh("systemctl is-enabled hibernate.target") == "masked\n"
        assert machine.sh("systemctl is-enabled suspend.target") == "static\n"
        machine.sh("systemctl unmask hibernate.target")

    def test_a_run_that_was_killed_is_undone(self, machine):
        """The targets are masked, and nothing else was done."""

        def answer(asked):
            return machine.answer(asked) if "HandleLidSwitch=ignore" not in asked.stdin else (False, ["killed"])

        assert not run(lambda: power.stay_awake(), answer).ok
        assert machine.run(lambda: power.may_sleep()).changed == [True]
        assert machine.sh("systemctl is-enabled suspend.target") == "static\n"
        assert "No such file" in machine.sh("ls -d /etc/systemd/logind.conf.d")


class TestUpdates:
    """Two packages have a new version in a repository: one is a driver's by its name."""

    @pytest.fixture(scope="class")
    @classmethod
    def site(cls, machine, tmp_path_factory):
        root, key = tmp_path_factory.mktemp("updates"), Key()
        server = Server(root)
        gateway = machine.sh("ip -4 route show default").split()[2]
        repository = AptRepository(
            name="updates",
            url=f"http://{gateway}:{server.port}",
            suite="trixie",
            key_url=f"http://{gateway}:{server.port}/key.asc",
            key_fingerprint=key.fingerprint,
            licence="MIT",
        )
        debs = [package(tmp_path_factory.mktemp("debs"), name, "1.0") for name in ("nvidia-sample", "plain-sample")]
        publish(root, key, debs)
        machine.run(lambda: apt_repositories.repository(repository))
        machine.run(lambda: apt.packages(["nvidia-sample", "plain-sample", "unattended-upgrades"]))
        newer = [package(tmp_path_factory.mktemp("newer"), name, "2.0") for name in ("nvidia-sample", "plain-sample")]
        publish(root, key, newer)
        machine.sh("apt-get update --quiet=2")
        yield
        machine.run(lambda: apt.packages_absent(["nvidia-sample", "plain-sample", "unattended-upgrades"], purge=True))
        machine.run(lambda: apt_repositories.repository_absent("updates"))
        server.close()
        key.close()

    @pytest.fixture(autouse=True)
    def _gone(self, machine):
        yield
        machine.run(lambda: files.absent(linux.UPGRADES))

    def policy(self, machine, **variables):
        box = a_box(**variables)
        result = machine.run(lambda: linux.configure(box, DEBIAN))
        assert result.ok, result.printed
        assert not any(machine.run(lambda: linux.configure(box, DEBIAN)).changed)

    def version(self, machine, name):
        return machine.sh(f"dpkg-query --show --showformat '${{Version}}' {name}")

    def test_only_from_the_declared_origins(self, machine, site):
        self.policy(machine, host_unattended_upgrades="security")
        said = machine.sh("unattended-upgrade --dry-run --debug")
        assert "No packages found that can be upgraded unattended" in said
        dump = machine.sh("apt-config dump APT::Periodic; apt-config dump Unattended-Upgrade::Automatic-Reboot")
        for line in ('Unattended-Upgrade "1"', 'Update-Package-Lists "1"', 'Automatic-Reboot "false"'):
            assert line in dump
        # Debian's own file allows more than security updates; ours takes its place.
        origins = machine.sh("apt-config dump Unattended-Upgrade::Origins-Pattern").splitlines()[1:]
        assert len(origins) == 2
        assert all("label=Debian-Security" in line for line in origins)

    def test_a_driver_is_not_updated_without_a_person(self, machine, site):
        box = {"host_unattended_upgrades": "all", "host_upgrade_origins": ["origin=Test"]}
        self.policy(machine, **box, host_upgrade_reboot="04:30")
        assert "nvidia-sample" in machine.sh("unattended-upgrade --debug")
        assert self.version(machine, "plain-sample") == "2.0"
        assert self.version(machine, "nvidia-sample") == "1.0"
        assert 'Automatic-Reboot-Time "04:30"' in machine.sh("apt-config dump Unattended-Upgrade")
        # By hand it is: nothing is held in dpkg.
        assert "Inst nvidia-sample" in machine.sh("apt-get --simulate upgrade")

    def test_left_to_the_system_but_for_the_holds(self, machine, site):
        before = machine.sh("apt-config dump APT::Periodic; apt-config dump Unattended-Upgrade::Origins-Pattern")
        self.policy(machine)
        assert (
            machine.sh("apt-config dump APT::Periodic; apt-config dump Unattended-Upgrade::Origins-Pattern") == before
        )
        assert '"containerd"' in machine.sh("apt-config dump Unattended-Upgrade::Package-Blacklist")

    def test_never(self, machine, site):
        self.policy(machine, host_unattended_upgrades="never", host_upgrade_holds=[r"lib.*\.1$"])
        assert 'Unattended-Upgrade "0"' in machine.sh("apt-config dump APT::Periodic::Unattended-Upgrade")
        assert r'"lib.*\.1$"' in machine.sh("apt-config dump Unattended-Upgrade::Package-Blacklist")

    def test_the_timers_are_on(self, machine, site):
        machine.sh("systemctl mask apt-daily-upgrade.timer")
        box = a_box(host_unattended_upgrades="security")
        result = machine.run(lambda: linux.activate(box, DEBIAN))
        assert result.ok, result.printed
        assert machine.sh("systemctl is-active apt-daily-upgrade.timer") == "active\n"
        assert not any(machine.run(lambda: linux.activate(box, DEBIAN)).changed)
        machine.sh("systemctl disable --now apt-daily.timer apt-daily-upgrade.timer")


class TestTime:
    """systemd-timesyncd itself: it may not set a container's clock, so it is let run without doing so."""

    REAL = replace(DEBIAN, container=False)

    def apply(self, machine, **variables):
        box = a_box(host_sleep="as_is", **variables)

        def deploy():
            linux.install(box, self.REAL)
            linux.configure(box, self.REAL)
            linux.activate(box, self.REAL)

        result = machine.run(deploy)
        assert result.ok, result.printed
        return any(result.changed)

    def test_the_declared_servers(self, machine):
        free = "[Unit]\nConditionVirtualization=\nConditionCapability=\n[Service]\nAmbientCapabilities=\n"
        machine.sh("mkdir -p /run/systemd/system/systemd-timesyncd.service.d")
        machine.put("/run/systemd/system/systemd-timesyncd.service.d/free.conf", free.encode())
        machine.sh("systemctl daemon-reload")
        assert self.apply(machine, host_time_servers=["192.0.2.1", "192.0.2.2"])
        assert not self.apply(machine, host_time_servers=["192.0.2.1", "192.0.2.2"])
        asks = "timedatectl show-timesync --value --property SystemNTPServers"
        assert machine.sh(asks).split() == ["192.0.2.1", "192.0.2.2"]
        machine.sh("systemctl disable --now systemd-timesyncd")
        assert self.apply(machine, host_time_servers=["192.0.2.3"])
        assert machine.sh(asks).split() == ["192.0.2.3"]
        assert self.apply(machine)
        assert machine.sh(asks).split() == []
        assert not self.apply(machine)
        machine.run(lambda: host.remove(a_box(), purge=True))
        assert "could not be found" in machine.sh("systemctl status systemd-timesyncd")

    @pytest.mark.parametrize(
        "described",
        [replace(DEBIAN, container=True), replace(DEBIAN, container=False, time_service="chrony")],
    )
    def test_left_alone(self, described):
        assert not linux.keeps_time(a_box(), described)
        assert linux.keeps_time(a_box(), replace(DEBIAN, container=False))


# Holds apt's lock as apt does, until the file /run/let-go is there.
HOLDER = """
import fcntl, os, pathlib, sys, time
opened = open(sys.argv[1], "w")
fcntl.lockf(opened, fcntl.LOCK_EX)
pathlib.Path("/run/holds").write_text(str(os.getpid()))
while not pathlib.Path("/run/let-go").exists():
    time.sleep(0.05)
"""


class TestTrouble:
    @pytest.fixture
    def holder(self, machine):
        """Makes another process hold a lock of apt's."""
        machine.sh("rm -f /run/holds /run/let-go")
        machine.put("/usr/local/bin/some-updater", HOLDER.encode())

        def hold(lock):
            machine.sh(f"setsid python3 /usr/local/bin/some-updater {lock} >/dev/null 2>&1 &")
            machine.sh("until [ -s /run/holds ]; do sleep 0.05; done")

        yield hold
        # It looks every 50 ms; the next test must not find the lock still taken.
        machine.sh(
            "touch /run/let-go; rm /usr/local/bin/some-updater; "
            "[ ! -s /run/holds ] || while [ -e /proc/$(cat /run/holds) ]; do sleep 0.05; done"
        )

    @pytest.mark.parametrize("lock", ["/var/lib/dpkg/lock-frontend", "/var/lib/apt/lists/lock"])
    def test_another_program_that_uses_apt_is_waited_for(self, machine, holder, lock):
        said = []

        def answer(asked):
            if "note dependency" not in asked.text:
                return machine.answer(asked)
            # It lets go as soon as somebody waits for it.
            watch = "(until grep -q waiting /run/said; do sleep 0.05; done; touch /run/let-go) >/dev/null 2>&1 &"
            words = shlex.join(["sh", "-c", asked.text, "boxwright", *asked.arguments])
            code, _, _ = machine._exec(["sh", "-c", f": >/run/said; {watch} {words} 2>/run/said"])
            said.append(machine.sh("cat /run/said"))
            return code == 0, said

        holder(lock)
        machine.sh("rm -rf /var/lib/boxwright/apt-updated")
        result = run(lambda: apt.packages(["tree"]), answer)
        assert result.changed == [True], result.printed
        assert "apt is in use, waiting for it: process" in said[0]
        assert f"(python3 /usr/local/bin/some-updater {lock}) holds {lock}" in said[0]
        machine.run(lambda: apt.packages_absent(["tree"]))

    def test_one_that_never_ends_is_named(self, machine, holder):
        def answer(asked):
            return machine.answer(replace(asked, text=asked.text.replace("-gt 600", "-gt 1")))

        holder("/var/lib/dpkg/lock-frontend")
        result = run(lambda: apt.packages(["tree"]), answer)
        assert not result.ok
        assert "apt has been in use by another program for 10 minutes: process" in result.printed
        assert "(python3 /usr/local/bin/some-updater" in result.printed
        assert "let it finish, or end it if it hangs" in result.printed

    def test_a_package_that_could_not_be_configured_is_repaired_when_it_can_be(self, machine, tmp_path):
        """A half-configured package stops every later apt-get; its reason may have gone by now."""
        made = package(tmp_path, "shaky")
        machine.put("/root/shaky.deb", made.read_bytes())
        script = "#!/bin/sh\\n[ -e /run/steady ] || { echo no steady ground; exit 1; }\\n"
        machine.sh(
            "cd /root && dpkg-deb -R shaky.deb tree && "
            f"printf '{script}' >tree/DEBIAN/postinst && chmod 755 tree/DEBIAN/postinst && dpkg-deb -b tree shaky.deb; "
            "rm -f /run/steady; dpkg -i shaky.deb"
        )
        assert "iF  shaky" in machine.sh("dpkg --list shaky")
        result = machine.run(lambda: apt.packages(["tree"]))
        assert not result.ok
        assert "no steady ground" in result.printed
        machine.sh("touch /run/steady")
        assert machine.run(lambda: apt.packages(["tree"])).changed == [True]
        assert "ii  shaky" in machine.sh("dpkg --list shaky")
        assert machine.run(lambda: apt.packages(["tree"])).changed == [False]
        machine.run(lambda: apt.packages_absent(["tree"]))
        machine.sh("dpkg --purge shaky; rm -rf /root/tree /root/shaky.deb")
