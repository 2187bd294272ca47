#!/bin/sh
# Copies databases of PostgreSQL. Written by boxwright.
# Arguments: folder with pg_dump, folder of the socket, port, folder of the copies, how many are kept, then databases.
# A copy that was broken off is never taken for one: it gets its name when it is whole.
umask 077
programs=$1 socket=$2 port=$3 folder=$4 keep=$5
shift 5
failed=0
for name; do
    new=$folder/.$name.new
    if "$programs/pg_dump" --no-password -h "$socket" -p "$port" --format=custom --file="$new" -- "$name" &&
        mv -f -- "$new" "$folder/$name-$(date -u +%Y%m%d-%H%M%S).dump"; then
        # Names sort by their time.
        count=0
        for old in $(ls -1 "$folder" | grep -E "^$name-[0-9]{8}-[0-9]{6}[.]dump$" | sort -r); do
            count=$((count + 1))
            [ "$count" -le "$keep" ] || rm -f -- "$folder/$old"
        done
    else
        echo "$name was not copied" >&2
        failed=1
    fi
done
exit "$failed"
