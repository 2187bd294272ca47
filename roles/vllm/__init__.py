"""vLLM as a sandboxed system service on loopback, with one model in the form of a folder.

vLLM and what it needs differ with the graphics card, so they are installed from a requirements file with hashes that
the inventory gives. vLLM asks for a key below /v1 alone; administration and further paths for inference are open to
whoever reaches its port. So it listens on loopback, the gateway hands on none of those paths, and only the gateway has
the key, which is in files that others cannot read and in no command line.
"""
