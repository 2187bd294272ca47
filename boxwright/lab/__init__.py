"""The lab: throw-away boxes on this machine that are reached like any other machine, over SSH.

A box is a Debian 13 container that runs systemd, sshd and its own Docker Engine. The lab is an air-gapped site: what
the boxes fetch comes from a mirror (files, wheels, container images) that the lab fills from package registries.
Nothing outside this package knows that a box is a container.
"""
