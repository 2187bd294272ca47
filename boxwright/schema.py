"""JSON Schema of all variables, for completion and checks of group_vars and host_vars in an editor.

One flat object, made from the roles' settings. A Jinja expression passes everywhere, an unknown variable under one of
boxwright's prefixes is refused, a renamed one shows its new name. Draft 7, which every YAML language server reads.
"""

from collections.abc import Mapping
from typing import Any

from boxwright.settings import RENAMED, BoxBase, RoleSettings, field_extra, hash_of, role_classes

DEFAULT_SINCE = "0.1.0"

_JINJA = {"type": "string", "pattern": r"\{[{%]"}
# Words about a value, as opposed to rules for it: they stay outside of the alternatives, where editors show them.
_WORDS = ("description", "default", "examples", "deprecated", "deprecationMessage")
_UNWANTED = ("title", "generated_bytes", "hash_of", "hash_by", "added_by", "since")
# Formats that pydantic made up; JSON Schema knows no such checks.
_OWN_FORMATS = {"ipvanyaddress", "ipvanynetwork", "ipvanyinterface", "ipv4network", "ipv6network", "ipv4interface"}


def variables_schema(box_class: type[BoxBase], renamed: Mapping[str, tuple[str, str]] | None = None) -> dict[str, Any]:
    """The schema of a group_vars or host_vars file."""
    renamed = RENAMED if renamed is None else renamed
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    roles = role_classes(box_class)
    for prefix, role in roles.items():
        schema = role.model_json_schema(ref_template=f"#/definitions/{prefix}.{{model}}")
        for name, definition in schema.pop("$defs", {}).items():
            definitions[f"{prefix}.{name}"] = _object(definition)
        for name, field in role.model_fields.items():
            if hash_of(field) is None:
                properties[f"{prefix}_{name}"] = _variable(role, name, schema["properties"][name])
    for old, (new, since) in renamed.items():
        properties[old] = {
            "not": {},
            "description": f"Renamed to {new} in {since}.",
            "deprecated": True,
            "deprecationMessage": f"renamed to {new}",
        }
    unknown = f"^(?!({'|'.join(sorted(properties))})$)({'|'.join(roles)})_"
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "boxwright variables",
        "description": "Variables that boxwright reads from group_vars and host_vars. Others are yours.",
        # A file of comments alone is empty for YAML.
        "type": ["object", "null"],
        "properties": properties,
        "patternProperties": {unknown: False},
        "definitions": definitions,
    }


def since(extra: Mapping[str, Any]) -> str:
    """The version that brought a variable."""
    return str(extra.get("since", DEFAULT_SINCE))


def _variable(role: type[RoleSettings], name: str, schema: dict[str, Any]) -> dict[str, Any]:
    field = role.model_fields[name]
    described = _value(schema)
    text = f"{field.description or ''} Since {since(field_extra(field))}.".strip()
    return {"description": text, **{key: value for key, value in described.items() if key != "description"}}


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    """A mapping that is only ever referred to: the reference is what also takes Jinja."""
    return _inside({key: value for key, value in schema.items() if key not in _UNWANTED})


def _value(schema: Any) -> Any:
    """`schema`, or a text with a Jinja expression in it; the same for all values inside."""
    if not isinstance(schema, dict):
        return schema
    schema = _inside({key: value for key, value in schema.items() if key not in _UNWANTED})
    if schema.get("format") in _OWN_FORMATS:
        del schema["format"]
    if schema.get("writeOnly"):
        # A secret: any text but an empty one.
        schema["minLength"] = 1
    if _takes_any_text(schema):
        return schema
    words = {key: schema.pop(key) for key in _WORDS if key in schema}
    alternatives = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
    return {**words, "anyOf": [*alternatives, _JINJA]}


def _inside(schema: dict[str, Any]) -> dict[str, Any]:
    schema = dict(schema)
    for key in ("properties", "patternProperties"):
        if key in schema:
            schema[key] = {name: _value(inner) for name, inner in schema[key].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            schema[key] = _value(schema[key])
    if "patternProperties" in schema:
        # pydantic means: every key matches.
        schema.setdefault("additionalProperties", False)
    return schema


def _takes_any_text(schema: Mapping[str, Any]) -> bool:
    rules = {"pattern", "enum", "const", "maxLength", "format"} & set(schema)
    return schema.get("type") == "string" and (not rules or (rules == {"format"} and schema["format"] == "password"))
