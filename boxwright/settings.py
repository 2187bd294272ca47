"""Settings of one host: what a role's variables are, and how the variables of an inventory become a `Box`.

A role declares its variables as fields of a `RoleSettings`; the variable's name is the role's prefix, an underscore and
the field's name. `parse_box` turns the flat variables of a host into one frozen model per role, and refuses with all
problems at once.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr
from pydantic.fields import FieldInfo

from boxwright.describe import Path, Words, alternatives, looks_secret, unpack
from boxwright.errors import Location, Problem

if TYPE_CHECKING:
    from boxwright.secrets import SecretStore

__all__ = [
    "RENAMED",
    "Added",
    "BoxBase",
    "ByteSize",
    "Generated",
    "Hashed",
    "On",
    "OtherOnMac",
    "Port",
    "RoleSettings",
    "Secret",
    "Sha256",
    "System",
    "parse_box",
]

# Every variable that ever had another name: old name -> (new name, version that renamed it). Feeds the messages, the
# JSON Schema and the changelog. Entries stay for good.
RENAMED: dict[str, tuple[str, str]] = {}

System = Literal["linux", "darwin"]
# How messages and pages call a host with that system.
SYSTEMS: Mapping[System, str] = {"linux": "Linux", "darwin": "a Mac"}

Port = Annotated[int, Field(ge=1, le=65535), Words("a TCP port, 1 to 65535")]
Secret = SecretStr
Sha256 = Annotated[
    str, Field(pattern=r"^[0-9a-f]{64}$"), Words("a SHA-256 checksum, 64 hexadecimal digits in lower case")
]

_GENERATED, _HASH_OF, _HASH_BY, _ADDED = "generated_bytes", "hash_of", "hash_by", "added_by"
_SYSTEM, _ON_A_MAC = "system", "default_on_a_mac"


def _field(description: str, extra: dict[str, Any], arguments: dict[str, Any]) -> Any:
    extra = {**extra, **(arguments.pop("json_schema_extra", None) or {})}
    return Field(description=description, json_schema_extra=extra, **arguments)


def Generated(*, bytes: int = 32, description: str, **arguments: Any) -> Any:
    """A `Secret` field made once from `bytes` random bytes (URL-safe base64) and kept on the control machine.

    A value in the inventory wins. `arguments` go to pydantic's Field.
    """
    return _field(description, {_GENERATED: bytes}, arguments)


def Hashed(*, of: str, by: str = "", description: str, **arguments: Any) -> Any:
    """A `Secret` field that is the hash of the sibling field `of`; the same on every run, a new one when that changed.

    The sibling `by` says how (`bcrypt`, `argon2id`); without one it is bcrypt. It cannot be set in the inventory.
    `arguments` go to pydantic's Field."""
    return _field(description, {_HASH_OF: of, _HASH_BY: by}, arguments)


def Added(*, by: str, description: str, **arguments: Any) -> Any:
    """A field that maps names to secrets: those in the inventory, and those that the command `by` added on the control
    machine, where they are kept as `<variable>.<name>`. The inventory wins. `arguments` go to pydantic's Field."""
    return _field(description, {_ADDED: by}, {"default": {}, **arguments})


def On(system: System, default: Any, *, description: str, **arguments: Any) -> Any:
    """A field that means something only where a host runs `system`: elsewhere any value but the default is refused.
    `arguments` go to pydantic's Field."""
    return _field(description, {_SYSTEM: system}, {"default": default, **arguments})


def OtherOnMac(default: Any, *, mac: Any, description: str, **arguments: Any) -> Any:
    """A field whose default is `mac` where a host is one. `arguments` go to pydantic's Field."""
    return _field(description, {_ON_A_MAC: mac}, {"default": default, **arguments})


def field_extra(field: FieldInfo) -> dict[str, Any]:
    """The `json_schema_extra` of a field: since, and the marks of `Generated`, `Hashed`, `Added` and their kin."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def generated_bytes(field: FieldInfo) -> int | None:
    """Random bytes of a `Generated` field; None for any other field."""
    return field_extra(field).get(_GENERATED)


def hash_of(field: FieldInfo) -> str | None:
    """The sibling that a `Hashed` field is the hash of; None for any other field."""
    return field_extra(field).get(_HASH_OF)


def hash_by(field: FieldInfo) -> str:
    """The sibling that says how a `Hashed` field is hashed; empty when it is bcrypt in any case."""
    found: str = field_extra(field).get(_HASH_BY, "")
    return found


def added_by(field: FieldInfo) -> str | None:
    """The command that adds to an `Added` field; None for any other field."""
    return field_extra(field).get(_ADDED)


def system_of_field(field: FieldInfo) -> System | None:
    """The system on which an `On` field means something; None for a field of both."""
    return field_extra(field).get(_SYSTEM)


def default_on_a_mac(field: FieldInfo) -> Any:
    """The default of an `OtherOnMac` field where a host is a Mac; None for any other field."""
    return field_extra(field).get(_ON_A_MAC)


def is_secret(field: FieldInfo) -> bool:
    """Whether the field itself holds a secret."""
    return SecretStr in alternatives(unpack(field.annotation)[0])


class RoleSettings(BaseModel):
    """Base of a role's variables: `class DockerSettings(RoleSettings, prefix="docker", systems={"linux"})`.

    `systems` are those on which the role exists. On another its `enabled` is false by default, and switching it on is
    refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    prefix: ClassVar[str]
    systems: ClassVar[frozenset[System]] = frozenset(SYSTEMS)

    def __init_subclass__(
        cls, *, prefix: str | None = None, systems: Collection[System] | None = None, **arguments: Any
    ) -> None:
        super().__init_subclass__(**arguments)
        if prefix is not None:
            cls.prefix = prefix
        if systems is not None:
            cls.systems = frozenset(systems)

    def switch(self, box: Any) -> str:
        """The variable by which the role is switched on in `box`; empty where it is off, or cannot be off."""
        return f"{self.prefix}_enabled" if getattr(self, "enabled", False) else ""

    def problems(self, box: Any) -> Iterable[Problem]:
        """What is wrong between this role and the others. Called once every role's own variables are right."""
        return ()


def system_of(groups: Collection[str]) -> System:
    """What a host in `groups` runs: macOS in the group `darwin`, else Linux."""
    return "darwin" if "darwin" in groups else "linux"


class BoxBase(BaseModel):
    """All settings of one host. A subclass has one field per role, named as the role's prefix."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str
    groups: tuple[str, ...]

    @property
    def system(self) -> System:
        """What the host runs, by the groups it is in."""
        return system_of(self.groups)

    def has(self, role: str) -> bool:
        """Whether there is the role `role` on the host's system at all."""
        return self.system in getattr(self, role).systems

    def to_json(self) -> dict[str, Any]:
        """Plain data for printing, with every secret as asterisks."""
        return self.model_dump(mode="json")

    def secret_values(self) -> Iterator[str]:
        """Every secret in it, in clear: for masking output, never for printing."""
        yield from _secret_values(self)


class Locate(Protocol):
    """Says where something was written; None when that is not known.

    `path` is the variable's name, then keys and indexes inside it. `what` is `key` for the place of the last key,
    `value` for the place of the value, `text` for the place a computed value's text came from, when that is another.
    """

    def __call__(self, path: Path, what: Literal["key", "value", "text"]) -> Location | None: ...


AnyBox = TypeVar("AnyBox", bound=BoxBase)


def role_classes(box_class: type[BoxBase]) -> dict[str, type[RoleSettings]]:
    """The roles of a box class by prefix, in the order of its fields."""
    roles: dict[str, type[RoleSettings]] = {}
    for name, field in box_class.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, RoleSettings):
            if field.annotation.prefix != name:
                raise TypeError(f"{box_class.__name__}.{name} holds variables with prefix {field.annotation.prefix!r}")
            roles[name] = field.annotation
    return roles


def variable_fields(box_class: type[BoxBase]) -> dict[str, tuple[type[RoleSettings], str, FieldInfo]]:
    """Every variable that an inventory may set: full name -> (role, field name, field)."""
    return {
        f"{prefix}_{name}": (role, name, field)
        for prefix, role in role_classes(box_class).items()
        for name, field in role.model_fields.items()
        if hash_of(field) is None
    }


def parse_box(
    box_class: type[AnyBox],
    name: str,
    groups: Iterable[str],
    variables: Mapping[str, Any],
    locate: Locate | None,
    store: "SecretStore | None",
    *,
    unusable: Collection[str] = (),
    renamed: Mapping[str, tuple[str, str]] | None = None,
    set_in: str = "group_vars/all.yml",
) -> AnyBox:
    """The settings of host `name` from its flat `variables` (plain types, already rendered).

    `store` keeps generated secrets; without one they are made for this call alone. `unusable` names variables that are
    set but whose value could not be had: that was said elsewhere, so they are not reported as missing. `set_in` is the
    file in which messages tell people to set something.
    Raises Refused with every problem that could be found.
    """
    from boxwright.box_parser import Parser  # here, because it is built on this module

    renamed = RENAMED if renamed is None else renamed
    parser = Parser(box_class, name, variables, locate, store, unusable, renamed, set_in)
    box = parser.parse(tuple(groups))
    assert isinstance(box, box_class)  # noqa: S101 -- for the type checker
    return box


def _secret_values(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for inner in value.__dict__.values():
            yield from _secret_values(inner)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            # What the user hands on under a telling name is a secret too: OPENAI_API_KEY in an environment.
            if isinstance(inner, str) and looks_secret(str(key)):
                yield inner
            yield from _secret_values(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _secret_values(inner)
