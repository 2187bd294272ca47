"""Redis or Valkey for counters and limits of services of the box, on loopback.

Valkey where the distribution has it, else Redis; on a Mac Homebrew's Valkey. It is an instance of boxwright's own, with
settings, an account, data and a unit of its own, so that a Redis that was there before goes on as it was. It keeps what
it has: every second what changed is on the disk, and when its memory is full it refuses rather than to forget.
"""
