"""defaults, plutil and PlistBuddy; see section 13."""

from __future__ import annotations

import json
import os
import plistlib
import pwd
import re
import sys
from pathlib import Path
from typing import Any

import common


def load(path: str | Path) -> Any:
    """A property list of either kind; Apple's parser minds no white space in front. Raises what is wrong."""
    data = Path(path).read_bytes()
    return plistlib.loads(data if data.startswith(b"bplist") else data.lstrip())


def domain_file(domain: str) -> Path:
    """Where a domain is kept."""
    if domain.startswith("/"):
        return Path(domain if domain.endswith(".plist") else f"{domain}.plist")
    home = Path(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
    names = {"-g": ".GlobalPreferences", "NSGlobalDomain": ".GlobalPreferences", "-globalDomain": ".GlobalPreferences"}
    return home / "Library" / "Preferences" / f"{names.get(domain, domain)}.plist"


def old_style(value: Any, depth: int = 0) -> str:
    """As `defaults read` prints."""
    pad = "    " * (depth + 1)
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, dict):
        rows = [f"{pad}{quoted(key)} = {old_style(each, depth + 1)};\n" for key, each in sorted(value.items())]
        return "{\n" + "".join(rows) + "    " * depth + "}"
    if isinstance(value, list):
        rows = [pad + old_style(each, depth + 1) for each in value]
        return "(\n" + ",\n".join(rows) + ("\n" if rows else "") + "    " * depth + ")"
    if isinstance(value, bytes):
        shown = value.hex()
        if len(value) > 24:
            shown = f"{value[:16].hex()} ... {value[-8:].hex()}"
        return f"{{length = {len(value)}, bytes = 0x{shown}}}"
    return quoted(str(value)) if depth else str(value)


def quoted(text: str) -> str:
    """In quotes where it needs them."""
    return text if re.fullmatch(r"[A-Za-z0-9_.]+", text) else '"' + text.replace('"', '\\"') + '"'


KINDS = {
    bool: "boolean",
    int: "integer",
    float: "float",
    str: "string",
    bytes: "data",
    list: "array",
    dict: "dictionary",
}


def typed(words: list[str]) -> Any:
    """The value that `write` is given."""
    kind = words[0].lstrip("-") if words and words[0].startswith("-") else ""
    rest = words[1:] if kind else words
    if kind in ("bool", "boolean"):
        return rest[0].lower() in ("yes", "true", "1")
    if kind in ("int", "integer"):
        return int(rest[0], 0)
    if kind in ("float",):
        return float(rest[0])
    if kind == "data":
        return bytes.fromhex(rest[0])
    if kind == "array":
        return list(rest)
    if kind == "dict":
        return dict(zip(rest[::2], rest[1::2], strict=False))
    return rest[0] if rest else ""


def missing(domain: str, key: str) -> int:
    """The words of 26 and before, and those of 27."""
    common.complain(f"{common.stamp('defaults')} ")
    if common.version() >= 27:
        common.complain(f"Could not find key {key} in domain {domain}" if key else f"Domain {domain} not found")
    elif key:
        common.complain(f"The domain/default pair of ({domain}, {key}) does not exist")
    else:
        common.complain(f"Domain {domain} does not exist")
    return 1


def defaults(name: str, arguments: list[str]) -> int:
    """read, read-type, write, delete, export, import, domains."""
    words = [word for word in arguments if word != "-currentHost"]
    if not words:
        common.complain("Command line interface to a user's defaults.")
        return 255
    verb, rest = words[0], words[1:]
    if verb not in ("read", "read-type", "write", "delete", "export", "import", "rename", "find", "domains"):
        common.complain("Command line interface to a user's defaults.")
        return 255
    domain = rest[0] if rest else ""
    file = domain_file(domain)
    shown = domain if not domain.startswith("/") else str(file).removesuffix(".plist")
    try:
        found = load(file)
        there = True
    except FileNotFoundError:
        found, there = {}, False
    except Exception:
        found, there = {}, False
    key = rest[1] if len(rest) > 1 else ""
    if verb in ("read", "read-type"):
        if not there or (key and key not in found):
            return missing(shown, key if there or common.version() < 27 else "")
        value = found[key] if key else found
        print(f"Type is {KINDS.get(type(value), 'date')}" if verb == "read-type" else old_style(value))
        return 0
    if verb == "export":
        data = plistlib.dumps(found)
        if key == "-":
            sys.stdout.write(data.decode())
        else:
            Path(key).write_bytes(data)
        return 0
    if verb == "domains":
        print(", ".join(sorted(path.stem for path in domain_file("x").parent.glob("*.plist"))))
        return 0
    if verb == "write" and key in ("-array-add", "-dict-add"):
        return 1
    if verb == "write":
        values = rest[2:]
        if values[:1] == ["-array-add"]:
            found.setdefault(key, []).extend(values[1:])
        elif values[:1] == ["-dict-add"]:
            found.setdefault(key, {}).update(zip(values[1::2], values[2::2], strict=False))
        else:
            try:
                found[key] = typed(values)
            except (ValueError, IndexError):
                common.complain(
                    f"{common.stamp('defaults')} Unexpected argument {' '.join(values)}; leaving defaults unchanged."
                )
                return 255
    elif verb == "import":
        found = load(key) if key != "-" else plistlib.loads(sys.stdin.buffer.read().lstrip())
    elif verb == "delete":
        if not there or (key and key not in found):
            return missing(shown, key)
        if key:
            del found[key]
        else:
            found = {}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.new")
        temporary.write_bytes(plistlib.dumps(found, fmt=plistlib.FMT_BINARY))
        temporary.chmod(0o644 if str(file).startswith("/Library") else 0o600)
        temporary.rename(file)
    except OSError:
        common.complain(f"{common.stamp('defaults')} Could not write domain {shown}; exiting")
        return 1
    return 0


def plutil(name: str, arguments: list[str]) -> int:
    """-lint, -p, -extract, -replace, -insert, -remove, -convert, -type; Apple's says errors on standard output."""
    words = list(arguments)
    if not words:
        common.complain("No files specified.")
        return 1
    verb = words.pop(0) if words[0].startswith("-") else "-lint"
    silent = "-s" in words
    output = words[words.index("-o") + 1] if "-o" in words[:-1] else ""
    if output:
        del words[words.index("-o") : words.index("-o") + 2]
    if verb == "-lint":
        return lint([word for word in words if word not in ("-s", "--")], silent)
    if verb == "-p":
        return print_human(words[-1])
    count = {"-extract": 2, "-replace": 3, "-insert": 3, "-remove": 1, "-convert": 1, "-type": 1}.get(verb)
    if count is None:
        common.complain(f"{verb}: unrecognized option")
        return 1
    values, paths = words[:count], [word for word in words[count:] if word not in ("-s", "-e", "-n", "--")]
    code = 0
    for path in paths:
        code = max(code, edit(verb, values, path, output, "-n" in words))
    return code


def lint(paths: list[str], silent: bool) -> int:
    """Whether files are property lists."""
    code = 0
    for path in paths:
        try:
            load(path)
        except FileNotFoundError:
            print(f"{path}: file does not exist or is not readable or is not a regular file")
            code = 1
        except Exception as error:
            first = Path(path).read_bytes()[:1].decode(errors="replace")
            line = getattr(error, "lineno", 1)
            if first == "<":
                print(f"{path}: (Encountered unexpected element at line {line} while looking for close tag)")
            else:
                print(f"{path}: (Unexpected character {first} at line {line})")
            code = 1
        else:
            if not silent:
                print(f"{path}: OK")
    return code


def print_human(path: str) -> int:
    """-p."""

    def show(value: Any, depth: int) -> str:
        pad = "  " * (depth + 1)
        if isinstance(value, dict):
            rows = [f'{pad}"{key}" => {show(each, depth + 1)}\n' for key, each in sorted(value.items())]
            return "{\n" + "".join(rows) + "  " * depth + "}"
        if isinstance(value, list):
            rows = [f"{pad}{place} => {show(each, depth + 1)}\n" for place, each in enumerate(value)]
            return "[\n" + "".join(rows) + "  " * depth + "]"
        if isinstance(value, bool):
            return "true" if value else "false"
        return f'"{value}"' if isinstance(value, str) else str(value)

    try:
        print(show(load(path), 0))
    except Exception:
        print(f"{path}: file does not exist or is not readable or is not a regular file")
        return 1
    return 0


def edit(verb: str, values: list[str], path: str, output: str, bare: bool) -> int:
    """One file."""
    try:
        content = load(path) if path != "-" else plistlib.loads(sys.stdin.buffer.read().lstrip())
    except Exception:
        print(f"{path}: file does not exist or is not readable or is not a regular file")
        return 1
    if verb == "-convert":
        return write(content, values[0], output or path, path)
    keys = values[0].split(".")
    parent: Any = content
    try:
        for key in keys[:-1]:
            parent = parent[int(key)] if isinstance(parent, list) else parent[key]
        last: Any = int(keys[-1]) if isinstance(parent, list) else keys[-1]
        if verb in ("-extract", "-remove", "-type"):
            found = parent[last]
    except (KeyError, IndexError, ValueError, TypeError):
        print(
            f"{path}: Could not {'remove' if verb == '-remove' else 'extract'} value, error: No value at that key path "
            f"or invalid key path: {values[0]}"
        )
        return 1
    if verb == "-type":
        print({"boolean": "bool"}.get(KINDS.get(type(found), "date"), KINDS.get(type(found), "date")))
        return 0
    if verb == "-extract":
        if values[1] != "raw":
            return write(found, values[1], output or path, path)
        raw = found
        if isinstance(found, bool):
            raw = "true" if found else "false"
        elif isinstance(found, list):
            raw = len(found)
        elif isinstance(found, dict):
            raw = "\n".join(sorted(found))
        sys.stdout.write(f"{raw}" + ("" if bare else "\n"))
        return 0
    if verb == "-remove":
        del parent[last]
    else:
        kind, value = values[1].lstrip("-"), values[2]
        wanted: Any = value
        if kind in ("bool", "boolean"):
            wanted = value.lower() in ("yes", "true", "1")
        elif kind == "integer":
            wanted = int(value)
        elif kind in ("json", "xml"):
            wanted = json.loads(value) if kind == "json" else plistlib.loads(value.encode())
        if isinstance(parent, list) and verb == "-insert":
            parent.insert(last, wanted)
        else:
            parent[last] = wanted
    return write(content, "xml1", output or path, path)


def write(content: Any, form: str, target: str, path: str) -> int:
    """In one of the forms."""
    try:
        if form == "json":
            data = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
        else:
            data = plistlib.dumps(content, fmt=plistlib.FMT_BINARY if form == "binary1" else plistlib.FMT_XML)
    except TypeError:
        print(f"{path}: invalid object in plist for destination format")
        return 1
    if target == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        Path(target).write_bytes(data)
    return 0


def PlistBuddy(name: str, arguments: list[str]) -> int:
    """-c with Print, Set, Add, Delete of one level or more."""
    pairs, rest, _ = common.getopt(arguments, "c:xhl")
    if not rest:
        common.complain("Usage: PlistBuddy [-cxh] <file.plist>")
        return 1
    path = rest[0]
    content = load(path) if Path(path).exists() else {}
    for letter, value in pairs:
        if letter != "c":
            continue
        verb, _, tail = value.partition(" ")
        entry, _, tail = tail.partition(" ")
        keys = [key for key in entry.split(":") if key]
        parent: Any = content
        try:
            for key in keys[:-1]:
                parent = parent[int(key)] if isinstance(parent, list) else parent[key]
            if verb.lower() == "print":
                found = content if not keys else parent[int(keys[-1]) if isinstance(parent, list) else keys[-1]]
                print(str(found).lower() if isinstance(found, bool) else found)
                continue
            if verb.lower() == "delete":
                del parent[keys[-1]]
            elif verb.lower() == "set":
                old = parent[keys[-1]]
                parent[keys[-1]] = (
                    type(old)(tail) if not isinstance(old, bool) else tail.lower() in ("yes", "true", "1")
                )
            elif verb.lower() == "add":
                kind, _, text = tail.partition(" ")
                made = {"bool": text.lower() in ("yes", "true", "1"), "dict": {}, "array": []}
                parent[keys[-1]] = int(text) if kind == "integer" else made.get(kind, text)
        except (KeyError, IndexError, ValueError):
            common.complain(f'{verb}: Entry, "{entry}", Does Not Exist')
            return 1
        Path(path).write_bytes(plistlib.dumps(content))
    return 0
