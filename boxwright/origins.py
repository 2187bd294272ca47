"""The one place that touches ansible-core's insides: where each value of an inventory was written, and its errors.

ansible-core tags every text, number, list and mapping it reads with an `Origin` (file, line, column), in a module that
is not public (`ansible._internal`), hence one adapter and a pinned ansible-core. Two traps it does not tell about:

- true, false and empty values carry no tag; the place of their key is taken instead.
- a key that several files set keeps the tag of the first one, since merging dictionaries keeps the old key object;
  `keep_newest_keys` changes the merging so that key and value always come from the same place.

Importing this module imports ansible-core (half a second): only the inventory does so, and only when it loads one.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import ansible.utils.vars
from ansible import constants
from ansible._internal._datatag._tags import Origin, SourceWasEncrypted
from ansible.inventory.group import Group
from ansible.inventory.host import Host
from ansible.inventory.manager import InventoryManager
from ansible.module_utils._internal._datatag import AnsibleTagHelper
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import EncryptedString, VaultSecretsContext, get_file_vault_secret
from ansible.template import Templar
from ansible.utils.display import Display
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from boxwright.describe import Path
from boxwright.errors import Location

__all__ = [
    "DataLoader",
    "HostVars",
    "InventoryManager",
    "Templar",
    "VariableManager",
    "constants",
    "get_file_vault_secret",
]


def place(value: Any) -> Location | None:
    """Where `value` was written; None for one without a tag (true, false, empty) or that comes from no file."""
    origin = Origin.get_tag(value)
    if origin is None or not origin.path:
        return None
    # INI inventories give the line alone; their column is None or 0.
    return Location(str(origin.path), origin.line_num or None, origin.col_num or None)


def plain(value: Any) -> Any:
    """`value` without tags, as built-in types all the way down."""
    if isinstance(value, Mapping):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    if isinstance(value, EncryptedString):
        return str(value)
    return AnsibleTagHelper.as_native_type(value)


def _rekey(merged: dict[Any, Any], newer: Mapping[Any, Any]) -> dict[Any, Any]:
    """`merged` with the key objects of `newer`, also in mappings inside, which only `hash_behaviour = merge` merges."""
    for key, value in newer.items():
        current = merged.pop(key)
        if current is not value and isinstance(current, dict) and isinstance(value, Mapping):
            current = _rekey(current, value)
        merged[key] = current
    return merged


def keep_newest_keys() -> None:
    """Makes ansible-core keep the key of the file that set a value last. Idempotent; values stay what they were."""
    original = ansible.utils.vars.combine_vars
    if getattr(original, "keeps_newest_keys", False):
        return

    def combine_vars(a: Any, b: Any, merge: bool | None = None) -> Any:
        return _rekey(original(a, b, merge), b)

    combine_vars.keeps_newest_keys = True  # type: ignore[attr-defined]
    for name, module in list(sys.modules.items()):
        if name.startswith("ansible.") and getattr(module, "combine_vars", None) is original:
            module.combine_vars = combine_vars  # type: ignore[attr-defined]
    for holder in (Host, Group):
        holder.set_variable = _with_newest_key(holder.set_variable)


def _with_newest_key(set_variable: Any) -> Any:
    def set_variable_with_its_key(self: Any, key: Any, value: Any) -> None:
        set_variable(self, key, value)
        if key in self.vars:
            self.vars[key] = self.vars.pop(key)

    return set_variable_with_its_key


class Places:
    """Answers `boxwright.settings.Locate` for the variables of one host.

    `written` holds them as the files have them, `rendered` after Jinja and vault; both with their tags.
    """

    def __init__(self, written: Mapping[str, Any], rendered: Mapping[str, Any]) -> None:
        self.written, self.rendered = written, rendered

    def __call__(self, path: Path, what: Literal["key", "value", "text"]) -> Location | None:
        if what == "text":
            source = self._find(self.rendered, path)
            used = self._find(self.written, path)
            return source if source and used and (source.path, source.line) != (used.path, used.line) else None
        return self._find(self.written, path, of_key=what == "key")

    @staticmethod
    def _find(values: Mapping[str, Any], path: Path, *, of_key: bool = False) -> Location | None:
        """The place of the value (or key) at `path`, else of the innermost thing around it that has one."""
        found: Location | None = None
        current: Any = values
        for depth, step in enumerate(path):
            key_place = None
            if isinstance(current, Mapping) and step in current:
                key_place = place(next(key for key in current if key == step))
                current = current[step]
            elif isinstance(current, list | tuple) and isinstance(step, int) and step < len(current):
                current = current[step]
            else:
                break
            # A list's or mapping's own tag is its first item: its key says better where it is.
            last = depth == len(path) - 1
            container = isinstance(current, Mapping | list | tuple)
            by_key = key_place if container or (of_key and last) else None
            found = by_key or place(current) or key_place or found
        return found


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what caused it, what caused that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def error_place(error: BaseException) -> Location | None:
    """The most exact place that an error of ansible-core knows."""
    places = [found for link in error_chain(error) if (found := _place_of_object(getattr(link, "obj", None)))]
    with_line = [found for found in places if found.line]
    best = with_line or places
    return best[-1] if best else None


def _place_of_object(value: Any) -> Location | None:
    """The place of what an error is about: a value with a tag, or a tag itself."""
    if isinstance(value, Origin):
        return Location(str(value.path), value.line_num or None, value.col_num or None) if value.path else None
    return place(value)


def parsed_source(error: BaseException) -> str | None:
    """The inventory file that an inventory plugin could not read, from its error (InventoryManager.parse_source)."""
    for link in error_chain(error):
        origin = getattr(link, "obj", None)
        if isinstance(origin, Origin) and origin.description:
            found = re.search(r"^<inventory plugin .+ with source '(.+)'>$", origin.description)
            if found:
                return found.group(1)
    return None


def use_vault_secrets(secrets: list[tuple[str, Any]]) -> None:
    """Makes `secrets` (vault id, secret) open `!vault` values from now on, in place of those of an earlier load."""
    VaultSecretsContext._current = None
    VaultSecretsContext.initialize(VaultSecretsContext(secrets))


def encrypted_names(data: Any) -> Iterator[tuple[str, str]]:
    """Every text with its key in the data of a file that was encrypted as a whole; nothing for other files."""
    if SourceWasEncrypted.is_tagged_on(data):
        yield from _texts(data, "")


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, name)
    elif isinstance(value, str):
        yield name, str(value)


@contextmanager
def quietly() -> Iterator[list[tuple[str, BaseException | None]]]:
    """While it lasts, ansible-core's warnings are collected and not printed: as (text, error or None)."""
    display = Display()
    collected: list[tuple[str, BaseException | None]] = []

    def warning(msg: str, *arguments: Any, **named: Any) -> None:
        collected.append((str(msg), None))

    def error_as_warning(msg: str | None, exception: BaseException, *arguments: Any, **named: Any) -> None:
        collected.append((str(msg or exception), exception))

    def deprecated(*arguments: Any, **named: Any) -> None:
        """Deprecations are for the authors of playbooks; there is none here."""

    replaced = {"warning": warning, "error_as_warning": error_as_warning, "deprecated": deprecated}
    for name, function in replaced.items():
        setattr(display, name, function)
    try:
        yield collected
    finally:
        for name in replaced:
            delattr(display, name)


def forget_files() -> None:
    """Makes ansible-core look again which group_vars and host_vars there are; it remembers them for the process."""
    module = sys.modules.get("ansible.plugins.vars.host_group_vars")
    for cache in ("FOUND", "NAK", "CANONICAL_PATHS"):
        getattr(module, cache, set()).clear()


def config_warnings() -> list[str]:
    """What ansible-core had to say about its own configuration, such as an ansible.cfg that it ignored."""
    return sorted(str(warning) for warning in constants.config.WARNINGS)


def refuses_duplicate_keys() -> bool:
    """Whether a key written twice in one mapping may be refused: yes, unless the user configured it otherwise."""
    _, origin = constants.config.get_config_value_and_origin("DUPLICATE_YAML_DICT_KEY")
    return bool(origin == "default")
