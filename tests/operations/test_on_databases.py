"""PostgreSQL and Redis as the roles set them up, on a real Debian: applied, broken, changed, restored, removed."""

from __future__ import annotations

from typing import Any

import pytest
from machine import Machine

from boxwright.preflight import Machine as Found
from boxwright.preflight import examine
from boxwright.settings import parse_box
from roles.postgresql import tasks as postgresql
from roles.redis import tasks as redis
from roles.registry import Box

pytestmark = pytest.mark.lab

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
PASSWORD, OTHER = "a 'password' \\ with : signs, of the tests", "another password of the tests"
DATABASE = "boxwright_api_production"
PSQL = "/opt/boxwright/postgresql/bin/psql"


@pytest.fixture(scope="module")
def machine():
    machine = Machine()
    yield machine
    machine.close()


def a_box(**variables: Any) -> Box:
    given = {
        "gateway_names": ["llm.example"],
        "inference_models": [MODEL],
        "api_enabled": True,
        "api_store": "full",
        "api_database_password": PASSWORD,
        "redis_password": "of-the-tests-of-redis",
    }
    return parse_box(Box, "box", ("linux",), {**given, **variables}, None, None)


def found(machine: Machine, *paths: str, release: str = "13") -> Found:
    """What the preflight tells of the machine, but for the release."""
    there = {path for path in paths if "No such file" not in machine.sh(f"ls -d {path}")}
    return Found(
        "Linux", "x86_64", "debian", release, systemd=True, memory=2**33, disk_free=2**34, files=frozenset(there)
    )


def killed(machine: Machine, unit: str) -> None:
    """SIGKILL to the service; returns when another process of it is ready."""
    said = machine.sh(
        f"""
        before=$(systemctl show --value -p MainPID {unit}); kill -9 "$before"
        for i in $(seq 300); do
            # In this order: what is active before the question about the process may be the one that just ends.
            case $(systemctl show --value -p MainPID {unit}) in 0 | "$before") ;;
                *) ! systemctl is-active -q {unit} || {{ echo another; break; }} ;;
            esac
            sleep 0.2
        done
        """
    )
    assert "another" in said


class Role:
    """One of the roles on the machine."""

    def __init__(self, machine: Machine, tasks: Any, release: str = "13") -> None:
        self.machine, self.tasks, self.release = machine, tasks, release

    def apply(self, box: Box, **options: Any) -> list[bool]:
        """Which steps changed something."""
        there = found(self.machine, *self.tasks.need(box).files, release=self.release)
        result = self.machine.run(lambda: self.tasks.apply(box, there), **options)
        assert result.ok, result.printed
        return result.changed

    def remove(self, box: Box, purge: bool = False) -> list[bool]:
        result = self.machine.run(lambda: self.tasks.remove(box, purge))
        assert result.ok, result.printed
        return result.changed


class TestPostgresql:
    @pytest.fixture
    def role(self, machine):
        return Role(machine, postgresql)

    @pytest.fixture
    def box(self, role):
        """It is there."""
        box = a_box()
        role.apply(box)
        return box

    def sql(self, machine, text, user=DATABASE, password=PASSWORD, database=DATABASE):
        """What a client with a password is told, by psql alone."""
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        machine.put("/root/pgpass", f"*:*:*:*:{escaped}\n".encode(), 0o600)
        where = f"-h 127.0.0.1 -U {user} -d {database}"
        return machine.sh(f"PGPASSFILE=/root/pgpass {PSQL} -XAtw {where} -c '{text}'").strip()

    def test_a_plan_asks_and_changes_nothing(self, machine, role):
        before = machine.sh("dpkg-query --show; ls /etc/boxwright /var/lib/boxwright")
        assert any(role.apply(a_box(), dry=True))
        assert machine.sh("dpkg-query --show; ls /etc/boxwright /var/lib/boxwright") == before

    def test_applied_once(self, machine, role):
        assert any(role.apply(a_box()))
        assert not any(role.apply(a_box()))
        assert self.sql(machine, "SELECT 1") == "1"
        # The distribution's own instance was neither made nor started.
        assert machine.sh("pg_lsclusters -h").strip() == ""
        assert machine.sh("ss -Hltn 'sport = :5432' | awk '{print $4}'").split() == ["127.0.0.1:5432"]
        assert machine.sh("stat -c '%U %a' /var/lib/boxwright/postgresql/17").strip() == "boxwright-postgresql 700"

    def test_who_comes_in(self, machine, box):
        assert "password authentication failed" in self.sql(machine, "SELECT 1", password="wrong")
        assert "no pg_hba.conf entry" in self.sql(machine, "SELECT 1", user="boxwright-postgresql")
        assert "no pg_hba.conf entry" in self.sql(machine, "SELECT 1", database="postgres")
        nobody = f"runuser -u nobody -- {PSQL} -XAtw -h /run/boxwright-postgresql -d postgres -c 'SELECT 1'"
        assert "Permission denied" in machine.sh(nobody)
        assert PASSWORD not in machine.sh("journalctl --no-pager; cat /proc/[0-9]*/cmdline | tr '\\0' ' '")

    def test_a_password_that_was_changed(self, machine, role, box):
        self.sql(machine, "CREATE TABLE kept (x int)")
        changed = a_box(api_database_password=OTHER)
        assert sum(role.apply(changed)) == 1
        assert self.sql(machine, "SELECT 1", password=OTHER) == "1"
        assert "password authentication failed" in self.sql(machine, "SELECT 1")
        assert not any(role.apply(changed))
        assert sum(role.apply(box)) == 1
        assert self.sql(machine, "SELECT count(*) FROM kept") == "0"
        self.sql(machine, "DROP TABLE kept")

    def test_drift_is_repaired(self, machine, role, box):
        admin = f"runuser -u boxwright-postgresql -- {PSQL} -Xqw -h /run/boxwright-postgresql -d postgres"
        machine.sh(
            f'{admin} -c "ALTER ROLE {DATABASE} SUPERUSER"; {admin} -c "GRANT CONNECT ON DATABASE {DATABASE} TO PUBLIC"'
        )
        machine.sh("echo 'host all all all trust' >>/etc/boxwright/postgresql/pg_hba.conf")
        machine.sh("systemctl stop boxwright-postgresql")
        assert any(role.apply(box))
        assert self.sql(machine, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == "f"
        assert "no pg_hba.conf entry" in self.sql(machine, "SELECT 1", database="postgres")
        assert not any(role.apply(box))

    def test_settings_that_it_does_not_know_are_refused_and_the_old_ones_stay(self, machine, role, box):
        wrong = a_box(postgresql_options={"no_such_setting": "1"})
        there = found(machine, *postgresql.need(wrong).files)
        result = machine.run(lambda: postgresql.apply(wrong, there))
        assert not result.ok
        assert "no_such_setting" in result.printed
        assert not any(role.apply(box))

    def test_killed_it_comes_back(self, machine, role, box):
        killed(machine, "boxwright-postgresql")
        assert not any(role.apply(box))

    def test_a_copy_is_made_and_brings_everything_back(self, machine, role, box):
        self.sql(machine, "CREATE TABLE things (name text)")
        self.sql(machine, "INSERT INTO things VALUES ($$one$$)")
        assert "boxwright-postgresql-backup.timer" in machine.sh("systemctl list-timers --all --no-pager")
        for _ in range(2):
            assert machine.sh("systemctl start boxwright-postgresql-backup && echo done").strip() == "done"
            machine.sh("sleep 1")
        listed = machine.sh("stat -c '%U %a %n' /var/lib/boxwright/postgresql-backups/*").splitlines()
        assert len(listed) == 2
        assert {line.rsplit(" ", 1)[0] for line in listed} == {"boxwright-postgresql 600"}
        self.sql(machine, "DROP TABLE things")
        # As docs/databases.md says it.
        programs = "/opt/boxwright/postgresql/bin"
        restore = (
            f"runuser -u boxwright-postgresql -- {programs}/pg_restore --clean --if-exists --exit-on-error "
            f"-h /run/boxwright-postgresql -d {DATABASE} "
            "$(ls -t /var/lib/boxwright/postgresql-backups/*.dump | head -n 1)"
        )
        assert machine.sh(f"cd / && {restore} && echo restored").strip() == "restored"
        assert self.sql(machine, "SELECT name FROM things") == "one"
        self.sql(machine, "DROP TABLE things")

    def test_copies_beyond_the_number_go(self, machine, role):
        role.apply(a_box(postgresql_backups=1))
        machine.sh("systemctl start boxwright-postgresql-backup")
        assert len(machine.sh("ls /var/lib/boxwright/postgresql-backups").split()) == 1

    def test_a_second_database_beside_the_first(self, machine, role):
        both = a_box(api_development=True, api_development_database_password=OTHER)
        assert any(role.apply(both))
        assert not any(role.apply(both))
        development = {"user": "boxwright_api_development", "password": OTHER}
        assert self.sql(machine, "SELECT 1", **development, database="boxwright_api_development") == "1"
        assert "no pg_hba.conf entry" in self.sql(machine, "SELECT 1", **development)

    def test_removed_and_back_with_its_data(self, machine, role, box):
        self.sql(machine, "CREATE TABLE kept (x int)")
        assert any(role.remove(box))
        assert not any(role.remove(box))
        assert "No such file" in machine.sh("ls /etc/boxwright/postgresql")
        assert machine.sh("stat -c %U /var/lib/boxwright/postgresql").strip() == "root"
        assert "no such user" in machine.sh("id boxwright-postgresql")
        assert "No such file" in machine.sh("ls /usr/lib/postgresql/17/bin/postgres")
        role.apply(box)
        assert self.sql(machine, "SELECT count(*) FROM kept") == "0"

    def test_purged(self, machine, role, box):
        assert any(role.remove(box, purge=True))
        assert not any(role.remove(box, purge=True))
        assert "postgresql" not in machine.sh("ls /var/lib/boxwright /etc/boxwright /opt/boxwright")

    def test_beside_one_that_was_there(self, machine, role):
        # As on a machine that boxwright was never on: dpkg would remember that the package was there.
        machine.sh("apt-get purge --quiet=2 --assume-yes 'postgresql*'")
        machine.sh("apt-get install --quiet=2 --assume-yes --no-install-recommends postgresql-17")
        assert "5432" in machine.sh("pg_lsclusters -h")
        machine.sh("runuser -u postgres -- createdb theirs")
        box = a_box(postgresql_port=5433)
        assert any(role.apply(box))
        assert not any(role.apply(box))
        assert any(role.remove(box, purge=True))
        assert "theirs" in machine.sh("runuser -u postgres -- psql -XAtl")
        assert not any(role.remove(box, purge=True))


@pytest.fixture(scope="module", params=["valkey", "redis"])
def kind(request):
    """Debian 13 has both servers. Releases without Valkey get Redis: here for Debian 12."""
    return request.param


class TestRedis:
    @pytest.fixture
    def role(self, machine, kind):
        return Role(machine, redis, {"valkey": "13", "redis": "12"}[kind])

    @pytest.fixture
    def box(self, role):
        """It is there."""
        box = a_box()
        role.apply(box)
        return box

    @pytest.fixture
    def ask(self, machine, kind):
        """What a client is told."""

        def said(*words, password="of-the-tests-of-redis"):
            return machine.sh(f"REDISCLI_AUTH={password} {kind}-cli {' '.join(words)}").strip()

        return said

    def test_a_plan_asks_and_changes_nothing(self, machine, role):
        before = machine.sh("dpkg-query --show; ls /etc/boxwright /etc/systemd/system")
        assert any(role.apply(a_box(), dry=True))
        assert machine.sh("dpkg-query --show; ls /etc/boxwright /etc/systemd/system") == before

    def test_applied_once(self, machine, role, kind, ask):
        assert any(role.apply(a_box()))
        assert not any(role.apply(a_box()))
        assert ask("ping") == "PONG"
        assert "NOAUTH" in machine.sh(f"{kind}-cli ping")
        assert machine.sh("ss -Hltn 'sport = :6379' | awk '{print $4}'").split() == ["127.0.0.1:6379"]
        assert "inactive" in machine.sh(f"systemctl is-active {kind}-server")
        assert "maxmemory-policy\nnoeviction" in ask("config get maxmemory-policy")
        assert machine.sh("stat -c '%U %G %a' /etc/boxwright/redis/password.conf").strip() == "root boxwright-redis 640"

    def test_what_was_counted_survives_a_kill(self, machine, role, box, ask):
        assert ask("set", "budget", "7") == "OK"
        machine.sh("sleep 1.5")  # what is on the disk is a second old at most
        killed(machine, "boxwright-redis")
        assert ask("get", "budget") == "7"
        assert not any(role.apply(box))

    def test_a_new_password_and_drift(self, machine, role, box, ask):
        changed = a_box(redis_password="another-of-the-tests")
        assert any(role.apply(changed))
        assert ask("get", "budget", password="another-of-the-tests") == "7"
        assert "WRONGPASS" in ask("get", "budget") or "NOAUTH" in ask("get", "budget")
        machine.sh("echo 'bind 0.0.0.0' >>/etc/boxwright/redis/redis.conf; systemctl restart boxwright-redis")
        assert any(role.apply(changed))
        assert machine.sh("ss -Hltn 'sport = :6379' | awk '{print $4}'").split() == ["127.0.0.1:6379"]
        assert not any(role.apply(changed))
        role.apply(box)

    def test_removed_and_back_with_its_data(self, machine, role, box, kind, ask):
        assert any(role.remove(box))
        assert not any(role.remove(box))
        assert "No such file" in machine.sh(f"ls /etc/systemd/system/{kind}-server.service")
        role.apply(box)
        assert ask("get", "budget") == "7"
        assert any(role.remove(box, purge=True))
        assert not any(role.remove(box, purge=True))
        assert "redis" not in machine.sh("ls /var/lib/boxwright /etc/boxwright")

    def test_beside_one_that_was_there(self, machine, role, kind):
        machine.sh(f"apt-get install --quiet=2 --assume-yes --no-install-recommends {kind}-server")
        machine.sh(f"{kind}-cli set theirs 1")
        box = a_box(redis_port=6380)
        assert any(role.apply(box))
        assert not any(role.apply(box))
        assert any(role.remove(box, purge=True))
        assert not any(role.remove(box, purge=True))
        assert machine.sh(f"{kind}-cli get theirs").strip() == "1"
        machine.sh(f"apt-get purge --quiet=2 --assume-yes {kind}-server")


@pytest.mark.parametrize(
    ("tasks", "port", "name"), [(postgresql, 5432, "postgres"), (redis, 6379, "valkey-server"), (redis, 6379, "redis")]
)
def test_one_of_anothers_on_the_port_is_refused_before_anything_is_changed(tasks, port, name):
    need = tasks.need(a_box())
    there = Found(
        "Linux", "x86_64", "debian", "13", systemd=True, memory=2**33, disk_free=2**34, listeners={port: (name,)}
    )
    (problem,) = examine(there, need)
    assert problem.code == "BW113"
    assert problem.message.endswith(f"taken by {name}, which boxwright did not set up")
    assert "to another port" in (problem.help or "")
