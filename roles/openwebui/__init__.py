"""Open WebUI, the chat page: in a container or without one, reached by the gateway and by nobody else.

The administrator is made from a generated password at the first start and sign-up is closed. The environment wins over
what was changed in the page's own settings, so that a box is what its inventory says. It asks the engine through the
gateway's internal listener, with a key of its own, so that the engine never leaves loopback and has one door.

In a container it is a Compose project with a network that leads nowhere but to the box. Without one (`openwebui_run:
native`, as on every Mac) it is a service with an account of its own on loopback, from a virtual environment whose
packages are pinned by hash. That has no PyTorch: documents are embedded by a model of the box that is for it.
"""
