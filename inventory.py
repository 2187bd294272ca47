"""What pyinfra is given: the hosts of inventory/hosts.yml, else of the lab, with their validated settings."""

from boxwright.inventory import pyinfra_groups

globals().update(pyinfra_groups())
