"""Tools for files and text that differ from Debian's in more than which options they have; see section 14."""

from __future__ import annotations

import base64 as base64_module
import calendar
import fcntl
import grp
import hashlib
import os
import pwd
import re
import stat as modes
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import common


def reason(error: OSError) -> str:
    """As strerror has it."""
    return os.strerror(error.errno or 0)


def owner(uid: int) -> str:
    """Name of a user, or the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group(gid: int) -> str:
    """Name of a group, or the number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# stat, readlink, realpath


def stat(name: str, arguments: list[str]) -> int:
    """stat(1) of BSD: -f FORMAT, -x, -L, -n, -q, -s, -t; -c is GNU's."""
    usage = "stat [-FlLnqrsx] [-f format] [-t timefmt] [file ...]"
    pairs, rest, bad = common.getopt(arguments, "f:FlLnqrst:x")
    if bad:
        return common.illegal("stat", bad, usage)
    options = dict(pairs)
    form = options.get("f")
    times = options.get("t", "%b %e %H:%M:%S %Y")
    if form is None:
        form = '%d %i %Sp %l %Su %Sg %r %z "%Sa" "%Sm" "%Sc" "%SB" %k %b %#Xf %N'
        if "x" in options:
            form = '  File: "%N"%n  Size: %-11z  FileType: %HT%n  Mode: (%OMp%03OLp/%.10Sp)         Uid: (%5u/%8Su)  Gid: (%5g/%8Sg)%nDevice: %Hd,%Ld   Inode: %i    Links: %l%nAccess: %Sa%nModify: %Sm%nChange: %Sc'  # noqa: E501
        if "s" in options:
            form = "st_dev=%d st_ino=%i st_mode=%#p st_nlink=%l st_uid=%u st_gid=%g st_size=%z st_mtime=%m"
    code = 0
    for path in rest or [""]:
        try:
            about = (
                os.fstat(int(os.environ.get("DOUBLE_FOLDER", 0)))
                if not path
                else Path(path).stat()
                if "L" in options
                else Path(path).lstat()
            )
        except OSError as error:
            if "q" not in options:
                common.complain(f"stat: {path}: stat: {reason(error)}")
            code = 1
            continue
        text = format_stat(form, path or "(stdin)", about, times)
        sys.stdout.write(text if "n" in options else f"{text}\n")
    return code


def format_stat(form: str, path: str, about: os.stat_result, times: str) -> str:
    """The text of a format of stat(1)."""
    pattern = re.compile(r"%([#+\-0 ]*)(\d*)(?:\.(\d+))?([DOUXFS]?)([HML]?)([diplugramcBzbkfvTYNRZn%t@])")

    def one(match: re.Match[str]) -> str:
        flags, width, precision, kind, part, letter = match.groups()
        if letter in "n%t@":
            return {"n": "\n", "%": "%", "t": "\t", "@": "1"}[letter]
        value, text = field(letter, kind, part, path, about, times)
        if kind == "S" or value is None:
            text = text[: int(precision)] if precision else text
        elif kind in ("O", "X"):
            text = f"{value:o}" if kind == "O" else f"{value:x}"
            if "#" in flags and value:
                text = ("0" if kind == "O" else "0x") + text
        else:
            text = str(value)
        if width:
            fill = "0" if "0" in flags and kind != "S" else " "
            text = text.ljust(int(width)) if "-" in flags else text.rjust(int(width), fill)
        return text

    return pattern.sub(one, form)


def field(letter: str, kind: str, part: str, path: str, about: os.stat_result, times: str) -> tuple[int | None, str]:
    """A field as a number (None: it is text) and as text."""
    mode = about.st_mode
    if letter in "amcB":
        # Linux tells no birth by stat(2): the last change of the inode stands for it.
        value = {"a": about.st_atime, "m": about.st_mtime, "c": about.st_ctime, "B": about.st_ctime}[letter]
        text = time.strftime(times, time.localtime(value))
        if kind == "F":
            return None, f"{value:.9f}"
        return int(value), text
    if letter == "p":
        # Octal, unless another base is asked for.
        text = modes.filemode(mode)
        number, text = {
            "H": (mode >> 12, text[:1]),
            "M": (mode >> 9 & 0o7, text[1:4]),
            "L": (mode & 0o777, text[1:]),
        }.get(part, (mode, text))
        return (int(f"{number:o}") if kind == "" else number), text
    if letter == "u":
        return about.st_uid, owner(about.st_uid)
    if letter == "g":
        return about.st_gid, group(about.st_gid)
    if letter == "T":
        names = {
            modes.S_IFDIR: ("/", "Directory"),
            modes.S_IFLNK: ("@", "Symbolic Link"),
            modes.S_IFSOCK: ("=", "Socket"),
            modes.S_IFIFO: ("|", "Fifo File"),
            modes.S_IFCHR: ("", "Character Device"),
            modes.S_IFBLK: ("", "Block Device"),
        }
        mark, word = names.get(modes.S_IFMT(mode), ("*" if mode & 0o111 else "", "Regular File"))
        return None, word if part == "H" else mark
    if letter in "NYRZ":
        link = str(Path(path).readlink()) if modes.S_ISLNK(mode) else ""
        if letter == "Y":
            # As text with the arrow: stat.c of FreeBSD, which Apple's is made of, has `ofmt == FMTF_STRING ? 0 : 4`.
            return None, f" -> {link}" if link and kind == "S" else link
        if letter == "R":
            return None, os.path.realpath(path)
        return None, path
    if letter == "d":
        device = about.st_dev
        return {"H": os.major(device), "L": os.minor(device)}.get(part, device), ""
    numbers = {
        "i": about.st_ino,
        "l": about.st_nlink,
        "z": about.st_size,
        "b": about.st_blocks,
        "k": about.st_blksize,
        "r": about.st_rdev,
        "f": 0,
        "v": 0,
    }
    return numbers[letter], "-" if letter == "f" else str(numbers[letter])


def readlink(name: str, arguments: list[str]) -> int:
    """-f and -n only; what cannot be read is not said."""
    pairs, rest, bad = common.getopt(arguments, "fn")
    if bad or not rest:
        return common.illegal("readlink", bad or "-", "readlink [-fn] [file ...]")
    flags = {letter for letter, _ in pairs}
    code = 0
    for path in rest:
        try:
            text = os.path.realpath(path, strict=True) if "f" in flags else str(Path(path).readlink())
        except OSError:
            code = 1
            continue
        sys.stdout.write(text + ("" if "n" in flags else "\n"))
    return code


def realpath(name: str, arguments: list[str]) -> int:
    """The whole path must exist."""
    pairs, rest, bad = common.getopt(arguments, "q")
    if bad:
        return common.illegal("realpath", bad, "realpath [-q] [path ...]")
    code = 0
    for path in rest or ["."]:
        try:
            print(os.path.realpath(path, strict=True))
        except OSError as error:
            if not pairs:
                common.complain(f"realpath: {path}: {reason(error)}")
            code = 1
    return code


def mktemp(name: str, arguments: list[str]) -> int:
    """Without a template below TMPDIR; the X's count only at the end of a template."""
    pairs, rest, bad = common.getopt(arguments, "dqt:u")
    if bad:
        common.illegal("mktemp", bad, "mktemp [-d] [-q] [-t prefix] [-u] template ...")
        return 1
    options = dict(pairs)
    folder = os.environ.get("TMPDIR") or f"/var/folders/zz/double{os.getuid()}/T"
    if "t" in options or not rest:
        if not Path(folder).is_dir():
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        rest = [f"{folder.rstrip('/')}/{options.get('t', 'tmp')}.XXXXXXXXXX", *rest]
    code = 0
    for template in rest:
        trunk = template.rstrip("X")
        for _ in range(200):
            letters = "".join(chr(97 + byte % 26) for byte in os.urandom(len(template) - len(trunk)))
            path = trunk + letters
            try:
                if "d" in options:
                    Path(path).mkdir(0o700)
                else:
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            except FileExistsError:
                if letters:
                    continue
                if "q" not in options:
                    common.complain(f"mktemp: mk{'d' if 'd' in options else 's'}temp failed on {template}: File exists")
                code = 1
            except OSError as error:
                if "q" not in options:
                    kind = "d" if "d" in options else "s"
                    common.complain(f"mktemp: mk{kind}temp failed on {template}: {reason(error)}")
                code = 1
            else:
                if "u" in options:
                    (os.rmdir if "d" in options else os.unlink)(path)
                print(path)
            break
    return code


# Sizes


def df(name: str, arguments: list[str]) -> int:
    """The sealed volume, the data volume, and what a test has limited; sizes are those of the container's disk."""
    pairs, rest, bad = common.getopt(arguments, "abgHhIikl mnPT:tY,".replace(" ", ""))
    if bad:
        return common.illegal("df", bad, "df [--libxo] [-b | -g | -H | -h | -k | -m | -P] [-acIilntY] [file ...]")
    flags = {letter for letter, _ in pairs}
    unit, title = 512, "512-blocks"
    for letter, size, word in (("k", 1024, "1024-blocks"), ("m", 2**20, "1M-blocks"), ("g", 2**30, "1G-blocks")):
        if letter in flags:
            unit, title = size, word
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    limited = {fields[1]: fields[0] for fields in mounts if fields[2] == "tmpfs" and fields[1].startswith("/private/")}
    rows = []
    code = 0
    for path in rest or ["/", "/System/Volumes/Data", *limited]:
        real = os.path.realpath(path)
        try:
            about = os.statvfs(real)
        except OSError as error:
            common.complain(f"df: {path}: {reason(error)}")
            code = 1
            continue
        mount = next((each for each in limited if real == each or real.startswith(f"{each}/")), "")
        sealed = real == "/" or real.startswith(("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/System/Library"))
        device = (
            f"/dev/disk5s{list(limited).index(mount) + 1}" if mount else "/dev/disk3s1s1" if sealed else "/dev/disk3s5"
        )
        where = mount or ("/" if sealed else "/System/Volumes/Data")
        total, free = about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize
        rows.append((device, total, total - free, free, about.f_files, about.f_favail, where))
    short = "h" in flags or "H" in flags
    inodes = "P" not in flags
    title = "Size" if short else title
    head = f"{'Filesystem':<16} {title:>12} {'Used':>12} {'Avail' if short else 'Available':>12} {'Capacity':>8}"
    print(head + (" iused ifree %iused  Mounted on" if inodes else " Mounted on"))
    for device, total, used, free, files, available, where in rows:
        share = f"{round(100 * used / max(used + free, 1))}%"
        values = [human(number) if short else str(number // unit) for number in (total, used, free)]
        line = f"{device:<16} {values[0]:>12} {values[1]:>12} {values[2]:>12} {share:>8}"
        print(line + (f" {files - available:>6} {available:>8} {1:>5}%  {where}" if inodes else f" {where}"))
    return code


def human(size: float) -> str:
    """With a unit."""
    for unit in ("B", "Ki", "Mi", "Gi", "Ti"):
        if size < 1024 or unit == "Ti":
            return f"{size:.1f}{unit}" if size < 10 and unit != "B" else f"{size:.0f}{unit}"
        size /= 1024
    return ""


def wc(name: str, arguments: list[str]) -> int:
    """Numbers stand at the right of eight columns, alone and without a name too."""
    pairs, rest, bad = common.getopt(arguments, "clmwL")
    if bad:
        return common.illegal("wc", bad, "wc [-Lclmw] [file ...]")
    flags = [letter for letter, _ in pairs] or ["l", "w", "c"]
    totals = [0] * len("lwcmL")
    code = 0

    def show(numbers: list[int], label: str) -> None:
        chosen = [number for letter, number in zip("lwcmL", numbers, strict=True) if letter in flags]
        sys.stdout.write("".join(f" {number:7d}" for number in chosen) + (f" {label}" if label else "") + "\n")

    for path in rest or [""]:
        try:
            data = Path(path).read_bytes() if path else sys.stdin.buffer.read()
        except OSError as error:
            common.complain(f"wc: {path}: open: {reason(error)}")
            code = 1
            continue
        longest = max((len(line) for line in data.split(b"\n")), default=0)
        numbers = [data.count(b"\n"), len(data.split()), len(data), len(data.decode(errors="replace")), longest]
        totals = [before + number for before, number in zip(totals, numbers, strict=True)]
        show(numbers, path)
    if len(rest) > 1:
        show(totals, "total")
    return code


def head(name: str, arguments: list[str]) -> int:
    """-n COUNT or -c BYTES, both more than nothing."""
    words = list(arguments)
    if words and re.fullmatch(r"-\d+", words[0]):
        words = ["-n", words[0][1:], *words[1:]]
    pairs, rest, bad = common.getopt(words, "n:c:qv")
    if bad:
        return common.illegal("head", bad, "head [-n lines | -c bytes] [file ...]")
    for letter, value in pairs:
        if letter in "nc" and (not value.isdigit() or int(value) < 1):
            common.complain(f"head: illegal {'line' if letter == 'n' else 'byte'} count -- {value}")
            return 1
    given = [word for letter, value in pairs for word in ([f"-{letter}", value] if value else [f"-{letter}"])]
    return common.become("head", [*given, "--", *rest])


def md5(name: str, arguments: list[str]) -> int:
    """-q prints the sum alone, -s of a text."""
    pairs, rest, bad = common.getopt(arguments, "pqrs:tx")
    if bad:
        return common.illegal("md5", bad, "md5 [-pqrtx] [-s string] [file ...]")
    flags = dict(pairs)
    if "s" in flags:
        found = hashlib.md5(flags["s"].encode()).hexdigest()
        print(found if "q" in flags else f'MD5 ("{flags["s"]}") = {found}')
        return 0
    if not rest:
        print(hashlib.file_digest(sys.stdin.buffer, "md5").hexdigest())
        return 0
    code = 0
    for path in rest:
        try:
            with Path(path).open("rb") as handle:
                found = hashlib.file_digest(handle, "md5").hexdigest()
        except OSError as error:
            common.complain(f"md5: {path}: {reason(error)}")
            code = 1
            continue
        print(found if "q" in flags else f"{found} {path}" if "r" in flags else f"MD5 ({path}) = {found}")
    return code


def base64(name: str, arguments: list[str]) -> int:
    """Both -d and -D decode; lines are broken only with -b."""
    pairs, rest, bad = common.getopt(arguments, "hdDb:i:o:")
    if bad:
        return common.illegal("base64", bad, "base64 [-Ddh] [-b num] [-i in_file] [-o out_file]", 64)
    options = dict(pairs)
    source = options.get("i") or (rest[0] if rest else "-")
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        common.complain(f"base64: {source}: {reason(error)}")
        return 1
    out: BinaryIO = sys.stdout.buffer
    if options.get("o", "-") != "-":
        out = Path(options["o"]).open("wb")  # noqa: SIM115
    if "d" in options or "D" in options:
        try:
            out.write(base64_module.b64decode(b"".join(data.split()), validate=True))
        except ValueError:
            common.complain("base64: stdin: error decoding base64 input stream")
            return 1
    else:
        text = base64_module.b64encode(data)
        width = int(options.get("b", 0))
        pieces = [text[at : at + width] for at in range(0, len(text), width)] if width else [text]
        out.write(b"\n".join(pieces) + b"\n")
    out.flush()
    return 0


# Extended attributes, flags


def xattr(name: str, arguments: list[str]) -> int:
    """Attributes are Linux's `user.` ones."""
    pairs, rest, bad = common.getopt(arguments, "lrsvxcpwdh")
    flags = {letter for letter, _ in pairs}
    if bad or not rest:
        return common.illegal("xattr", bad or "-", "xattr [-l] [-r] [-s] [-v] [-x] file [file ...]", 64)
    count = 2 if "w" in flags else 1 if flags & {"p", "d"} else 0
    words, paths = rest[:count], rest[count:]
    if "r" in flags:
        paths = [str(each) for path in paths for each in (Path(path), *Path(path).rglob("*"))]
    code = 0
    for path in paths:
        if not os.path.lexists(path):
            common.complain(f"xattr: No such file: {path}")
            code = 1
            continue
        try:
            names = [each.removeprefix("user.") for each in os.listxattr(path) if each.startswith("user.")]
            if "w" in flags:
                os.setxattr(path, f"user.{words[0]}", words[1].encode())
            elif "c" in flags:
                for each in names:
                    os.removexattr(path, f"user.{each}")
            elif words and words[0] not in names:
                if "r" not in flags:
                    common.complain(f"xattr: {path}: No such xattr: {words[0]}")
                    code = 1
            elif "d" in flags:
                os.removexattr(path, f"user.{words[0]}")
            elif "p" in flags:
                print(os.getxattr(path, f"user.{words[0]}").decode(errors="replace"))
            else:
                for each in names:
                    value = os.getxattr(path, f"user.{each}").decode(errors="replace") if "l" in flags else ""
                    line = f"{each}: {value}" if "l" in flags else each
                    print(f"{path}: {line}" if len(paths) > 1 else line)
        except OSError as error:
            common.complain(f"xattr: [Errno {error.errno}] {reason(error)}: '{path}'")
            code = 1
    return code


def chflags(name: str, arguments: list[str]) -> int:
    """Kept as an attribute that nobody obeys."""
    words = [word for word in arguments if not word.startswith("-")]
    if len(words) < 2:
        common.complain("usage: chflags [-fhvx] [-R [-H | -L | -P]] flags file ...")
        return 1
    code = 0
    for path in words[1:]:
        if not os.path.lexists(path):
            common.complain(f"chflags: {path}: No such file or directory")
            code = 1
    return code


# Debian's programs with other options or another behaviour


def find(name: str, arguments: list[str]) -> int:
    """A path must be given; GNU's own tests and actions do not exist."""
    words = list(arguments)
    options = []
    while words and re.fullmatch(r"-[EHLPXdsx]+", words[0]):
        options.append(words.pop(0))
    if words[:1] == ["-f"]:
        words.pop(0)
    if not words or words[0].startswith(("-", "(", "!")):
        letter = words[0][1:2] if words and words[0].startswith("-") else "-"
        return common.illegal("find", letter, "find [-H | -L | -P] [-EXdsx] [-f path] path ... [expression]")
    foreign = [
        "printf",
        "fprintf",
        "fprint",
        "fprint0",
        "fls",
        "regextype",
        "executable",
        "readable",
        "writable",
        "quit",
        "xtype",
        "context",
        "uid_",
        "used",
        "daystart",
        "ignore_readdir_race",
        "noignore_readdir_race",
        "wholename",
    ]
    for word in words:
        if word.startswith("-") and word[1:] in foreign:
            common.complain(f"find: {word}: unknown primary or operator")
            return 1
    for place, word in enumerate(words[:-1]):
        if word == "-type" and "," in words[place + 1]:
            common.complain(f"find: -type: {words[place + 1]}: unknown type")
            return 1
    front = [f"-{letter}" for option in options for letter in option[1:] if letter in "HLP"]
    extra = ["-regextype", "posix-extended"] if any("E" in option for option in options) else []
    if any("x" in option for option in options):
        extra.append("-xdev")
    if any("d" in option for option in options):
        extra.append("-depth")
    split = next((place for place, word in enumerate(words) if word.startswith(("-", "(", "!"))), len(words))
    expression = words[split:]
    # GNU's -regex syntax is another one by default.
    if extra[:1] != ["-regextype"] and any(word in ("-regex", "-iregex") for word in expression):
        extra = ["-regextype", "posix-basic", *extra]
    return common.become("find", [*front, *words[:split], *extra, *expression])


def sed(name: str, arguments: list[str]) -> int:
    """-i takes the ending of a copy as its value, also an empty one; nothing of GNU's is understood in scripts."""
    usage = "sed script [-EHalnru] [-i extension] [file ...]\n\tsed [-EHalnu] [-i extension] [-e script] ... [file ...]"
    words = list(arguments)
    if words and words[0].startswith("--"):
        return common.illegal("sed", "-", usage)
    pairs, rest, bad = common.getopt(words, "EHae:f:I:i:lnru")
    if bad:
        return common.illegal("sed", bad, usage)
    given = ["--posix", "--separate"]
    scripts = [value for letter, value in pairs if letter == "e"]
    in_place = [value for letter, value in pairs if letter in "iI"]
    if not scripts and not any(letter == "f" for letter, _ in pairs):
        if not rest:
            common.complain(f"usage: {usage}")
            return 1
        scripts = [rest.pop(0)]
    for number, script in enumerate(scripts, 1):
        problem = foreign_sed(script)
        if problem:
            common.complain(f'sed: {number}: "{script}": {problem}')
            return 1
    for letter, value in pairs:
        if letter in "Er":
            given.append("-E")
        elif letter in "nu":
            given.append(f"-{letter}")
        elif letter == "l":
            given.append("-u")
        elif letter == "f":
            given += ["-f", value]
    if in_place:
        if not rest:
            common.complain("sed: -i may not be used with stdin")
            return 1
        given = [f"-i{in_place[-1]}" if in_place[-1] else "-i", *given]
    for script in scripts:
        given += ["-e", script]
    return common.become("sed", [*given, "--", *rest])


def foreign_sed(script: str) -> str:
    """What BSD's sed would say to a script, where it is known to differ: "" where nothing is."""
    first = script.lstrip()
    bare = re.sub(r"^(\d+|\$|/(?:[^/\\]|\\.)*/)(,(\d+|\$|/(?:[^/\\]|\\.)*/))?\s*!?\s*", "", first)
    if bare[:1] in ("a", "i", "c") and not re.match(r"[aic]\\\n", bare) and bare[1:2] != "":
        return f"command {bare[0]} expects \\ followed by text"
    if re.match(r"[dDgGhHlnNpPx=]\}", bare):
        return f"extra characters at the end of {bare[0]} command"
    if first and first[0] not in "0123456789$/\\{}sydDgGhHnNpPxlqrwbtaic=:#!;" and not first.startswith("\n"):
        return f"invalid command code {first[0]}"
    # A path in the place of the script, as after a -i without its value.
    if re.fullmatch(r"/[^/]+(/[^/]*)+", first) and not re.match(r"/[^/]*/\s*[!{sydDgGhHnNpPxlqrwbtaic=,]", first):
        return f"invalid command code {first.split('/')[2][:1] or first[0]}"
    return ""


def xargs(name: str, arguments: list[str]) -> int:
    """Runs nothing when nothing comes in."""
    pairs, rest, bad = common.getopt(arguments, "0E:I:J:L:n:oP:pR:rS:s:tx")
    if bad:
        return common.illegal(
            "xargs", bad, "xargs [-0opt] [-E eofstr] [-I replstr] [-n number] [utility [argument ...]]"
        )
    given = ["-r"]
    for letter, value in pairs:
        if letter in "RSor":
            continue
        if letter == "J":
            common.complain("xargs: the double has no -J")
            return 70
        given += [f"-{letter}", *([value] if value else [])]
    return common.become("xargs", [*given, "--", *rest])


def cp(name: str, arguments: list[str]) -> int:
    """-a, -c (a clone) and -X exist; a folder that ends in a slash is copied by what is in it."""
    pairs, rest, bad = common.getopt(arguments, "HLPRSXacfilnprsvx")
    if bad or len(rest) < 2:
        usage = "cp [-R [-H | -L | -P]] [-fi | -n] [-aclpSsvXx] source_file target_file"
        return common.illegal("cp", bad or "-", usage, 64)
    flags = [letter for letter, _ in pairs]
    given = [f"-{letter}" for letter in flags if letter not in "XcS"]
    if set(flags) & set("Rra"):
        rest[:-1] = [f"{path}." if path.endswith("/") and path != "/" else path for path in rest[:-1]]
    return common.become("cp", [*given, "--", *rest], POSIXLY_CORRECT="1")


def ls(name: str, arguments: list[str]) -> int:
    """The letters that Debian's has for something else, or not at all, are left out."""
    pairs, rest, bad = common.getopt(arguments, "@ABCFGHILOPRSTUWXabcdefghiklmnopqrstuvwxy1%,D:")
    if bad:
        return common.illegal("ls", bad, "ls [-@ABCFGHILOPRSTUWabcdefghiklmnopqrstuvwxy1%,] [file ...]")
    flags = [letter for letter, _ in pairs]
    if "@" in flags:
        common.become("ls", [*[f"-{letter}" for letter in flags if letter in "al1d"], "--", *rest])
    given = [f"-{letter}" for letter in flags if letter not in "@BDGIOPTUWXevyw%,b"]
    return common.become("ls", [*given, "--", *rest], POSIXLY_CORRECT="1", QUOTING_STYLE="literal")


# date


def date(name: str, arguments: list[str]) -> int:
    """-u, -r SECONDS or FILE, -j -f FORMAT TEXT, -v ADJUSTMENT, +FORMAT; -d and long options are GNU's."""
    usage = "date [-jnRu] [-I[date|hours|minutes|seconds|ns]] [-f input_fmt] [-r filename|seconds] [-v[+|-]val] [+fmt]"
    words = []
    iso = ""
    for word in arguments:
        if re.fullmatch(r"-I(date|hours|minutes|seconds|ns)?", word):
            iso = word[2:] or "date"
        else:
            words.append(word)
    pairs, rest, bad = common.getopt(words, "f:jnRr:uv:z:")
    if bad:
        return common.illegal("date", bad, usage)
    options = dict(pairs)
    if "u" in options:
        os.environ["TZ"] = "UTC0"
    elif "z" in options:
        os.environ["TZ"] = options["z"]
    time.tzset()
    moment = time.time()
    if "r" in options:
        if re.fullmatch(r"-?\d+", options["r"]):
            moment = float(options["r"])
        else:
            try:
                moment = Path(options["r"]).stat().st_mtime
            except OSError as error:
                common.complain(f"date: {options['r']}: {reason(error)}")
                return 1
    form = "%a %b %e %H:%M:%S %Z %Y"
    if rest and not rest[0].startswith("+"):
        text = rest.pop(0)
        if "j" not in options:
            common.complain("date: settimeofday (timeval): Operation not permitted")
            return 1
        try:
            moment = parse_date(options.get("f", "%Y%m%d%H%M"), text)
        except ValueError:
            common.complain(f"Failed conversion of ``{text}'' using format ``{options.get('f', '')}''")
            common.complain("date: illegal time format\n" + f"usage: {usage}")
            return 1
    if rest:
        form = rest[0][1:]
    elif iso:
        forms = {"date": "%Y-%m-%d", "hours": "%Y-%m-%dT%H", "minutes": "%Y-%m-%dT%H:%M"}
        form = forms.get(iso, "%Y-%m-%dT%H:%M:%S") + ("" if iso == "date" else "%z")
    elif "R" in options:
        form = "%a, %d %b %Y %H:%M:%S %z"
    for letter, value in pairs:
        if letter == "v":
            moment = adjusted(moment, value)
    if "%N" in form and common.release()[:2] < (15, 4):
        form = form.replace("%N", "N")
    form = form.replace("%N", f"{int(moment % 1 * 1e9):09d}").replace("%+", "%a %b %e %H:%M:%S %Z %Y")
    print(time.strftime(form, time.localtime(moment)))
    return 0


def parse_date(form: str, text: str) -> float:
    """What -f reads. What the format does not name is as it is now."""
    now = datetime.now()
    form = form.replace("%T", "%H:%M:%S").replace("%F", "%Y-%m-%d").replace("%R", "%H:%M")
    if form == "%s":
        return float(text)
    read = time.strptime(text, form)
    if "%Z" in form and re.search(r"\b(UTC|GMT)\b", text):
        return float(calendar.timegm(read))
    if "%z" in form:
        return float(calendar.timegm(read)) - (read.tm_gmtoff or 0)
    hour, minute, second = read.tm_hour, read.tm_min, read.tm_sec
    if "%H" not in form and "%I" not in form:
        hour, minute, second = now.hour, now.minute, now.second
    year = read.tm_year if "%Y" in form or "%y" in form else now.year
    month = read.tm_mon if any(each in form for each in ("%m", "%b", "%B")) else now.month
    day = read.tm_mday if any(each in form for each in ("%d", "%e")) else now.day
    return time.mktime((year, month, day, hour, minute, second, 0, 0, -1))


def adjusted(moment: float, value: str) -> float:
    """-v: +1d, -3H, ..."""
    match = re.fullmatch(r"([+-]?)(\d+)([ymwdHMS])", value)
    if match is None:
        common.complain(f"date: {value}: Cannot apply date adjustment")
        sys.exit(1)
    sign, count, unit = match[1], int(match[2]), match[3]
    number = -count if sign == "-" else count
    parts = list(time.localtime(moment)[:6])
    place = {"y": 0, "m": 1, "d": 2, "H": 3, "M": 4, "S": 5, "w": 2}[unit]
    parts[place] = (parts[place] + number * (7 if unit == "w" else 1)) if sign else count
    if unit in "ym":
        parts[0] += (parts[1] - 1) // 12
        parts[1] = (parts[1] - 1) % 12 + 1
        parts[2] = min(parts[2], calendar.monthrange(parts[0], parts[1])[1])
    return time.mktime((*parts, 0, 0, -1))  # type: ignore[arg-type]


def lockf(name: str, arguments: list[str]) -> int:
    """-k keeps the file, -n makes none, -s says nothing, -t waits so many seconds; 75 when somebody else has it."""
    pairs, rest, bad = common.getopt(arguments, "knpst:w")
    if bad or len(rest) < 2:
        common.complain("usage: lockf [-knsw] [-t seconds] file command [arguments]")
        return 64
    options = dict(pairs)
    path, command = rest[0], rest[1:]
    deadline = time.monotonic() + float(options["t"]) if "t" in options else None
    while True:
        try:
            handle = os.open(path, os.O_RDONLY | (0 if "n" in options else os.O_CREAT), 0o666)
        except OSError as error:
            common.complain(f"lockf: cannot open {path}: {reason(error)}")
            return 69 if "n" in options else 73
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have taken the file away meanwhile.
            if os.fstat(handle).st_ino == Path(path).stat().st_ino:
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if deadline is not None and time.monotonic() >= deadline:
                if "s" not in options:
                    common.complain(f"lockf: {path}: already locked")
                return 75
        os.close(handle)
        time.sleep(0.05)
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        common.complain(f"lockf: {command[0]}: {reason(error)}")
        code = 71
    if "k" not in options:
        Path(path).unlink(missing_ok=True)
    return code if code >= 0 else 70


def path_helper(name: str, arguments: list[str]) -> int:
    """What login shells evaluate: /etc/paths, then /etc/paths.d."""
    found: list[str] = []
    for file in (Path("/etc/paths"), *sorted(Path("/etc/paths.d").glob("*"))):
        found += [line for line in file.read_text().splitlines() if line and line not in found]
    found += [each for each in os.environ.get("PATH", "").split(":") if each and each not in found]
    print(f'PATH="{":".join(found)}"; export PATH;')
    return 0
