"""A double of `vllm serve` 0.33: its command line, its HTTP paths, who may call them, and canned answers.

vLLM itself needs a graphics card and some gigabytes of packages. What a box has to get right about it is how it is
started and what must not be reachable, so this stands in for it: the standard library alone, packed as a wheel that is
installed as vLLM is (see wheel.py). What it does follows vLLM's documentation of autumn 2026:

- without --host it listens on all addresses; --api-key, or VLLM_API_KEY in the environment, is asked for below /v1,
  /v2 and /inference and nowhere else;
- /invocations is inference without a key, /pause and its like administer the server, also without;
- /docs and /openapi.json are there unless --disable-fastapi-docs; VLLM_SERVER_DEV_MODE=1 opens even more;
- any origin of a browser is welcome.

It answers after a second, as loading a model takes a while, and refuses options that it does not know.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__version__ = "0.33.0"

WORDS = ("This ", "answer ", "was ", "written ", "before ", "anybody ", "asked, ", "word ", "by ", "word.")
# What a key is asked for.
GUARDED = ("/v1", "/v2", "/inference")
OPEN = (
    *("/invocations", "/pooling", "/classify", "/score", "/rerank", "/tokenize", "/detokenize"),
    *("/pause", "/resume", "/update_weights", "/ping", "/version", "/load"),
)
SUPPORTED = {"LlamaForCausalLM", "Qwen3ForCausalLM"}
DOCUMENTATION = ("/docs", "/openapi.json")
DEVELOPMENT = ("/reset_prefix_cache", "/sleep", "/wake_up", "/collective_rpc", "/server_info")


def options(arguments: list[str]) -> argparse.Namespace:
    """The command line; ends the process with 2 when it is not one of vLLM's."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", allow_abbrev=False)
    serve.add_argument("model", nargs="?")
    serve.add_argument("--config")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY"))
    serve.add_argument("--served-model-name", nargs="+")
    serve.add_argument("--max-model-len", type=int)
    serve.add_argument("--max-num-seqs", type=int)
    serve.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    serve.add_argument("--tensor-parallel-size", type=int, default=1)
    serve.add_argument("--runner", choices=["auto", "generate", "pooling"], default="auto")
    serve.add_argument("--disable-fastapi-docs", action="store_true")
    serve.add_argument("--allowed-origins", type=json.loads, default=["*"])
    serve.add_argument("--allowed-media-domains", nargs="*", default=[])
    given = parser.parse_args(arguments)
    if given.config:
        # vLLM puts what it reads there before the command line, which wins. Here it has one option in each line.
        pairs = [line.partition(": ") for line in Path(given.config).read_text().splitlines()]
        found = {name: str(json.loads(value)) for name, _, value in pairs}
        model = [found.pop("model")] if given.model is None and "model" in found else []
        words = [word for name, value in found.items() for word in (f"--{name}", value)]
        given = parser.parse_args(["serve", *model, *words, *arguments[1:]])
    if given.model is None:
        parser.error("No model specified!")
    return given


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    given: argparse.Namespace

    @property
    def names(self) -> list[str]:
        return self.given.served_model_name or [self.given.model]

    @property
    def route(self) -> str:
        return self.path.partition("?")[0]

    def say(self, status: int, body: Any, content_type: str = "application/json") -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.origin()
        self.end_headers()
        self.wfile.write(data)

    def origin(self) -> None:
        if self.headers.get("Origin") and "*" in self.given.allowed_origins:
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Allow-Credentials", "true")

    def admitted(self) -> bool:
        """Whether the request may go on; it is answered when not."""
        key = self.given.api_key
        if not key or not self.route.startswith(GUARDED):
            return True
        if hmac.compare_digest(self.headers.get("Authorization", ""), f"Bearer {key}"):
            return True
        self.say(401, {"error": "Unauthorized"})
        return False

    def do_GET(self) -> None:
        """Lists, health, metrics, documentation."""
        if not self.admitted():
            return
        if self.route == "/health":
            self.say(200, "")
        elif self.route == "/metrics":
            self.say(200, "vllm:num_requests_running 0.0\nvllm:num_requests_waiting 0.0\n", "text/plain")
        elif self.route == "/v1/models":
            self.say(200, {"object": "list", "data": [self.model(name) for name in self.names]})
        elif self.route.startswith("/v1/models/") and self.route.removeprefix("/v1/models/") in self.names:
            self.say(200, self.model(self.route.removeprefix("/v1/models/")))
        elif self.route in OPEN or self.other():
            self.say(200, {"version": __version__, "path": self.route})
        else:
            self.say(404, {"detail": "Not Found"})

    def other(self) -> bool:
        """Whether the path is one that options and variables open."""
        documented = self.route in DOCUMENTATION and not self.given.disable_fastapi_docs
        return documented or (self.route in DEVELOPMENT and os.environ.get("VLLM_SERVER_DEV_MODE") == "1")

    def model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": self.given.max_model_len}

    def do_POST(self) -> None:
        """Inference and administration."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.admitted():
            return
        if self.route in OPEN or self.other():
            self.say(200, {"path": self.route, "done": True})
            return
        answers = {"/v1/chat/completions": self.chat, "/v1/completions": self.text, "/v1/embeddings": self.embed}
        answer = answers.get(self.route)
        if answer is None:
            self.say(404, {"detail": "Not Found"})
            return
        try:
            asked = json.loads(body)
        except ValueError:
            self.fail(400, "not JSON")
            return
        if asked.get("model", self.names[0]) not in self.names:
            self.fail(404, f"The model `{asked['model']}` does not exist.")
            return
        answer(asked)

    def fail(self, status: int, message: str) -> None:
        kind = "NotFoundError" if status == 404 else "BadRequestError"
        self.say(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})

    def chat(self, asked: dict[str, Any]) -> None:
        common = {"id": "chatcmpl-1", "created": int(time.time()), "model": asked.get("model", self.names[0])}
        if not asked.get("stream"):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(WORDS)},
                "finish_reason": "stop",
            }
            self.say(200, {**common, "object": "chat.completion", "choices": [choice], "usage": self.usage()})
            return
        parts: list[dict[str, Any]] = [{"delta": {"content": word}, "finish_reason": None} for word in WORDS]
        parts.append({"delta": {}, "finish_reason": "stop"})
        self.stream([{**common, "object": "chat.completion.chunk", "choices": [{"index": 0, **p}]} for p in parts])

    def stream(self, events: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.origin()
        self.end_headers()
        for text in [*(json.dumps(event) for event in events), "[DONE]"]:
            data = f"data: {text}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
            time.sleep(0.05)  # tokens take time; only so is it seen whether a stream is passed on as it comes
        self.wfile.write(b"0\r\n\r\n")

    def text(self, asked: dict[str, Any]) -> None:
        choice = {"index": 0, "text": "".join(WORDS), "finish_reason": "stop"}
        self.say(200, {"object": "text_completion", "model": self.names[0], "choices": [choice], "usage": self.usage()})

    def embed(self, asked: dict[str, Any]) -> None:
        if self.given.runner != "pooling":
            self.fail(404, "The model does not support Embeddings API")
            return
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        data = [{"object": "embedding", "index": n, "embedding": [0.1, 0.2, 0.3]} for n, _ in enumerate(texts)]
        self.say(200, {"object": "list", "model": self.names[0], "data": data, "usage": self.usage()})

    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": 4, "completion_tokens": len(WORDS), "total_tokens": 4 + len(WORDS)}


def main() -> None:
    """`vllm serve ...`, until SIGTERM."""
    given = options(sys.argv[1:])
    folder = Path(given.model)
    if not (folder / "config.json").is_file():
        sys.exit(f"ValueError: {given.model} has no config.json")
    architectures = json.loads((folder / "config.json").read_text()).get("architectures", [])
    if not set(architectures) <= SUPPORTED:
        sys.exit(f"ValueError: Model architectures {architectures} are not supported for now.")
    if not list(folder.glob("*.safetensors")):
        sys.exit(f"RuntimeError: Cannot find any model weights with `{given.model}`")
    time.sleep(1)
    server = ThreadingHTTPServer((given.host or "0.0.0.0", given.port), type("Bound", (Handler,), {"given": given}))
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
