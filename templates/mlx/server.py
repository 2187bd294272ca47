"""Runs mlx_lm's own HTTP server in the foreground for one model, as the JSON file named on the command line says.

With `--check` after the file's name it only looks whether that model can be loaded at all, and loads nothing.

Written for mlx-lm 0.32.2, whose server is meant for one person's machine: a client may name any folder of the machine,
or any model of a hub, as the model, as an adapter or as a draft model; it has the server fetch images from any address;
and it sends CORS headers of its own. The server is started by its own command line here, with three of its parts
replaced so that it serves the declared model under its public name and does nothing else for a client.

It listens on 127.0.0.1 as soon as the model is loaded. SIGTERM ends it, and so does the end of the thread that
computes: mlx_lm would go on without it and answer no more.
"""

import inspect
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

settings = json.loads(Path(sys.argv[1]).read_text())
NAME, CONTEXT, PORT = settings["name"], settings["context"], settings["port"]


def examine(folder):
    """Ends the process with what is wrong in the model's folder: what is missing, and weights that end too early."""
    try:
        names = {path.name for path in folder.iterdir()}
        for name in ("config.json", "tokenizer_config.json"):
            if name not in names:
                sys.exit(f"{folder} is no model for MLX: it has no {name}")
            json.loads((folder / name).read_text())
        weights = sorted(folder.glob("model*.safetensors"))
        if not weights:
            sys.exit(f"{folder} is no model for MLX: it has no model*.safetensors")
        if "model.safetensors.index.json" in names:
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            for name in sorted(set(index["weight_map"].values()) - names):
                sys.exit(f"{folder} is incomplete: {name} is missing")
        for path in weights:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            ends = [value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"]
            if path.stat().st_size != 8 + length + max(ends, default=0):
                sys.exit(f"{path} is incomplete, or is no safetensors file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        sys.exit(f"{folder} is no model for MLX: {error}")


examine(Path(settings["model"]))
if "--check" in sys.argv:
    sys.exit()

# Nothing is asked of a hub, whatever the libraries would like to know.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

from mlx_lm import server as upstream  # noqa: E402
from transformers import PreTrainedTokenizerBase  # noqa: E402

# What a client may set beside these is about the answer alone. Upstream reads the file that an adapter or draft model
# names.
REFUSED = ("adapters", "draft_model", "num_draft_tokens")
# Values for the model's own template are welcome, arguments of the function that fills it are not: another template
# could compute for as long as it likes, and a request could be padded to any length.
REFUSED_FOR_TEMPLATES = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}


loaded, stopping = threading.Event(), threading.Event()


class OneModel(upstream.ModelProvider):
    """Loads the declared model whatever is asked for; what else is asked for was refused before."""

    def load_default(self):
        """Called by the thread that computes, before its first request."""
        super().load_default()
        loaded.set()

    def load(self, model_path, adapter_path=None, draft_model_path=None):
        """The model and its tokenizer."""
        return super().load("default_model", None, "default_model")


class Generator(upstream.ResponseGenerator):
    """Keeps every request within the model's declared context and vocabulary.

    Upstream has no limit for the former, and a token beyond the latter ends the process (a wrong access to memory).
    """

    def _tokenize(self, tokenizer, request, args):
        known = len(tokenizer.get_vocab())
        if any(not 0 <= token < known for token in args.logits.logit_bias or ()):
            raise ValueError(f"`logit_bias` names a token that this model does not have: they go from 0 to {known - 1}")
        if args.sampling.top_k >= known:
            args.sampling.top_k = 0  # all of them
        made = super()._tokenize(tokenizer, request, args)
        tokens = len(made[0])
        if not 0 < tokens < CONTEXT:
            raise ValueError(f"the prompt has {tokens} tokens; from 1 to {CONTEXT - 1} fit into this model's context")
        args.max_tokens = min(args.max_tokens, CONTEXT - tokens)
        return made


class Refusal(Exception):
    """A request that is not handed on to mlx_lm: status, message, and OpenAI's code for it."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


def _no_number(text):
    """JSON has no NaN and Infinity, Python's reader does."""
    raise ValueError(text)


def checked(body):
    """The request as mlx_lm gets it. Raises Refusal."""
    try:
        asked = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not JSON") from None
    if not isinstance(asked, dict):
        raise Refusal(400, "the body is not a JSON object")
    # Many clients send null for what they leave to the server; upstream takes it for a value.
    asked = {key: value for key, value in asked.items() if value is not None}
    if asked.setdefault("model", NAME) != NAME:
        raise Refusal(404, f"The model `{asked['model']}` does not exist; this server has `{NAME}`.", "model_not_found")
    for key in REFUSED:
        if key in asked:
            raise Refusal(400, f"`{key}` cannot be chosen by a request")
    stop = asked.get("stop", [])
    if not all(isinstance(word, str) and word for word in (stop if isinstance(stop, list) else [stop])):
        raise Refusal(400, "`stop` is neither a text nor a list of texts")
    tools = asked.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Refusal(400, "`tools` is not a list of objects")
    if not isinstance(asked.get("seed", 0), int) or not 0 <= asked.get("seed", 0) < 2**63:
        raise Refusal(400, "`seed` is not a number from 0 to 2^63 - 1")
    for key in ("repetition_context_size", "presence_context_size", "frequency_context_size"):
        if isinstance(asked.get(key), int):
            asked[key] = min(asked[key], CONTEXT)
    arguments = asked.get("chat_template_kwargs", {})
    if not isinstance(arguments, dict) or any(key in arguments for key in REFUSED_FOR_TEMPLATES):
        raise Refusal(400, "`chat_template_kwargs` must be an object with values of the model's own template")
    if not isinstance(asked.get("stream_options", {}), dict):
        raise Refusal(400, "`stream_options` is not an object")
    if "stream_options" in asked:
        asked["stream_options"].setdefault("include_usage", False)
    messages = asked.get("messages", [])
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refusal(400, "`messages` is not a list of objects")
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
            raise Refusal(400, "this server reads text; a message has content of another type")
        if not all(isinstance(part.get("text"), str) for part in parts):
            raise Refusal(400, "the text of a message is not a text")
    if "messages" not in asked and not isinstance(asked.get("prompt"), str):
        raise Refusal(400, "`prompt` is not a text")
    return asked


class Numbers:
    """What Prometheus reads at /metrics, in its text format."""

    def __init__(self):
        self.lock = threading.Lock()
        self.working, self.seconds, self.statuses = 0, 0.0, Counter()

    @contextmanager
    def question(self, handler):
        """Counts a question from here on, and the status that `handler` has answered with in the end."""
        began = time.monotonic()
        with self.lock:
            self.working += 1
        try:
            yield
        finally:
            with self.lock:
                self.working -= 1
                self.seconds += time.monotonic() - began
                self.statuses[handler.status] += 1

    def text(self):
        with self.lock:
            lines = ["# HELP mlx_requests_total Questions that were answered.", "# TYPE mlx_requests_total counter"]
            lines += [
                'mlx_requests_total{status="' + str(code) + f'"}} {n}' for code, n in sorted(self.statuses.items())
            ]
            lines += [
                "# HELP mlx_request_seconds_total Time that they took.",
                "# TYPE mlx_request_seconds_total counter",
            ]
            lines += [f"mlx_request_seconds_total {self.seconds:.3f}"]
            lines += ["# HELP mlx_requests_in_flight Questions that wait for their answer, or for its end."]
            lines += ["# TYPE mlx_requests_in_flight gauge", f"mlx_requests_in_flight {self.working}"]
        return "\n".join(lines) + "\n"


NUMBERS = Numbers()


class Handler(upstream.APIHandler):
    """One connection."""

    # Of the last answer; 0 where the client left before there was one.
    status = 0

    def send_response(self, code, message=None):
        self.status = int(code)
        super().send_response(code, message)

    def _set_cors_headers(self):
        """Browsers on other sites are the gateway's affair."""

    def _set_completion_headers(self, status_code=200):
        # 404 is upstream's word for everything that went wrong with a request after its paths were compared.
        if status_code == HTTPStatus.NOT_FOUND:
            status_code = 400 if self.response_generator.generation_available() else 503
        super()._set_completion_headers(status_code)

    def log_message(self, format, *args):
        """The gateway has the access log."""

    def say(self, status, body, kind="application/json"):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, message, code=None):
        """An error in OpenAI's form."""
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.say(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})

    def do_GET(self):
        model = {"id": NAME, "object": "model", "created": self.created, "owned_by": "mlx"}
        path = self.path.partition("?")[0]
        if path == "/health":
            works = self.response_generator.is_healthy
            self.say(200 if works else 503, {"status": "ok" if works else "unavailable"})
        elif path == "/metrics":
            self.say(200, NUMBERS.text(), "text/plain; version=0.0.4")
        elif path == "/v1/models":
            self.say(200, {"object": "list", "data": [model]})
        elif path == f"/v1/models/{NAME}":
            self.say(200, model)
        elif path.startswith("/v1/models/"):
            self.refuse(404, f"there is no such model; this server has `{NAME}`", "model_not_found")
        else:
            self.refuse(404, "there is nothing at this path")

    do_HEAD = do_GET

    def do_OPTIONS(self):
        self.refuse(405, "a preflight is the gateway's affair")

    def do_POST(self):
        self.status = 0
        with NUMBERS.question(self):
            self.answer()

    def answer(self):
        if self.path not in ("/v1/chat/completions", "/v1/completions"):
            self.refuse(404, "there is nothing at this path")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.refuse(411, "Content-Length is missing")
            return
        try:
            body = json.dumps(checked(self.rfile.read(int(length)))).encode()
        except Refusal as refusal:
            self.refuse(refusal.status, str(refusal), refusal.code)
            return
        self.headers.replace_header("Content-Length", str(len(body)))
        self.rfile = BytesIO(body)
        super().do_POST()


def serve(host, port, generator, **_):
    """In place of upstream's function of this purpose: returns when the server is to end."""
    while not loaded.wait(0.2):
        if stopping.is_set() or not generator.generation_available():
            return
    made = ThreadingHTTPServer((host, port), partial(Handler, generator))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    while generator.generation_available() and not stopping.wait(1):
        pass
    made.shutdown()


def main():
    """Upstream's own `main`, which reads these arguments."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    generators = []

    def generator(*arguments):
        generators.append(Generator(*arguments))
        return generators[0]

    upstream.ModelProvider, upstream.ResponseGenerator, upstream._run_http_server = OneModel, generator, serve
    sys.argv = [
        "mlx_lm.server",
        *("--model", settings["model"]),
        *("--host", "127.0.0.1", "--port", str(PORT)),
        *("--log-level", "WARNING", "--allowed-origins", ""),
        *("--max-tokens", str(settings["max_tokens"] or CONTEXT)),
        *("--decode-concurrency", str(settings["parallel"])),
        *("--prompt-concurrency", str(settings["parallel"])),
        *("--prompt-cache-bytes", str(settings["prompt_cache"])),
    ]
    try:
        upstream.main()
    finally:
        for one in generators:
            one.stop_and_join()
        if not stopping.is_set():
            logging.error("the model could not be loaded, or its thread ended; what it said is above")
        # MLX's own threads would otherwise abort the process while Python takes itself apart.
        logging.shutdown()
        os._exit(0 if stopping.is_set() else 1)


if __name__ == "__main__":
    main()
