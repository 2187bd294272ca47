"""MLX's server as a sandboxed system service on loopback, with one model in the form of a folder.

The server is mlx-lm's own, from hash-pinned wheels in a virtual environment of its own. On a Mac MLX computes by Metal,
on Linux on the processor. The server is made for one person's machine, so it runs here in a program that takes from it
what strangers must not have: the choice of any other model, adapter or draft model of the machine, and images that it
would fetch from any address for them. It has no CORS headers of its own, and knows the model by its public name.
"""
