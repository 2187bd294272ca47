"""The end of every script that starts or reloads a service: is it up, does it answer, and what if not."""

# It is put behind the variables $verb (start, restart, reload ...), $unit (the service as a person calls it) and $files
# (paths without spaces), "$@" (the command that must succeed then, or nothing), and these functions:
#   begin VERB       does it, and returns when the service is ready or has failed; VERB may be `restart`
#   tell             prints what the service said since
#   beside FILE      prints the path to which `.good`, `.bad` and `.asked` are added
#   taken_back FILE  is called when the last good content is back in FILE
ROLL_BACK = """
answers() {
    [ "$#" -gt 0 ] || return 0
    said=$("$@" 2>&1) && return
    echo "$unit runs, but does not answer: $(printf '%s' "$said" | tail -n 1)" >&2
    return 1
}
# The command that last succeeded: the new one may ask at an address that only the new configuration has.
answers_as_before() {
    [ -e "$asked" ] || return 0
    set --
    while IFS= read -r word; do set -- "$@" "$word"; done <"$asked"
    answers "$@"
}
keep() {
    for file in $files; do cp -p -- "$file" "$(beside "$file").good" || exit 1; done
    [ -z "$asked" ] || [ "$#" = 0 ] || printf '%s\\n' "$@" >"$asked" || exit 1
}
# True when something was taken back; what was there is left beside it.
take_back() {
    back=''
    for file in $files; do
        kept=$(beside "$file")
        [ -e "$kept.good" ] && ! cmp -s -- "$file" "$kept.good" || continue
        cp -p -- "$file" "$kept.bad" && cp -p -- "$kept.good" "$file" && back=yes && taken_back "$file"
    done
    [ -n "$back" ]
}
asked=
for file in $files; do asked=$(beside "$file").asked; done
if begin "$verb" && answers "$@"; then
    keep "$@"
    exit 0
fi
if [ "$verb" = reload ]; then
    tell
    if take_back; then
        # The process lives, and so does what is under way in it.
        if begin reload; then
            answers_as_before
            echo "$unit goes on with its last good configuration; the new one was taken back" >&2
            exit 1
        fi
        for file in $files; do
            kept=$(beside "$file")
            [ ! -e "$kept.bad" ] || mv -- "$kept.bad" "$file"
        done
    fi
    # What it runs with now may have taken away the very way by which it is told to reload.
    echo "$unit could not be reloaded, it is restarted" >&2
    if begin restart && answers "$@"; then
        keep "$@"
        exit 0
    fi
fi
tell
if take_back; then
    if begin restart && answers_as_before; then
        echo "$unit runs again with its last good configuration; the new one was taken back" >&2
    else
        echo "$unit does not work with its last good configuration either" >&2
    fi
fi
exit 1
"""
