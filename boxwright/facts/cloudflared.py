"""Where a running cloudflared hands requests to."""

import json
from collections.abc import Sequence

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script


def services_of(text: str) -> tuple[str, ...]:
    """The services of all rules in what cloudflared answers at `/config`, in order. Raises ValueError for other text.

    The form is that of cloudflared 2026.8.2 (orchestration/orchestrator.go): `{"version": n, "config": {"ingress":
    [{"hostname": .., "service": ..}]}}`; the version is -1 until rules have come from Cloudflare.
    """
    try:
        rules = json.loads(text)["config"]["ingress"]
        return tuple(str(rule["service"]) for rule in rules)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the configuration of cloudflared: {text[:80]!r}") from error


class Ingress(Fact[tuple[str, ...]]):
    """The services to which the cloudflared with metrics on loopback's `port` hands requests; empty when none runs."""

    def command(self, port: int) -> StringCommand:
        return script(
            """
            url=http://127.0.0.1:$1/config
            said=$(curl --silent --fail --noproxy '*' --max-time 10 "$url"); status=$?
            case $status in
                0) printf '%s\\n' "$said" | tr -d '\\n' ;;
                7) echo none ;;
                *) echo "the rules of the tunnel cannot be read at $url: curl ended with $status" >&2; exit 1 ;;
            esac
            """,
            port,
        )

    def process(self, output: Sequence[str]) -> tuple[str, ...]:
        text = "".join(output)
        if text == "none":
            return ()
        try:
            return services_of(text)
        except ValueError as error:
            raise FactProcessError(str(error)) from error
