"""Ollama as a sandboxed system service on loopback, with the declared models in memory before it counts as started.

The program is the publisher's release. Models are GGUF files, or names in a registry of Ollama; they are put into its
store by a process of its own, so that adding one restarts nothing, and the process that serves cannot change the store.
"""
