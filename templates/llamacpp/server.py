"""Runs llama.cpp's own HTTP server in the foreground, as the JSON file named on the command line says, until SIGTERM.

Written for xllamacpp 2026.10 and 2026.9: its `Server` serves from threads of its own, so that this program only waits.
"""

import json
import signal
import sys
from pathlib import Path

from check import header_value  # beside this file
from xllamacpp import CommonParams, Server, llama_pooling_type

# Blocked before the server makes its threads, which inherit it: only `sigwait` below takes these signals.
STOP = {signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, STOP)

settings = json.loads(Path(sys.argv[1]).read_text())
params = CommonParams()
params.model.path = settings["model"]
params.model_alias = {settings["alias"]}
if hasattr(params, "hostnames"):
    params.hostnames = ["127.0.0.1"]
else:  # xllamacpp 2026.9
    params.hostname = "127.0.0.1"
params.port = settings["port"]
params.n_ctx = settings["context"] * settings["parallel"]  # llama.cpp divides the whole among the slots
params.n_parallel = settings["parallel"]
params.n_gpu_layers = settings["gpu_layers"]
params.embedding = settings["embedding"]
if settings["embedding"] and header_value(settings["model"], ".pooling_type") is None:
    # Models made for it say how the vectors of all tokens become one. Of others it is their mean.
    params.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
params.cors_origins = ""  # browsers on other sites are the gateway's affair
params.endpoint_metrics = True
params.offline = True
params.ui = False

try:
    server = Server(params)
except RuntimeError:
    # Its own log comes from another thread, which may be in the middle of a line.
    sys.exit(
        f"\nllama.cpp could not serve {settings['model']}: what it said is above. An architecture that it does not "
        "know wants a newer version of it: `llamacpp_requirements`"
    )
signal.sigwait(STOP)
del server
