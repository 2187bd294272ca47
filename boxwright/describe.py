"""Says in words what a type accepts, and walks values along their types. For messages and the generated reference."""

import json
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize, IPvAnyAddress, IPvAnyInterface, IPvAnyNetwork, SecretStr
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Words:
    """Goes into `Annotated` to say what a type means, with its article: `Words("a TCP port, 1 to 65535")`."""

    text: str


_SIMPLE: dict[Any, str] = {
    str: "text",
    SecretStr: "a secret text",
    bool: "true or false",
    ByteSize: "a size such as 64GiB",
    IPvAnyAddress: "an IP address",
    IPv4Address: "an IPv4 address",
    IPv6Address: "an IPv6 address",
    IPvAnyNetwork: "a network such as 192.0.2.0/24",
    IPv4Network: "an IPv4 network such as 192.0.2.0/24",
    IPv6Network: "an IPv6 network such as 2001:db8::/64",
    IPvAnyInterface: "an address with its network such as 192.0.2.1/24",
    type(None): "nothing",
    Any: "anything",
}
_LISTS = (tuple, list, set, frozenset)
_SECRET_NAME = re.compile(r"pass(word|wd|phrase)?|secret|token|credential|(^|_)keys?$", re.IGNORECASE)


def looks_secret(name: str) -> bool:
    """Whether a variable or key with this name probably holds a secret, so that its value is not shown."""
    return _SECRET_NAME.search(name) is not None


def unpack(annotation: Any, metadata: tuple[Any, ...] = ()) -> tuple[Any, tuple[Any, ...]]:
    """The bare type of `annotation`, and all constraints on it in one flat tuple, the outermost last."""
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        metadata = (*inner, *metadata)
    flat: list[Any] = []
    for item in metadata:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    return annotation, tuple(flat)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is no union is its only member."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def optional(annotation: Any) -> tuple[Any, bool]:
    """The type without None, and whether None was in it. A union of several other types stays a union."""
    members = alternatives(annotation)
    rest = tuple(member for member in members if member is not type(None))
    if len(rest) == len(members) or not rest:
        return annotation, False
    return (rest[0] if len(rest) == 1 else Union[rest]), True  # noqa: UP007 -- built from a tuple at run time


def in_words(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What a value of this type must be, with its article: "a TCP port, 1 to 65535", "one of `basic`, `none`"."""
    annotation, metadata = unpack(annotation, metadata)
    for item in metadata:
        if isinstance(item, Words):
            return item.text
    bare, may_be_none = optional(annotation)
    if may_be_none:
        return f"{in_words(bare, metadata)}, or nothing"
    members = alternatives(annotation)
    if len(members) > 1:
        return " or ".join(in_words(member) for member in members)
    return _plain_words(annotation, metadata)


def _plain_words(annotation: Any, metadata: tuple[Any, ...]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal and len(arguments) == 1:
        return f"`{arguments[0]}`"
    if origin is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + ", ".join(f"`{choice.value}`" for choice in annotation)
    if origin in _LISTS or annotation in _LISTS:
        items = f"; each item {in_words(arguments[0])}" if arguments else ""
        return f"a list{_counted(metadata)}{items}"
    if origin is dict or annotation is dict:
        pairs = f"; each key {in_words(arguments[0])}, each value {in_words(arguments[1])}" if arguments else ""
        return f"a mapping{pairs}"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _limits(metadata)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        parts = ", ".join(
            f"`{name}`" + ("" if field.is_required() else " (optional)")
            for name, field in annotation.model_fields.items()
        )
        return f"a mapping with {parts}"
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return "a path"
    words = _SIMPLE.get(annotation) or f"a {getattr(annotation, '__name__', str(annotation)).lower()}"
    pattern = _constraint(metadata, "pattern")
    return words + (f" that matches {pattern}" if pattern else "") + _counted(metadata, "characters")


def _constraint(metadata: tuple[Any, ...], name: str) -> Any:
    for item in reversed(metadata):
        if (value := getattr(item, name, None)) is not None:
            return value
    return None


def _limits(metadata: tuple[Any, ...]) -> str:
    low, high = _constraint(metadata, "ge"), _constraint(metadata, "le")
    above, below = _constraint(metadata, "gt"), _constraint(metadata, "lt")
    if low is not None and high is not None:
        return f", {low} to {high}"
    parts = [
        f"{word} {value}"
        for word, value in (("at least", low), ("at most", high), ("more than", above), ("less than", below))
        if value is not None
    ]
    return ", " + " and ".join(parts) if parts else ""


def _counted(metadata: tuple[Any, ...], unit: str = "items") -> str:
    least, most = _constraint(metadata, "min_length"), _constraint(metadata, "max_length")
    if least and most:
        return f", {least} to {most} {unit}"
    if least:
        return ", not empty" if least == 1 else f", at least {least} {unit}"
    return f", at most {most} {unit}" if most else ""


def shown(value: Any) -> str:
    """A value as the reader would write it in YAML, cut short when it is long."""
    if value is None:
        return "empty"
    if isinstance(value, str) and not isinstance(value, Enum):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, bool | int | float):
        text = json.dumps(value)
    elif isinstance(value, Mapping):
        text = "a mapping"
    elif isinstance(value, list | tuple | set):
        text = f"a list of {len(value)} item{'' if len(value) == 1 else 's'}"
    else:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def as_yaml(name: str, value: Any) -> str:
    """`name: value` as a person would write it in a variables file, without a final newline."""
    import yaml

    class Indented(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            """List items stand to the right of their key, as yamllint wants them."""
            super().increase_indent(flow, False)

    text: str = yaml.dump({name: value}, Dumper=Indented, sort_keys=False, allow_unicode=True, width=200)
    return text.rstrip("\n")


def walk(annotation: Any, value: Any, path: Path = ()) -> Iterator[tuple[Path, Any, Any]]:
    """Every plain value in `value` with its path and the bare type declared there (None left out of a union).

    Leaves out an empty value where None is declared, and what is inside where value and type do not fit together: that
    is for the validation to say.
    """
    bare, may_be_none = optional(unpack(annotation)[0])
    bare, _ = unpack(bare)
    if value is None and may_be_none:
        return
    origin, arguments = get_origin(bare), get_args(bare)
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        if isinstance(value, Mapping):
            for name, field in bare.model_fields.items():
                if name in value:
                    yield from walk(field.annotation, value[name], (*path, name))
    elif origin in _LISTS and arguments:
        if isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from walk(arguments[0], item, (*path, index))
    elif origin is dict:
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from walk(arguments[1], item, (*path, str(key)))
    else:
        yield path, bare, value


def type_at(model: type[BaseModel], path: Path) -> tuple[Any, tuple[Any, ...]]:
    """The type and constraints declared at `path` inside `model`; (Any, ()) where there is none."""
    annotation: Any = model
    metadata: tuple[Any, ...] = ()
    for step in path:
        bare, _ = optional(unpack(annotation)[0])
        bare, _ = unpack(bare)
        origin, arguments = get_origin(bare), get_args(bare)
        if isinstance(bare, type) and issubclass(bare, BaseModel) and step in bare.model_fields:
            field = bare.model_fields[str(step)]
            annotation, metadata = field.annotation, tuple(field.metadata)
        elif origin in _LISTS and arguments and isinstance(step, int):
            annotation, metadata = arguments[0], ()
        elif origin is dict:
            annotation, metadata = arguments[1], ()
        else:
            return Any, ()
    return unpack(annotation, metadata)


def as_name(variable: str, path: Path) -> str:
    """`llamacpp_model.size`, `host_users[0].name`: a place inside a variable as a person would say it."""
    return variable + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
