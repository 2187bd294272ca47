"""The llama.cpp server as a sandboxed system service on loopback, with one GGUF model; a second one for embeddings.

The server is llama.cpp's own, from the `xllamacpp` wheel, in a virtual environment of its own. `systemctl start`
returns when the model answers.
"""
