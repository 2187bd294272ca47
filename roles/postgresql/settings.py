"""Variables of the postgresql role."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from boxwright.errors import Problem
from boxwright.settings import Port, RoleSettings, Secret

# Links to the programs of the release that a box has.
PROGRAMS = "/opt/boxwright/postgresql/bin"
# What Homebrew calls the release that a Mac gets.
FORMULA = "postgresql@17"
# The release that each distribution has: https://packages.debian.org and https://packages.ubuntu.com, of `postgresql`.
RELEASES = {
    ("debian", "12"): "15",
    ("debian", "13"): "17",
    ("ubuntu", "22.04"): "14",
    ("ubuntu", "24.04"): "16",
    ("ubuntu", "26.04"): "18",
}

OptionName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*(\.[a-z0-9_]+)?$")]
OptionValue = Annotated[str, Field(pattern=r"^[^\n']*$")]

# What decides who may come in, and where everything is.
OWN = (
    *("listen_addresses", "port", "unix_socket_directories", "unix_socket_permissions", "data_directory", "hba_file"),
    *("ident_file", "password_encryption", "external_pid_file", "config_file", "jit"),
)


@dataclass(frozen=True)
class Database:
    """A database, and the role of the same name that owns it."""

    name: str
    password: Secret


class PostgresqlSettings(RoleSettings, prefix="postgresql"):
    """PostgreSQL on loopback, for services of the box."""

    enabled: bool | None = Field(
        None, description="Run PostgreSQL. Unset it runs where a service of the box needs it (`api_store: full`)."
    )
    port: Port = Field(5432, description="TCP port on loopback where it listens.")
    connections: int = Field(100, ge=10, le=10000, description="Connections at the same time.")
    memory: int = Field(128, ge=16, le=1048576, description="MiB of memory for its own cache (`shared_buffers`).")
    options: dict[OptionName, OptionValue] = Field(
        {},
        description="Further settings of postgresql.conf, handed on as they are.",
        examples=[{"work_mem": "16MB", "log_min_duration_statement": "1s"}],
    )
    backups: int = Field(7, ge=0, le=1000, description="Copies of each database that are kept; 0 makes none.")
    backup_time: str = Field(
        "03:15",
        pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$",
        description="When a copy of each database is made, each day, in the box's time.",
    )

    @property
    def unit(self) -> str:
        """The name of its service, and of its account on Linux."""
        return "boxwright-postgresql"

    def runs(self, box: Any) -> bool:
        """Whether it runs on the box."""
        return bool(box.api.full) if self.enabled is None else self.enabled

    def switch(self, box: Any) -> str:
        """The variable that makes it run."""
        return ("postgresql_enabled" if self.enabled else "api_store") if self.runs(box) else ""

    def databases(self, box: Any) -> tuple[Database, ...]:
        """What services of the box keep there."""
        if not box.api.full:
            return ()
        return tuple(Database(instance.database, instance.database_password) for instance in box.api.instances)

    @property
    def programs(self) -> str:
        """A folder of the box with `psql`, `pg_dump` and `pg_restore`: a link to those of its release."""
        return PROGRAMS

    def problems(self, box: Any) -> Iterable[Problem]:
        """No option that takes the role's decisions back."""
        if not self.runs(box):
            return
        for name in sorted(set(self.options) & set(OWN)):
            yield Problem(
                code="BW022",
                variable="postgresql_options",
                message=f"`postgresql_options` sets {name}, which boxwright sets itself",
                help="take it out; docs/roles/postgresql.md names the variable for it, where there is one",
            )
