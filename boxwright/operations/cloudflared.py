"""A tunnel of Cloudflare: connected, and leading nowhere but where it shall."""

from collections.abc import Sequence

from pyinfra import host

from boxwright.facts.cloudflared import Ingress
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script

# $1 port, $2 how often to ask, then the services that are allowed. Rules that are kept at Cloudflare arrive a moment
# after the connection stands (version -1 until then); when none come, what is on the box holds.
_LEADS = """
port=$1 tries=$2
shift 2
for try in $(seq "$tries"); do
    url=http://127.0.0.1:$port/config
    if ! said=$(curl --silent --show-error --fail --noproxy '*' --max-time 10 "$url" 2>&1); then
        echo "the rules of the tunnel cannot be read: $said" >&2
        exit 1
    fi
    case $said in '{"version":-1,'*) sleep 0.25 ;; *) break ;; esac
done
others=$(printf '%s' "$said" | grep -o '"service":"[^"]*"' | cut -d '"' -f 4 | sort -u |
    while IFS= read -r service; do
        for allowed; do [ "$service" != "$allowed" ] || continue 2; done
        printf ' %s' "$service"
    done)
[ -n "$others" ] || exit 0
echo "the tunnel's rules lead past the gateway, to:$others" >&2
echo "change them at Cloudflare (Zero Trust, Networks, Tunnels): each to $1, the last to http_status:404" >&2
exit 1
"""


def ready(port: int) -> tuple[str, ...]:
    """A command on the box that succeeds when the cloudflared with metrics on loopback's `port` is connected."""
    url = f"http://127.0.0.1:{port}/ready"
    return ("/usr/bin/curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "10", url)


@operation()
def leads_to(port: int, services: Sequence[str], elsewhere: bool = False) -> Commands:
    """The rules of the running tunnel lead to `services` (the first is named in the message) and nowhere else.

    `elsewhere` says that they are kept at Cloudflare, and come from there when the tunnel has started. Such rules
    cannot be changed from here: the step fails when one of them leads past the gateway. It changes nothing, and the
    tunnel runs on: somebody may be at work on the box through it.
    """
    found = host.get_fact(Ingress, port=port)
    if found is None:
        yield refuse(f"the rules of the tunnel could not be read at http://127.0.0.1:{port}/config")
    elif not found or set(found) - set(services):
        # Where none ran before this run, one does now. What is wrong is asked again: it may have been put right.
        yield script(_LEADS, port, 40 if elsewhere else 1, *services)
