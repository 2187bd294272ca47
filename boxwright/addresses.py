"""What is known of network addresses without a look at a box."""

from ipaddress import ip_address, ip_network

# The networks from which Tailscale gives addresses to machines: shared address space (RFC 6598), and an IPv6 prefix of
# its own (tailscale.com/kb/1015 and kb/1033).
TAILNET = (ip_network("100.64.0.0/10"), ip_network("fd7a:115c:a1e0::/48"))


def is_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address, written without brackets and without a port, and not a name."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
