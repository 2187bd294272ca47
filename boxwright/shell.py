"""Commands for a target: constant sh scripts whose values are handed over as arguments, never pasted into the text."""

from textwrap import dedent

from pyinfra.api import QuoteString, StringCommand

# The same words from every tool whatever the language of the target; the administration tools are found also in the
# session of an ordinary user.
_PRELUDE = 'export LC_ALL=C PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"\n'

# What a line of a command's output begins with that is worth showing only until the next one (boxwright/runner.py).
PROGRESS = "progress: "

# For scripts with long steps: `arriving TOTAL COMMAND...` in the background says every two seconds how far it is, until
# it is ended or its script is over. COMMAND prints how many bytes there are by now; TOTAL is "" where it is not known.
ARRIVING = f"""
arriving() {{
    total=$1 before=
    shift
    # In a unit nobody watches, and the journal keeps every line.
    [ -z "${{INVOCATION_ID-}}" ] || return 0
    # What sleeps on after the end of this holds neither output nor lock.
    while sleep 2 >/dev/null 2>&1 9<&- && kill -0 $$ 2>/dev/null; do
        now=$("$@")
        printf '{PROGRESS}%s' "$((now / 1048576))${{total:+ of $((total / 1048576))}} MiB" >&2
        [ -z "$before" ] || printf ', %s MiB/s' "$(((now - before) / 2097152))" >&2
        echo >&2
        before=$now
    done
}}
"""


def script(text: str, *arguments: str | int, stdin: str | None = None) -> StringCommand:
    """A command that runs `text` with sh on the target; the script sees `arguments` as $1, $2, ...

    `stdin` is sent over the connection, so it stands in no process's arguments and pyinfra prints none of it. Note
    that pyinfra ends it with a line break when it has none.
    """
    bits = ["sh", "-c", QuoteString(_PRELUDE + dedent(text).strip()), "boxwright"]
    bits += [QuoteString(str(argument)) for argument in arguments]
    if stdin is None:
        return StringCommand(*bits)
    return StringCommand(*bits, _stdin=[stdin])


def refuse(message: str) -> StringCommand:
    """A command that fails with `message`: the step fails on this host alone, and nothing is changed."""
    return script('printf "%s\\n" "$1" >&2; exit 1', message)
