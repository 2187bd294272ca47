"""Brings the gateway's tokens to a box: `boxwright token` runs it. Nothing is restarted, no stream is cut."""

from pyinfra import host as target

from boxwright import preflight
from boxwright.preflight import Need
from roles.gateway import tasks as gateway

box = target.data.box
preflight.check(box, Need())

gateway.admit(box)
