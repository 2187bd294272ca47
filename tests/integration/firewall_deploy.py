"""The roles that test_firewall.py asks for alone, with less time for the operator to come back."""

from pyinfra import host as target

from boxwright import preflight
from boxwright.preflight import Need
from roles.docker import tasks as docker
from roles.firewall import tasks as firewall
from roles.host import tasks as host
from roles.sshd import tasks as sshd

DEADLINE = 8

box = target.data.box
roles = target.data.roles
machine = preflight.check(box, Need())
if "host" in roles:
    host.apply(box, machine)
if "docker" in roles:
    docker.apply(box, machine)
if "sshd" in roles:
    sshd.apply(box, DEADLINE)
if "firewall" in roles:
    firewall.apply(box, DEADLINE)
