"""The llama.cpp server as a sandboxed system service on loopback, with one GGUF model; a second one for embeddings.

The server is llama.cpp's own, from the `xllamacpp` wheel, in a virtual environment of its own. `systemctl start`
returns when the model answers. On a Mac it computes by Metal, as a service of launchd with an account of its own; the
sandbox has no counterpart there.
"""
