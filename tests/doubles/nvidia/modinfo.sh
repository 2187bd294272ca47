#!/bin/sh
# modinfo -k KERNEL -F version nvidia
[ "$1 $3 $4" = "-k -F version" ] || { echo "the double of modinfo does not know: $*" >&2; exit 1; }
cat "/lib/modules/$2/kernel/double/$5.version" 2>/dev/null || {
    echo "modinfo: ERROR: Module $5 not found." >&2
    exit 1
}
