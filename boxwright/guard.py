"""A change that could cut the operator off undoes itself on the box, unless a new connection confirms it. Pure.

Before the change, a timer is armed on the box that puts the former state back; then the change is put in force; then
the control machine connects anew and confirms, over that very connection, which disarms the timer. The timer belongs to
systemd: it outlives the connection and a run that is killed. A box that goes down in between takes the change back at
its next boot, before anything reads it (the unit of `BOOT_UNIT`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

# Seconds from arming until a change that nobody confirmed is undone. A new connection takes less than one; sshd may
# need a while to be restarted, and a box that lost a packet of the handshake asks again after 1, 3 and 7 s (tcp(7)).
DEADLINE = 30

PROGRAM_PATH = "/usr/local/lib/boxwright/guard"
# One folder for each change that is under way: `armed` holds its token as long as it waits for its confirmation.
FOLDER = "/var/lib/boxwright/guard"
BOOT_UNIT = "boxwright-guard"
BOOT_UNIT_PATH = f"/etc/systemd/system/{BOOT_UNIT}.service"

PROGRAM = f"""\
#!/bin/sh
# Written by boxwright. Undoes a change that could cut its operator off, unless it is confirmed in time.
#   guard put NAME TOKEN SECONDS   arms the timer, then puts the new files in place and in force
#   guard confirm NAME TOKEN       the change stays
#   guard undo NAME TOKEN          the former state again; run by the timer
#   guard wait NAME                returns when no change of that name waits for its confirmation
#   guard boot                     the former files again, of each change that was not confirmed before a reboot
# In the folder of a change, out of prepared-TOKEN: `files` (a number and a path per line), `new.NUMBER` (none: the file
# shall go), the scripts `save`, `force` and `restore`, and `after`, the unit after whose start at a boot `restore` is
# run too, or nothing; `former.NUMBER` is made here.
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 077
verb=$1 name=$2 token=$3 seconds=$4
folder={FOLDER}/$name
unit=boxwright-guard-$name
fail() {{ printf '%s\\n' "$1" >&2; exit 1; }}
enter() {{ cd "$folder" 2>/dev/null || fail "no change of $name is under way"; }}
lock() {{ exec 9>>"$folder/lock" && flock -w 120 9 || fail "the change of $name is held by another process"; }}
# In one step, with owner and mode; $1 is what to copy, $2 its destination.
place() {{
    mkdir -p -- "$(dirname -- "$2")" && cp -pP -- "$1" "$2.boxwright-guard" && mv -fT -- "$2.boxwright-guard" "$2"
}}
# What earlier changes left; not what another run may just be sending.
clear() {{ find . -mindepth 1 -maxdepth 1 ! -name lock ! -name 'prepared-*' -exec rm -rf {{}} +; }}
put_back() {{
    wrong=
    while read -r number path; do
        if [ -e "former.$number" ] || [ -L "former.$number" ]; then
            place "former.$number" "$path" || wrong=yes
        else
            rm -f -- "$path" || wrong=yes
        fi
    done <files
    sync
    [ -z "$wrong" ]
}}
waits() {{ [ -e armed ]; }}
undo() {{
    put_back
    files=$?
    # What failed stays armed: the next boot, or the next run, tries again.
    sh ./restore 9>&- && [ "$files" = 0 ] && mv -f armed undone
}}
case $verb in
put)
    enter
    lock
    ! waits || fail "another change of $name waits for its confirmation"
    clear
    mv -f "prepared-$token"/* . && rmdir "prepared-$token" || fail "the change of $name arrived incomplete"
    while read -r number path; do
        if [ -e "$path" ] || [ -L "$path" ]; then cp -pP -- "$path" "former.$number" || exit 1; fi
    done <files
    sh ./save 9>&- || fail "the former state of $name could not be saved; nothing was changed"
    printf '%s\\n' "$token" >armed.new && sync && mv armed.new armed && sync || exit 1
    systemd-run --quiet --collect --unit="$unit" --description="Undoes the change of $name unless it is confirmed" \\
        --on-active="$seconds" --timer-property=AccuracySec=200ms "$0" undo "$name" "$token" 9>&- ||
        {{ rm -f armed; fail "no timer could be armed that would undo the change of $name; nothing was changed"; }}
    wrong=
    while read -r number path; do
        if [ -e "new.$number" ]; then place "new.$number" "$path" || wrong=yes
        else rm -f -- "$path" || wrong=yes
        fi
    done <files
    [ -z "$wrong" ] && sh ./force 9>&- && exit
    undo && systemctl stop "$unit.timer" && fail "the change of $name was taken back at once"
    fail "the change of $name is taken back within $seconds s"
    ;;
confirm)
    enter
    lock
    waits && [ "$(cat armed)" = "$token" ] || fail "the change of $name was taken back already"
    rm -f armed && sync && systemctl stop "$unit.timer" 2>/dev/null
    clear
    exit 0
    ;;
undo)
    enter
    lock
    waits && [ "$(cat armed)" = "$token" ] || exit 0
    undo || exit
    echo "the change of $name was not confirmed in time: it was taken back"
    ;;
wait)
    cd "$folder" 2>/dev/null || exit 0
    while waits; do
        lock
        if waits && ! systemctl is-active --quiet "$unit.timer" && ! systemctl is-active --quiet "$unit.service"; then
            undo || fail "a change of $name that was not confirmed could not be taken back: see $folder"
        fi
        exec 9>&-
        sleep 0.2
    done
    ;;
boot)
    for armed in {FOLDER}/*/armed; do
        [ -e "$armed" ] && cd "$(dirname "$armed")" || continue
        name=$(basename "$PWD") after=$(cat after 2>/dev/null)
        put_back || continue
        if [ -z "$after" ]; then
            mv -f armed undone && echo "the change of $name was not confirmed: it was taken back"
        else
            systemd-run --quiet --collect --no-block --unit="boxwright-guard-$name" --property=After="$after" \\
                --description="Undoes the change of $name, which was not confirmed" "$0" undo "$name" "$(cat armed)"
        fi
    done
    ;;
*)
    fail "unknown: $verb"
    ;;
esac
"""

BOOT_UNIT_TEXT = f"""\
# Written by boxwright: changes made here are overwritten by the next run.
[Unit]
Description=Take back changes that were not confirmed before the machine went down
DefaultDependencies=no
RequiresMountsFor={FOLDER} {PROGRAM_PATH} /etc
After=local-fs.target
# Before anything can read what is put back: the packet filter, sshd, whatever else is started.
Before=sysinit.target network-pre.target nftables.service boxwright-firewall.service shutdown.target
Conflicts=shutdown.target
ConditionPathExistsGlob={FOLDER}/*/armed

[Service]
Type=oneshot
ExecStart={PROGRAM_PATH} boot

[Install]
WantedBy=sysinit.target
"""


@dataclass(frozen=True)
class NewFile:
    """What a file shall hold; `validate` is a shell command that must accept it first, with `{path}` for its path."""

    text: str
    mode: int = 0o644
    owner: str = "root:root"
    validate: str | None = None


@dataclass(frozen=True)
class Change:
    """A change that could cut the operator off.

    `name` is that of what is changed (`firewall`, `sshd`); one change of a name is under way at a time. `files` maps
    absolute paths to what they shall hold, None for a file that shall go. The others are sh scripts that root runs on
    the box in the change's own folder, which keeps what they write there until the end: `save` notes what of the former
    state no file holds, `force` puts in force what the files say now (when it fails the change is undone at once), and
    `restore`, run when the former files are back, puts the former state in force. After a reboot the files are put
    back before anything reads them; where a program keeps the state itself, `after` is its unit (`tailscaled.service`),
    and `restore`, which may have to wait until the program answers, is run after that has started.
    """

    name: str
    files: Mapping[str, NewFile | None]
    force: str
    restore: str
    save: str = ":"
    after: str = ""

    def __post_init__(self) -> None:
        for path in self.files:
            if not path.startswith("/") or any(character.isspace() for character in path):
                raise ValueError(f"not an absolute path without spaces: {path!r}")
