"""Where Caddy keeps what on a box, and as whom it runs: the ways of each system."""

from collections.abc import Mapping
from dataclasses import dataclass

from boxwright.settings import System


@dataclass(frozen=True)
class Places:
    """`state` holds certificates and their authority, `logs` the access log, `runtime` the socket of the administration
    interface, which is made anew at each boot.
    """

    user: str
    state: str
    logs: str
    runtime: str

    @property
    def access_log(self) -> str:
        """The access log."""
        return f"{self.logs}/access.log"

    @property
    def socket(self) -> str:
        """Where the administration interface listens, in Caddy's words."""
        return f"unix/{self.runtime}/admin.sock"

    @property
    def authority(self) -> str:
        """The root certificate of Caddy's own authority; there as soon as Caddy runs."""
        return f"{self.state}/pki/authorities/local/root.crt"


PLACES: Mapping[System, Places] = {
    "linux": Places(user="caddy", state="/var/lib/caddy", logs="/var/log/caddy", runtime="/run/caddy"),
    "darwin": Places(
        user="_caddy",
        state="/var/lib/boxwright/caddy",
        logs="/var/log/caddy",
        runtime="/var/run/caddy",
    ),
}
