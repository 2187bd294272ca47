"""What the preflight asks a machine that runs Linux."""

from boxwright.graphics import CARDS

ASK = (
    """
grep -E '^(ID|VERSION_ID|VERSION_CODENAME)=' /etc/os-release 2>/dev/null
if [ -d /run/systemd/system ]; then echo systemd=yes; fi
if systemd-detect-virt --quiet --container 2>/dev/null; then echo container=yes; fi
for unit in chrony chronyd ntpsec ntp openntpd systemd-timesyncd; do
    if systemctl --quiet is-enabled "$unit.service" 2>/dev/null; then echo "time_service=$unit"; break; fi
done
memory=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo 2>/dev/null)
# A container's own limit counts where it is below the memory of the machine.
for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
    limit=$(cat "$file" 2>/dev/null)
    case $limit in
        "" | *[!0-9]*) ;;
        *) if [ "${#limit}" -lt 16 ] && [ $((limit / 1024)) -lt "${memory:-0}" ]; then memory=$((limit / 1024)); fi ;;
    esac
done
echo "memory=$memory"
folder=/var/lib
if [ -d /var/lib/boxwright ]; then folder=/var/lib/boxwright; fi
echo "disk=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')"
if command -v nvidia-smi >/dev/null; then
    echo "graphics=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null |
        awk '/^[0-9]+$/ { sum += $1 } END { print sum + 0 }')"
fi
ss -Hltnp 2>/dev/null | awk '{
    parts = split($4, address, ":")
    name = match($0, /users:\\(\\("[^"]*"/) ? substr($0, RSTART + 9, RLENGTH - 10) : ""
    print "listen=" address[parts] " " name
}'
"""
    + CARDS
)
