"""Serves one model with llama.cpp's own HTTP server on loopback, until the daemon that started it is gone.

Arguments: JSON with model, alias, port, context, parallel, layers, embedding. The wheel is in the folder BACKEND.
"""

from __future__ import annotations

import json
import os
import sys
import threading

sys.path.insert(0, os.environ["BACKEND"])

settings = json.loads(sys.argv[1])


def outlive_nobody() -> None:
    """Ends when the other end of standard input is closed: the daemon has ended, however."""
    sys.stdin.buffer.read()
    os._exit(0)


threading.Thread(target=outlive_nobody, daemon=True).start()

from xllamacpp import CommonParams, Server, llama_pooling_type  # noqa: E402

params = CommonParams()
params.model.path = settings["model"]
params.model_alias = {settings["alias"]}
params.hostnames = ["127.0.0.1"]
params.port = settings["port"]
params.n_ctx = settings["context"] * settings["parallel"]
params.n_parallel = settings["parallel"]
params.n_gpu_layers = settings["layers"]
params.embedding = settings["embedding"]
if settings["embedding"]:
    params.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
params.offline = True
params.ui = False
server = Server(params)
threading.Event().wait()
