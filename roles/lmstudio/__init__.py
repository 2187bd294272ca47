"""LM Studio without its windows (llmster): GGUF models behind an OpenAI-compatible API on loopback.

The publisher's bundle, pinned by version and checksum, is installed for an account of its own. A program of ours
stays in the foreground in place of LM Studio's daemon: it starts daemon and server, loads each declared model once, and
ends when one of them is gone, so that systemd starts them again. Adding a model restarts nothing.
"""
