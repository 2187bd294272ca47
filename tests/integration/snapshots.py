"""What a box consists of, written down so that two moments, or two boxes, can be compared line by line."""

from __future__ import annotations

from kit import Box

FOLDERS = ("/etc", "/opt", "/usr/local", "/var/lib/boxwright", "/var/lib/caddy", "/root", "/home")

# Everything that may not change when nothing is to be touched: also process numbers, containers, and the change time of
# each file, which nobody can set back.
_EXACT = """
find {folders} -xdev -printf '%p|%y|%u:%g|%m|%s|%T@|%C@|%l\\n' 2>/dev/null | sort
dpkg-query --show --showformat 'package ${{Package}} ${{Version}} ${{Status}}\\n'
getent passwd
getent group
systemctl show --property=Id,MainPID,ActiveState,UnitFileState,ActiveEnterTimestampMonotonic caddy llamacpp docker ssh
systemctl list-unit-files --no-legend --no-pager
if command -v docker >/dev/null; then
    docker ps --all --no-trunc --format '{{{{.ID}}}} {{{{.Image}}}} {{{{.Names}}}} {{{{.Ports}}}}'
    docker inspect --format '{{{{.State.StartedAt}}}}' $(docker ps --all --quiet)
    docker images --no-trunc --digests --format '{{{{.ID}}}} {{{{.Repository}}}} {{{{.Tag}}}} {{{{.Digest}}}}'
    docker volume ls
    docker network ls --no-trunc
fi
iptables-save 2>/dev/null | grep -v -e '^#' -e '^:' -e -c
true
"""


def exact(box: Box) -> list[str]:
    """The state of `box` now; equal to a later one only when nothing was touched in between."""
    lines = box.sh(_EXACT.format(folders=" ".join(FOLDERS))).splitlines()
    assert len(lines) > 500, "the box could not be read"
    return lines


# What a box is made of, without times and numbers that differ from box to box.
_MADE_OF = """
find {folders} -xdev -printf '%p|%y|%u:%g|%m|%l\\n' 2>/dev/null | sort
dpkg-query --show --showformat 'package ${{Package}} ${{Status}}\\n' | grep 'ok installed'
getent passwd | cut -d : -f 1,6,7 | sed 's/^/account /'
getent group | cut -d : -f 1,4 | sed 's/^/group /'
systemctl list-unit-files --no-legend --no-pager --state enabled | awk '{{ print "enabled " $1 }}'
ls /run/boxwright 2>/dev/null | sed 's/^/record /'
ip -brief link | awk '{{ sub(/@.*/, "", $1); print "interface " $1 }}' | grep -v ' veth'
true
"""


def made_of(box: Box) -> set[str]:
    """Files with owner and mode, packages, accounts, services and interfaces of `box`."""
    lines = box.sh(_MADE_OF.format(folders=" ".join(FOLDERS))).splitlines()
    assert len(lines) > 500, "the box could not be read"
    return set(lines)


def contents(box: Box, *folders: str) -> dict[str, str]:
    """Digest of every file below `folders`; programs' own caches are left out."""
    script = f"find {' '.join(folders)} -xdev -type f ! -name '*.pyc' -exec sha256sum {{}} + 2>/dev/null"
    return dict(reversed(line.split(maxsplit=1)) for line in box.sh(script, check=False).splitlines())
