"""The operating system below everything else: packages, clock, updates, sleep and the accounts of people.

Accounts are added and kept as declared; one that is no longer declared stays, since its files may matter to somebody.
Whether the system is supported at all is decided before this role, by the preflight, which also compares the clock of
the box with that of the machine that runs boxwright; a difference of a minute or more is reported.

The machine does not sleep, and its clock is kept by the time service that it has, else by systemd-timesyncd. Which
updates it installs by itself is left to the system unless it is declared; drivers and container engines are held back
from such updates in any case, and `apt upgrade` by hand still updates them.
"""
