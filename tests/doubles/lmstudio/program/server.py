"""The HTTP server of the double: OpenAI's paths, LM Studio's own, and 200 with an error for all others.

Arguments: JSON with bind, port, cors, logs (folder), sensitive (whether bodies are logged), internal (port of the
daemon) and key. Every question goes to the daemon, so that a daemon which hangs makes this server hang.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RELAYED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")

settings = json.loads(sys.argv[1])


def outlive_nobody() -> None:
    """Ends when the daemon has ended."""
    sys.stdin.buffer.read()
    os._exit(0)


def ask(method: str, **parameters: Any) -> Any:
    """The daemon's answer; raises RuntimeError with its message."""
    connection = http.client.HTTPConnection("127.0.0.1", settings["internal"])
    body = json.dumps({"method": method, "parameters": parameters})
    connection.request("POST", "/rpc", body, {"X-Key": settings["key"]})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["result"]


def log(line: str) -> None:
    """One line in the log of the day."""
    folder = Path(settings["logs"]) / time.strftime("%Y-%m")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / time.strftime("%Y-%m-%d.1.log")).open("a") as handle:
        handle.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}][INFO] {line}\n")


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on standard error: the log is a file."""

    def answer(self, value: Any, status: int = 200) -> None:
        """JSON."""
        data = json.dumps(value, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        if settings["cors"]:
            self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def serve(self) -> None:
        """Any request."""
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        log(f"Received request: {self.command} to {path}")
        if settings["sensitive"] and body:
            log(f"with body {body.decode(errors='replace')}")
        try:
            if self.command == "GET" and path == "/lmstudio-greeting":
                ask("info")
                self.answer({"lmstudio": True})
            elif self.command == "GET" and path == "/v1/models":
                self.answer({"data": ask("openai_models"), "object": "list"})
            elif self.command == "GET" and path == "/api/v1/models":
                self.answer({"models": ask("native_models")})
            elif self.command == "POST" and path == "/api/v1/models/load":
                wanted = json.loads(body)
                made = ask("load", key=wanted["model"], context=wanted.get("context_length"))
                self.answer({"type": made["type"], "instance_id": made["identifier"], "status": "loaded"})
            elif self.command == "POST" and path == "/api/v1/models/unload":
                ask("unload", identifier=json.loads(body)["instance_id"])
                self.answer({"instance_id": json.loads(body)["instance_id"]})
            elif self.command == "POST" and path in RELAYED:
                self.relay(path, body)
            else:
                self.answer({"error": f"Unexpected endpoint or method. ({self.command} {self.path})"})
        except RuntimeError as error:
            self.answer({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = serve

    def relay(self, path: str, body: bytes) -> None:
        """From the model's own server, piece by piece as it comes."""
        try:
            model = str(json.loads(body).get("model", ""))
        except (ValueError, AttributeError):
            self.answer({"error": "Invalid JSON in the body"}, 400)
            return
        place = ask("begin", model=model)
        if place is None:
            message = f'Model "{model}" is not loaded.'
            error = {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
            self.answer({"error": error}, 404)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", place["port"])
        try:
            upstream.request("POST", path, body, {"Content-Type": "application/json"})
            response = upstream.getresponse()
            self.send_response(response.status)
            self.send_header("Content-Type", response.headers.get("Content-Type", "application/json"))
            self.send_header("Transfer-Encoding", "chunked")
            if settings["cors"]:
                self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            while data := response.read1(65536):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")
        except (http.client.HTTPException, ConnectionError):
            self.close_connection = True
        finally:
            # Closing it is what ends the prediction when the client has left.
            upstream.close()
            ask("end", identifier=place["identifier"])


class Server(ThreadingHTTPServer):
    """Takes the port also right after another has left it."""

    daemon_threads = True
    request_queue_size = 128


threading.Thread(target=outlive_nobody, daemon=True).start()
Server((settings["bind"], settings["port"]), Handler).serve_forever()
