"""Two small roles with every kind of variable, for tests of settings, schema and reference that name no real role."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress

from boxwright.errors import Problem
from boxwright.settings import BoxBase, ByteSize, Generated, Hashed, Port, RoleSettings, Secret, Sha256


class Part(BaseModel):
    """Something with parts of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="Address of the file.", examples=["https://example.org/m.gguf"])
    size: ByteSize = Field(description="Size of the file.", examples=["1GiB"])
    sha256: Sha256 | None = Field(None, description="Checksum of the file.")
    flags: tuple[int, ...] = Field((), description="Numbers.")


class EngineSettings(RoleSettings, prefix="engine"):
    """Serves X on loopback. And more."""

    enabled: bool = Field(True, description="Run the engine.")
    port: Port = Field(8081, description="TCP port on loopback.")
    model: Part = Field(
        description="The model to serve.", examples=[{"url": "https://example.org/m.gguf", "size": "1GiB"}]
    )
    parts: tuple[Part, ...] = Field((), description="Further models.")
    backend: Literal["cpu", "cuda", "rocm"] = Field("cpu", description="What computes.")
    ratio: float = Field(0.5, ge=0, le=1, description="Share of something.")
    memory: ByteSize | None = Field(None, description="Memory limit.", json_schema_extra={"since": "0.2.0"})
    version: str = Field("1.2", pattern=r"^\d+\.\d+$", description="Version.")


class DoorSettings(RoleSettings, prefix="door"):
    """The door."""

    bind: tuple[IPvAnyAddress, ...] = Field((), max_length=2, description="Addresses.", examples=[["0.0.0.0"]])
    port: Port = Field(443, description="TCP port of the door.")
    ports: tuple[Port, ...] = Field((), description="Further ports.")
    password: Secret = Generated(bytes=24, description="Password of the door.")
    password_hash: Secret = Hashed(of="password", description="What the door keeps of it.")
    token: Secret | None = Field(None, description="A key that the user may give.")
    environment: dict[str, Annotated[str, Field(pattern="^[^']*$")]] = Field({}, description="Handed on as it is.")

    def problems(self, box: Any) -> Iterable[Problem]:
        """One port for two things."""
        if box.engine.enabled and box.engine.port == self.port:
            yield Problem(
                code="BW024", message=f"port {self.port} is used twice", variable="door_port", help="take another"
            )


class ExampleBox(BoxBase):
    """Both roles."""

    engine: EngineSettings
    door: DoorSettings
