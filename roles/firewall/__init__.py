"""The firewall: nothing comes in but SSH, the gateway, and what is declared.

nftables, in one table of its own, `inet boxwright`; tables of others stay as they are, and what they refuse stays
refused. Ports that Docker publishes are covered by the same rules, and IPv6 as IPv4. What the box and its containers
ask for themselves is not filtered.

SSH stays open on each port on which sshd listens. Whatever is changed undoes itself on the box unless a new connection
confirms it. docs/firewall.md says what it opens, how it undoes itself and how to get back in.
"""
