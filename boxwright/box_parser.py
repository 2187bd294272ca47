"""From the flat variables of one host to its Box: names, values, secrets; every problem in words, all at once."""

import difflib
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ByteSize, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from boxwright.describe import (
    Path,
    alternatives,
    as_name,
    as_yaml,
    in_words,
    looks_secret,
    shown,
    type_at,
    unpack,
    walk,
)
from boxwright.engines import EngineSettings
from boxwright.errors import Location, Problem, Refused
from boxwright.secrets import SecretStore, hash_text, kept_hash
from boxwright.settings import (
    SYSTEMS,
    BoxBase,
    Locate,
    RoleSettings,
    System,
    added_by,
    default_on_a_mac,
    generated_bytes,
    hash_by,
    hash_of,
    is_secret,
    role_classes,
    system_of,
    system_of_field,
    variable_fields,
)

# How near a variable without one of our prefixes must be to one of ours to be taken for a slip of the finger.
_SLIP = 0.85


class Parser:
    """One host's variables on their way to a Box; collects every problem on the way. Used once."""

    def __init__(
        self,
        box_class: type[BoxBase],
        host: str,
        variables: Mapping[str, Any],
        locate: Locate | None,
        store: SecretStore | None,
        unusable: Collection[str],
        renamed: Mapping[str, tuple[str, str]],
        set_in: str,
    ) -> None:
        self.box_class, self.host, self.variables, self.store = box_class, host, variables, store
        self.unusable, self.renamed, self.set_in = unusable, renamed, set_in
        self.locate: Locate = locate or (lambda path, what: None)
        self.roles = role_classes(box_class)
        self.known = variable_fields(box_class)
        self.problems: list[Problem] = []
        self.system: System = "linux"

    def parse(self, groups: tuple[str, ...]) -> BoxBase:
        self.system = system_of(groups)
        if {"linux", "darwin"} <= set(groups):
            self.problems.append(
                Problem(
                    "BW028",
                    "the host is in the group `linux` and in the group `darwin`, and it can run only one of them",
                    help="take it out of one: a Mac belongs into `darwin`, any other machine into `linux`",
                )
            )
        given = self._given()
        # Read before anything is decided, so that a damaged file is reported together with the rest.
        kept: Mapping[str, str] = {}
        if self.store is not None:
            try:
                kept = self.store.all(self.host)
            except Refused as refused:
                self.problems += refused.problems
        checked = {prefix: self._role(prefix, given[prefix], kept) for prefix in self.roles}
        roles = {prefix: role for prefix, role in checked.items() if role is not None}
        if len(roles) == len(checked):
            box = self._box(groups, roles)
            self._elsewhere(box, roles)
            for role in roles.values():
                self.problems += [self._placed(problem) for problem in role.problems(box)]
        if self.problems or len(roles) != len(checked):
            raise Refused(self._ordered())
        # Only now, with nothing left to refuse, are secrets made.
        for prefix, role in roles.items():
            roles[prefix] = self._with_secrets(prefix, role, given[prefix])
        if self.problems:
            raise Refused(self._ordered())
        return self._box(groups, roles)

    def _box(self, groups: tuple[str, ...], roles: Mapping[str, RoleSettings]) -> BoxBase:
        # model_construct: each role is validated already, and a switched off role may lack required variables.
        fields: dict[str, Any] = {"name": self.host, "groups": groups, **roles}
        return self.box_class.model_construct(**fields)

    def _ordered(self) -> list[Problem]:
        def key(problem: Problem) -> tuple[str, int, int]:
            place = problem.location
            return (place.path, place.line or 0, place.column or 0) if place else ("~", 0, 0)

        return sorted((replace(problem, host=problem.host or self.host) for problem in self.problems), key=key)

    # Names

    def _given(self) -> dict[str, dict[str, Any]]:
        """The variables of each role by field name; says which names are wrong."""
        given: dict[str, dict[str, Any]] = {prefix: {} for prefix in self.roles}
        for variable, value in self.variables.items():
            prefix = self._prefix(variable)
            if variable in self.renamed:
                self._renamed(variable)
            elif variable in self.known:
                assert prefix is not None  # noqa: S101 -- for the type checker
                given[prefix][variable.removeprefix(f"{prefix}_")] = value
            elif prefix is not None and self._is_derived(prefix, variable):
                self._derived(prefix, variable)
            elif prefix is not None or self._is_slip(variable):
                self._unknown(variable)
        return given

    def _prefix(self, variable: str) -> str | None:
        found = [prefix for prefix in self.roles if variable.startswith(f"{prefix}_")]
        return max(found, key=len) if found else None

    def _is_slip(self, variable: str) -> bool:
        """Whether a name without our prefixes is one of ours mistyped. `vault_gateway_password`, which holds one of
        ours whole, is a name chosen on purpose."""
        if variable.startswith("ansible_"):
            return False
        near = self._nearest(variable, self.known, _SLIP)
        return near is not None and near not in variable

    @staticmethod
    def _nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
        found = difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)
        return found[0] if found else None

    def _unknown(self, variable: str) -> None:
        prefix = self._prefix(variable)
        near = self._nearest_variable(prefix, variable)
        listed = "all variables are listed in docs/settings.md"
        reserved = f"names that begin with `{prefix}_` belong to boxwright; {listed}" if prefix else listed
        self._report(
            "BW012",
            f"`{variable}` is not a boxwright variable",
            variable,
            place=self.locate((variable,), "key"),
            help=f"did you mean `{near}`?" if near else reserved,
            sensitive=looks_secret(variable) or (near is not None and is_secret(self.known[near][2])),
        )

    def _nearest_variable(self, prefix: str | None, variable: str) -> str | None:
        """First among the role's own fields: in full names the common prefix makes everything look alike."""
        if prefix is not None:
            own = [name for name in self.roles[prefix].model_fields if f"{prefix}_{name}" in self.known]
            name = variable.removeprefix(f"{prefix}_")
            if near := self._nearest(name, own):
                return f"{prefix}_{near}"
            if elsewhere := [known for known, (_, field, _) in self.known.items() if field == name]:
                return elsewhere[0]
        return self._nearest(variable, self.known, 0.8)

    def _renamed(self, variable: str) -> None:
        new, since = self.renamed[variable]
        self._report(
            "BW013",
            f"`{variable}` is called `{new}` since {since}",
            variable,
            place=self.locate((variable,), "key"),
            help=f"write `{new}` in its place",
            sensitive=looks_secret(variable),
        )

    def _is_derived(self, prefix: str, variable: str) -> bool:
        field = self.roles[prefix].model_fields.get(variable.removeprefix(f"{prefix}_"))
        return field is not None and hash_of(field) is not None

    def _derived(self, prefix: str, variable: str) -> None:
        of = hash_of(self.roles[prefix].model_fields[variable.removeprefix(f"{prefix}_")])
        self._report(
            "BW017",
            f"`{variable}` is computed from `{prefix}_{of}` and cannot be set",
            variable,
            place=self.locate((variable,), "key"),
            help=f"remove it; set `{prefix}_{of}` when you want another password",
            sensitive=True,
        )

    # Systems

    def _elsewhere(self, box: BoxBase, roles: Mapping[str, RoleSettings]) -> None:
        """Refuses what the host's system does not have: roles that are switched on, variables without a meaning."""
        here = SYSTEMS[self.system]
        kind = "" if self.system == "darwin" else "; a host is taken for a Mac when it is in the group `darwin`"
        for prefix, role in roles.items():
            if self.system not in role.systems:
                if variable := role.switch(box):
                    self._not_here(
                        f"`{variable}` switches {prefix} on, which there is not on {here}",
                        variable,
                        f"set `{variable}: false`, for all such hosts in group_vars/{self.system}.yml{kind}"
                        if variable == f"{prefix}_enabled"
                        else f"choose another engine: {', '.join(self._engines(roles))}{kind}",
                    )
                continue
            for name, field in type(role).model_fields.items():
                system = system_of_field(field)
                if system not in (None, self.system) and getattr(role, name) != _plain_default(field):
                    variable = f"{prefix}_{name}"
                    self._not_here(
                        f"`{variable}` means nothing on {here}",
                        variable,
                        f"write it where only hosts of the other kind have it: group_vars/{system}.yml{kind}",
                    )

    def _engines(self, roles: Mapping[str, RoleSettings]) -> list[str]:
        return [
            name for name, role in roles.items() if isinstance(role, EngineSettings) and self.system in role.systems
        ]

    def _not_here(self, message: str, variable: str, help: str) -> None:
        self.problems.append(self._placed(Problem("BW027", message, variable, help=help)))

    # Values

    def _role(self, prefix: str, values: Mapping[str, Any], kept: Mapping[str, str]) -> RoleSettings | None:
        """The role's settings with stand-ins for secrets that are not made yet; None when something is wrong."""
        role = self.roles[prefix]
        before = len(self.problems)
        wrong = self._check_plain_values(prefix, values)
        filled = dict(values)
        if self.system not in role.systems and "enabled" in role.model_fields:
            filled.setdefault("enabled", False)
        for name, field in role.model_fields.items():
            variable = f"{prefix}_{name}"
            if self.system == "darwin" and (default := default_on_a_mac(field)) is not None:
                filled.setdefault(name, default)
            if (count := generated_bytes(field)) is not None and name not in values:
                filled[name] = kept.get(variable) or secrets.token_urlsafe(count)
            elif hash_of(field) is not None:
                filled[name] = kept.get(variable) or "not hashed yet"
            elif added_by(field) is not None and isinstance(values.get(name, {}), Mapping):
                filled[name] = {**SecretStore.members(kept, variable), **values.get(name, {})}
        try:
            checked: RoleSettings | None = role.model_validate(filled)
        except ValidationError as error:
            checked = None
            details = error.errors(include_url=False)
            switched_off = _says_no(filled.get("enabled"))
            absent = [detail for detail in details if detail["type"] == "missing" and len(detail["loc"]) == 1]
            for detail in details:
                path = self._real_path(detail["loc"], filled)
                # A list counts its valid items only: with a wrong one it may seem too short as well.
                inside = [other for other in details if other["loc"][: len(detail["loc"])] == detail["loc"]]
                if detail["type"] == "too_short" and len(inside) > 1:
                    continue
                if tuple(path) not in wrong and not (switched_off and detail in absent):
                    self._invalid(prefix, path, detail, filled)
            if switched_off and len(absent) == len(details):
                checked = _without_required(role, filled)
        if len(self.problems) > before or any(f"{prefix}_{name}" in self.unusable for name in role.model_fields):
            return None
        return checked

    def _check_plain_values(self, prefix: str, values: Mapping[str, Any]) -> set[Path]:
        """What pydantic would let pass: yes and no as numbers, blank secrets. Returns the paths found wrong."""
        role = self.roles[prefix]
        wrong: set[Path] = set()
        for name, value in values.items():
            for inner, declared, leaf in walk(role.model_fields[name].annotation, value):
                path = (name, *inner)
                members = alternatives(declared)
                if isinstance(leaf, bool) and bool not in members and {int, float, ByteSize} & set(members):
                    self._wrong_value(prefix, path, leaf)
                    wrong.add(path)
                elif SecretStr in members and (leaf is None or not str(leaf).strip()):
                    self._blank(prefix, path)
                    wrong.add(path)
        return wrong

    def _blank(self, prefix: str, path: Path) -> None:
        field = self.roles[prefix].model_fields[str(path[0])]
        variable = f"{prefix}_{path[0]}"
        generated = len(path) == 1 and generated_bytes(field) is not None
        self._report(
            "BW016",
            f"`{as_name(variable, path[1:])}` is blank, and a secret must not be",
            variable,
            place=self.locate((variable, *path[1:]), "value"),
            help="remove the line to have one made, or give it a value" if generated else "give it a value",
            sensitive=True,
        )

    @staticmethod
    def _real_path(loc: tuple[int | str, ...], values: Any) -> Path:
        """`loc` without the steps that pydantic adds for the members of a union and for keys of mappings."""
        path: list[int | str] = []
        for position, step in enumerate(loc):
            last = position == len(loc) - 1
            inside_list = isinstance(values, list | tuple) and isinstance(step, int) and step < len(values)
            if inside_list or (isinstance(values, Mapping) and step in values):
                values = values[step]
            elif not (last and isinstance(values, Mapping) and step != "[key]"):
                continue
            path.append(step)
        return tuple(path)

    def _invalid(self, prefix: str, path: Path, detail: ErrorDetails, values: Mapping[str, Any]) -> None:
        kind = detail["type"]
        if kind == "missing":
            self._missing(prefix, path)
        elif kind == "extra_forbidden":
            self._extra_part(prefix, path)
        else:
            value: Any = values
            for step in path:
                value = value[step]
            self._wrong_value(prefix, path, value, detail)

    def _missing(self, prefix: str, path: Path) -> None:
        role = self.roles[prefix]
        variable = f"{prefix}_{path[0]}"
        annotation, _ = type_at(role, path[:-1]) if len(path) > 1 else (role, ())
        field = _model(annotation, role).model_fields[str(path[-1])]
        if len(path) == 1:
            if variable in self.unusable:
                return
            example = _example(variable, field)
            where = f"{self.set_in}, or beside the host for this host alone"
            self._report(
                "BW010",
                f"`{variable}` is not set: {field.description}",
                variable,
                help=f"set it in {where}" + (f", for example\n{example}" if example else ""),
            )
            return
        example = _example(str(path[-1]), field)
        self._report(
            "BW015",
            f"`{as_name(variable, path[1:-1])}` has no `{path[-1]}`: {field.description}",
            variable,
            place=self.locate((variable, *path[1:-1]), "value"),
            source=self.locate((variable, *path[1:-1]), "text"),
            help=f"add `{path[-1]}`: {in_words(field.annotation, tuple(field.metadata))}"
            + (f", for example\n{example}" if example else ""),
        )

    def _extra_part(self, prefix: str, path: Path) -> None:
        role = self.roles[prefix]
        variable = f"{prefix}_{path[0]}"
        annotation, _ = type_at(role, path[:-1])
        known = list(_model(annotation, role).model_fields)
        near = self._nearest(str(path[-1]), known)
        self._report(
            "BW014",
            f"`{as_name(variable, path[1:-1])}` has no part called `{path[-1]}`",
            variable,
            place=self.locate((variable, *path[1:]), "key"),
            source=self.locate((variable, *path[1:]), "text"),
            help=f"did you mean `{near}`?" if near else "it has: " + ", ".join(f"`{name}`" for name in known),
            sensitive=looks_secret(str(path[-1])),
        )

    def _wrong_value(self, prefix: str, path: Path, value: Any, detail: ErrorDetails | None = None) -> None:
        role = self.roles[prefix]
        variable = f"{prefix}_{path[0]}"
        annotation, metadata = type_at(role, path)
        sensitive = (
            SecretStr in alternatives(annotation)
            or any(looks_secret(str(step)) for step in path)
            or "PRIVATE KEY" in str(value)
        )
        if detail and detail["loc"][-1:] == ("[key]",):
            self._wrong_key(prefix, path, detail)
            return
        name = as_name(variable, path[1:])
        given = "not shown here, for it may be a secret" if sensitive else shown(value)
        own = detail.get("ctx", {}).get("error") if detail and detail["type"] == "value_error" else None
        self._report(
            "BW011",
            f"`{name}` is {given}; expected {own or in_words(annotation, metadata)}",
            variable,
            place=self.locate((variable, *path[1:]), "value"),
            source=self.locate((variable, *path[1:]), "text"),
            help=self._way_out(annotation, metadata, value, sensitive, role.model_fields[str(path[0])], variable, path),
            sensitive=sensitive,
        )

    def _wrong_key(self, prefix: str, path: Path, detail: ErrorDetails) -> None:
        """A name in a mapping that is none."""
        variable = f"{prefix}_{path[0]}"
        annotation, _ = type_at(self.roles[prefix], path[:-1])
        kinds = [get_args(member)[0] for member in alternatives(annotation) if get_origin(member) in (dict, Mapping)]
        expected = in_words(kinds[0]) if kinds else detail["msg"]
        self._report(
            "BW011",
            f"`{as_name(variable, path[1:-1])}` has the name {shown(path[-1])}; expected {expected}",
            variable,
            place=self.locate((variable, *path[1:]), "key"),
            help=f"see `{variable}` in docs/settings.md",
        )

    def _way_out(
        self,
        annotation: Any,
        metadata: tuple[Any, ...],
        value: Any,
        sensitive: bool,
        field: FieldInfo,
        variable: str,
        path: Path,
    ) -> str:
        members = alternatives(annotation)
        choices = [str(choice) for member in members for choice in _choices(member)]
        if choices and isinstance(value, str) and (near := self._nearest(value, choices)):
            return f"did you mean `{near}`?"
        textual = bool(choices) or str in members or SecretStr in members
        if textual and isinstance(value, bool | int | float):
            if sensitive:
                return "put the value in quotes to have it read as text"
            if isinstance(value, bool) and choices:
                return "YAML reads yes, no, on and off as true or false: put the value in quotes"
            return f'put it in quotes to have it read as text: "{shown(value)}"'
        if _is_list(annotation) and isinstance(value, str) and not sensitive:
            return f"write it as a list: [{shown(value)}]"
        if len(path) == 1 and (example := _example(variable, field)):
            return f"for example\n{example}"
        if len(path) == 1 and not field.is_required() and not sensitive:
            return f"remove the line to have the default, {shown(_plain_default(field))}"
        return f"see `{variable}` in docs/settings.md"

    def _report(
        self,
        code: str,
        message: str,
        variable: str,
        *,
        place: Location | None = None,
        source: Location | None = None,
        help: str | None = None,
        sensitive: bool = False,
    ) -> None:
        self.problems.append(Problem(code, message, variable, place, help, self.host, source, sensitive))

    def _placed(self, problem: Problem) -> Problem:
        """A problem between roles, with the place where its variable was set; when it has its default, with that of
        another variable that the message names."""
        named = [problem.variable, *re.findall(r"`(\w+)`", problem.message)]
        variable = next((name for name in named if name in self.variables and name in self.known), None)
        if problem.location is not None or variable is None:
            return problem
        return replace(
            problem,
            location=self.locate((variable,), "value"),
            source=self.locate((variable,), "text"),
            sensitive=problem.sensitive or is_secret(self.known[variable][2]),
        )

    # Secrets

    def _with_secrets(self, prefix: str, role: RoleSettings, values: Mapping[str, Any]) -> RoleSettings:
        """The role with its generated and derived secrets in place of the stand-ins."""
        update: dict[str, SecretStr] = {}
        for name, field in type(role).model_fields.items():
            count = generated_bytes(field)
            if count is not None and name not in values and self.store is not None:
                make = partial(secrets.token_urlsafe, count)
                update[name] = SecretStr(self.store.get_or_create(self.host, f"{prefix}_{name}", make))
        for name, field in type(role).model_fields.items():
            of = hash_of(field)
            if of is None:
                continue
            password = update.get(of) or getattr(role, of)
            kind = getattr(role, hash_by(field)) if hash_by(field) else "bcrypt"
            hashed = self._hash(f"{prefix}_{name}", f"{prefix}_{of}", password.get_secret_value(), kind)
            if hashed is not None:
                update[name] = SecretStr(hashed)
        return role.model_copy(update=update)

    def _hash(self, variable: str, of: str, password: str, kind: str) -> str | None:
        try:
            if self.store is None:
                return hash_text(password, kind)
            return kept_hash(self.store, self.host, variable, password, kind)
        except ValueError:
            self._report(
                "BW018",
                f"`{of}` is longer than 72 bytes, which is all that bcrypt takes",
                of,
                place=self.locate((of,), "value"),
                help="choose a shorter one",
                sensitive=True,
            )
            return None


def _without_required(role: type[RoleSettings], values: Mapping[str, Any]) -> RoleSettings:
    """A switched off role: what was given is validated, what was not stays unset and cannot be read."""
    checked: dict[str, Any] = {}
    for name, field in role.model_fields.items():
        if name in values:
            declared: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            checked[name] = TypeAdapter(declared).validate_python(values[name])
    return role.model_construct(**checked)


def _says_no(value: Any) -> bool:
    """Whether a value means false in a variable, as in YAML or from Jinja: false, "False", "no"."""
    try:
        return TypeAdapter(bool).validate_python(value) is False
    except ValidationError:
        return False


def _model(annotation: Any, otherwise: type[BaseModel]) -> type[BaseModel]:
    for member in alternatives(annotation):
        bare, _ = unpack(member)
        if isinstance(bare, type) and issubclass(bare, BaseModel):
            return bare
    return otherwise


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list, set, frozenset)


def _plain_default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _example(name: str, field: FieldInfo) -> str | None:
    """The field's first example as YAML lines, indented to stand below a message."""
    if not field.examples:
        return None
    return "\n".join(f"  {line}" for line in as_yaml(name, field.examples[0]).splitlines())
