"""Qdrant, in which vectors are looked up, on loopback and with a key.

Its publisher's static program, pinned by checksum, as a service with an account, settings and data of its own: no
container, no gRPC, no web page, no telemetry. The API service keeps the passages there that requests may ask for.
"""
