"""Variables of the redis role."""

from typing import Any

from pydantic import Field

from boxwright.settings import Generated, Port, RoleSettings, Secret


class RedisSettings(RoleSettings, prefix="redis"):
    """Redis or Valkey on loopback, for services of the box."""

    enabled: bool | None = Field(
        None, description="Run it. Unset it runs where a service of the box needs it (`api_store: full`)."
    )
    port: Port = Field(6379, description="TCP port on loopback where it listens.")
    memory: int = Field(
        256, ge=16, le=1048576, description="MiB of data at most; what is more is refused, and nothing is thrown away."
    )
    password: Secret = Generated(bytes=32, description="Opens it, for services of the box. Made once.")

    @property
    def unit(self) -> str:
        """The name of its service, and of its account on Linux."""
        return "boxwright-redis"

    def runs(self, box: Any) -> bool:
        """Whether it runs on the box."""
        return bool(box.api.full) if self.enabled is None else self.enabled

    def switch(self, box: Any) -> str:
        """The variable that makes it run."""
        return ("redis_enabled" if self.enabled else "api_store") if self.runs(box) else ""
