"""Hardening of SSH: keys instead of passwords, and root not by password. Off unless it is asked for.

A file of its own in /etc/ssh/sshd_config.d, read before all others there, so that its values win; everything else of
sshd's configuration stays the administrator's. It is refused where it would shut its operator out: who signs in by a
password, or has no key on the box. And it undoes itself unless a new connection confirms it.
"""
