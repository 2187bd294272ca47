"""A table of nftables: in force as its file says, loaded at boot before the network, never at the price of the way in.

The table is one's own. Tables of others are neither read nor changed, and what they drop stays dropped.
"""

from pyinfra import host

from boxwright.facts.firewall import Table
from boxwright.facts.services import Unit
from boxwright.guard import DEADLINE, Change, NewFile
from boxwright.operations.api import Commands, operation
from boxwright.operations.files import show_difference, text_on_box, write
from boxwright.operations.guard import guarded, settled
from boxwright.shell import refuse, script


def unit_text(family: str, table: str, path: str) -> str:
    """The unit that loads the table of the file `path`: at boot before there is a network, whole or not at all.

    Without the file it does nothing. `systemctl stop` takes the table away, which opens the box.
    """
    return f"""\
# Written by boxwright: changes made here are overwritten by the next run.
[Unit]
Description=Packet filter: table {family} {table}
DefaultDependencies=no
RequiresMountsFor={path}
Wants=network-pre.target
# nftables.service begins by emptying the whole packet filter, at its start and at each reload.
After=local-fs.target nftables.service boxwright-guard.service
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service
Before=network-pre.target
ConditionPathExists={path}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f {path}
ExecReload=/usr/sbin/nft -f {path}
ExecStop=/usr/sbin/nft "add table {family} {table}; delete table {family} {table}"

[Install]
WantedBy=sysinit.target
"""


def unit_path(service: str) -> str:
    """Where the unit is kept on the box."""
    return f"/etc/systemd/system/{service}.service"


@operation()
def unit(family: str, table: str, path: str, service: str) -> Commands:
    """systemd knows the unit `service`, which loads the table `family table` from the file `path`."""
    where, text = unit_path(service), unit_text(family, table, path)
    found = host.get_fact(Unit, service=service, paths=(where,))
    if found is None:
        yield refuse(f"the unit {service} could not be examined")
        return
    (there,) = found.files
    differs = not (there.holds(text) and there.is_roots(0o644))
    if differs:
        show_difference(where, text_on_box(where, there), text)
        yield write(where, text, "root:root", 0o644)
    if differs or found.needs_reload:
        yield script("systemctl daemon-reload")


@operation()
def table(family: str, table: str, path: str, text: str, service: str, deadline: int = DEADLINE) -> Commands:
    """The kernel has the table `family table` exactly as `text` describes it, and the unit `service` loads it at boot.

    `text` is a file for `nft -f` that replaces the table in one step. It is checked by nft first; then it is put in
    force under the guard (boxwright.operations.guard, whose `ready` must have been there): unless a new connection
    confirms it within `deadline` seconds, the box puts back what was in force before.
    """
    yield from settled("firewall")
    found = host.get_fact(Table, family=family, table=table, path=path, service=service)
    if found is None:
        yield refuse(f"the table {family} {table} of the packet filter could not be examined")
        return
    same = found.file.holds(text)
    if not (same and found.file.is_roots(0o600) and found.in_force and found.service == "active"):
        if not same:
            show_difference(path, text_on_box(path, found.file), text)
        live = f"{family} {table}"
        yield from guarded(
            Change(
                name="firewall",
                files={path: NewFile(text, 0o600, validate="nft -c -f {path}")},
                save=f"nft -s list table {live} >live 2>/dev/null || : >live",
                force=f'systemctl reload-or-restart -- "{service}.service" || {{\n'
                f'    journalctl --quiet --no-pager --output=cat --lines=5 --unit="{service}.service" >&2\n'
                "    exit 1\n}",
                # The unit's stop takes the table away, so what was in force comes after it.
                restore=f'[ -e "{path}" ] || systemctl stop -- "{service}.service"\n'
                f"{{ echo 'add table {live}'; echo 'delete table {live}'; cat live; }} | nft -f -",
            ),
            deadline,
        )
    if found.enabled != "enabled":
        yield script('systemctl enable --quiet -- "$1.service"', service)


@operation()
def table_absent(family: str, table: str, path: str, service: str) -> Commands:
    """The table `family table` is gone from the kernel, with its file and the unit that loads it; others' stay."""
    asked = {"family": family, "table": table, "path": path, "service": service}
    found = host.get_fact(Table, **asked)
    if found is not None and (found.present or found.file.kind != "absent"):
        yield from settled("firewall")
        found = host.get_fact(Table, **asked)
    if found is None:
        yield refuse(f"the table {family} {table} of the packet filter could not be examined")
        return
    if found.service not in ("inactive", "failed"):
        yield script('systemctl stop -- "$1.service"', service)
    if found.present:
        # Its unit may have taken it away already.
        yield script('nft "add table $1 $2; delete table $1 $2"', family, table)
    if found.file.kind != "absent":
        yield script('rm -f -- "$1"', path)
    if found.enabled:
        text = """
            systemctl disable --quiet -- "$1.service" 2>/dev/null
            rm -f -- "$2" && systemctl daemon-reload
            """
        yield script(text, service, unit_path(service))
