"""Open WebUI, the chat page, as a Compose project: published on loopback for the gateway, nowhere else.

The administrator is made from a generated password at the first start and sign-up is closed. The environment wins over
what was changed in the page's own settings, so that a box is what its inventory says. It asks the engine through the
gateway's internal listener, so that the engine never leaves loopback.
"""
