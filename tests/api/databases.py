"""Real PostgreSQL, Valkey and Redis from Debian's packages, in one container that is thrown away at the end.

They listen on the container's own address, which only this machine reaches; each test takes a database and a prefix of
its own.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from machine import Machine

from boxwright.lab import image

REPOSITORY = "boxwright-test-databases"
PACKAGES = (*image.PACKAGES, "postgresql", "valkey-server", "redis-server")
# Units of the servers that count limits, and their ports. What is for either is tested with both.
VALKEY, REDIS = "valkey-server", "redis-server"
PORTS = {VALKEY: 6379, REDIS: 6380}
# The servers of the packages begin at the first boot of the image, with these settings.
SETUP = (
    image.BOX_SETUP
    + """
for file in "$1"/etc/postgresql/*/main; do
    printf "listen_addresses = '*'\\nmax_connections = 200\\nfsync = off\\n" >"$file/conf.d/tests.conf"
    printf 'host all all 0.0.0.0/0 scram-sha-256\\n' >>"$file/pg_hba.conf"
done
for pair in valkey/valkey.conf:6379 redis/redis.conf:6380; do
    file=$1/etc/${pair%:*}
    sed -i 's/^bind .*/bind 0.0.0.0/; s/^protected-mode .*/protected-mode no/; s/^save .*//' "$file"
    printf 'port %s\\nsave ""\\n' "${pair#*:}" >>"$file"
done
"""
)


def ensure_image(client: Any, progress: Any) -> str:
    recipe = image.recipe(image.SUITE, PACKAGES, SETUP)
    return image.ensure(client, progress, "image with databases", REPOSITORY, recipe)


@dataclass
class Databases:
    """The container with both servers, for one test session."""

    machine: Any = field(default_factory=lambda: Machine(ensure_image))
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    redis_password: str = field(default_factory=lambda: secrets.token_hex(16))
    _count: int = 0

    def __post_init__(self) -> None:
        self.wait("runuser -u postgres -- psql -qc 'SELECT 1'")
        self.sh(f"runuser -u postgres -- psql -qc \"CREATE ROLE boxwright LOGIN CREATEDB PASSWORD '{self.password}'\"")
        for server in PORTS:
            self._close(server)

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        self.machine.container.reload()
        networks = self.machine.container.attrs["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    def redis(self, server: str = VALKEY) -> str:
        """URL of one of those that count; the password is `redis_password`. Take a prefix of your own."""
        return f"redis://{self.address}:{PORTS[server]}/0"

    def database(self) -> str:
        """URL of a new, empty database; the user's password is `password`."""
        self._count += 1
        name = f"test_{self._count}_{secrets.token_hex(4)}"
        self.sh(f"runuser -u postgres -- createdb --owner boxwright {name}")
        return f"postgresql://boxwright@{self.address}:5432/{name}"

    def stop(self, name: str) -> None:
        """Stop `postgresql` or one of PORTS."""
        self.sh(f"systemctl stop {name}")
        if name == "postgresql":
            # That unit only stands for the clusters' own, which are stopped with it, but not waited for.
            self.wait("! pg_lsclusters --no-header | grep -q online")

    def start(self, name: str) -> None:
        """Start it again, and wait until it answers."""
        self.sh(f"systemctl start {name}")
        if name in PORTS:
            # What was set at run time is gone.
            self._close(name)
        else:
            self.wait("runuser -u postgres -- psql -qc 'SELECT 1'")

    def _close(self, server: str) -> None:
        """When it answers, it does so only with the password from now on."""
        ask = f"valkey-cli -p {PORTS[server]}"
        self.wait(f"{ask} ping | grep -q PONG")
        self.sh(f"{ask} CONFIG SET requirepass {self.redis_password}")

    def sh(self, text: str) -> str:
        """What a shell command in the container prints; it must succeed."""
        code, out, err = self.machine._exec(["sh", "-c", text])
        assert code == 0, f"{text}: {out}{err}"
        return str(out)

    def wait(self, *conditions: str) -> None:
        """Until these shell commands succeed, for a minute."""
        deadline = time.monotonic() + 60
        while self.machine._exec(["sh", "-c", " && ".join(conditions)])[0] != 0:
            assert time.monotonic() < deadline, self.machine.sh("systemctl --failed; journalctl -n 30 --no-pager")
            time.sleep(0.1)

    def close(self) -> None:
        """It is gone."""
        self.machine.close()
