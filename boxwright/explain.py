"""Explains a word that people meet: an error code, a variable, a role, or a file on a box.

Everything comes from this checkout: no inventory is read and nothing is asked of a network.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from boxwright.errors import CODES, Problem, Refused
from boxwright.inventory import role_modules
from boxwright.launchd import DAEMONS
from boxwright.reference import code_range, variable_text
from boxwright.services import UNITS
from boxwright.settings import BoxBase, RoleSettings, hash_of, role_classes

# What an exit code means stands in docs/errors.md; this is what one has to do with a code of each range.
_THEN = {
    "BW0": "Nothing was changed: it was found in files of this machine, before any connection (exit code 2).",
    "BW1": "Nothing was changed on the box that it is about (exit code 2).",
    "BW2": "A run ended early (exit code 1). What it did before stays; the next run goes on from there.",
    "BW3": "It is about this machine, not about a box.",
}
# A path that is not shared by everybody: /etc/boxwright/x, not /etc/boxwright.
_PLACE = re.compile(r"/[^\s{}]+/[^\s{}]+/[^\s{}]+")


def explain(word: str, box: type[BoxBase], renamed: Mapping[str, tuple[str, str]]) -> str:
    """What `word` is, as lines of text that end in a line break.

    `box` has the roles' settings, `renamed` the old names of variables, each with the new name and the version.

    Raises Refused (BW041) when it is none of boxwright's words; near ones are named.
    """
    roles = role_classes(box)
    variables = {
        f"{prefix}_{name}": (prefix, field)
        for prefix, role in roles.items()
        for name, field in role.model_fields.items()
        if hash_of(field) is None
    }
    plain = word.strip().strip("`")
    # As messages and Jinja write them: gateway_names[0], host_users.name, {{ gateway_port }}
    name = re.sub(r"[\[.].*", "", plain.strip("{} "))
    if plain.upper() in CODES:
        return _code(plain.upper())
    if plain.startswith("/"):
        return _file(plain, list(roles))
    if name in variables:
        prefix, field = variables[name]
        return f"{variable_text(name, field)}\nIt belongs to the role {prefix}: boxwright explain {prefix}\n"
    if name in renamed:
        new, version = renamed[name]
        return f"{name} is called {new} since {version}: boxwright explain {new}\n"
    if plain in roles:
        return _role(plain, roles[plain])
    raise Refused(_unknown(plain, [*CODES, *variables, *roles]))


def _code(code: str) -> str:
    return f"{code} ({code_range(code)})\n\n{CODES[code]}\n\n{_THEN[code[:3]]} All codes: docs/errors.md\n"


def _role(prefix: str, role: type[RoleSettings]) -> str:
    lines = [(inspect.getdoc(sys.modules.get(f"roles.{prefix}")) or inspect.getdoc(role) or "").strip()]
    lines += ["", "Variables:", ""]
    for name, field in role.model_fields.items():
        if hash_of(field) is None:
            summary = (field.description or "").partition(". ")[0].rstrip(".")
            lines.append(f"  {prefix}_{name}: {summary}")
    lines += ["", f"More about each: boxwright explain VARIABLE, or docs/roles/{prefix}.md"]
    return "\n".join(lines) + "\n"


def _file(path: str, roles: Sequence[str]) -> str:
    """Which role a file of a box belongs to: the one that names the longest part of its path."""
    unit = re.fullmatch(rf"{UNITS}/([^/.]+)\.[a-z]+(\.d/.*)?", path) or re.fullmatch(
        rf"{DAEMONS}/boxwright\.(.+)\.plist", path
    )
    names = {role: set(_texts(role)) for role in roles}
    if unit:
        found = [(path, role) for role in roles if unit[1].startswith(role) or unit[1] in names[role]]
    else:
        places = [(text, role) for role in roles for text in names[role] if _PLACE.fullmatch(text) and text != UNITS]
        found = [(place, role) for place, role in places if f"{path}/".startswith(f"{place}/")]
    if not found:
        raise Refused(
            Problem(
                code="BW041",
                message=f"{path} is no file that a role of boxwright names",
                help="`boxwright plan --diff` shows each file that would change, and by which step",
            )
        )
    place, role = max(found, key=lambda pair: len(pair[0]))
    what = f"{path} belongs to the role {role}" + (f", with all below {place}." if place != path else ".")
    return f"{what}\nWhat boxwright wrote there is put back by the next run: boxwright explain {role}\n"


def _texts(role: str) -> Iterator[str]:
    """The texts that the modules of `role` have in constants: names of services, paths of files and folders."""
    for module in role_modules(role):
        for value in vars(module).values():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str):
                    yield text


def _unknown(word: str, known: Sequence[str]) -> Problem:
    near = difflib.get_close_matches(word, known, n=3)
    return Problem(
        code="BW041",
        message=f"`{word}` is no error code, variable, role or file of boxwright",
        help=f"did you mean {' or '.join(f'`{one}`' for one in near)}?"
        if near
        else "variables are in docs/settings.md, codes in docs/errors.md",
    )
