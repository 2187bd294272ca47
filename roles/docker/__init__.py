"""Docker Engine with the compose plugin, from the distribution or from a repository that the box already has.

Its settings are merged into /etc/docker/daemon.json, so that what somebody else put there stays. Containers' logs are
rotated, and containers go on running while the engine restarts.
"""
