#!/usr/bin/python3 -I
"""A double of cloudflared 2026.8.2: see README.md beside it. Python's standard library alone, as a box has it."""

import base64
import http.client
import json
import os
import re
import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

VERSION = "2026.8.2"
EDGE = ("127.0.0.1", 20240)
REMOTE, DOWN = "/etc/cloudflare-double.json", "/etc/cloudflare-double.down"
TOP = {"tunnel", "credentials-file", "no-autoupdate", "metrics", "protocol", "ingress"}
RULE = {"hostname", "path", "service", "originRequest"}
ORIGIN = {"originServerName", "caPool", "connectTimeout"}


class Broken(Exception):
    """The file is not what this reads."""


def parsed(path):
    """The configuration file, and what is said of keys that are not known. Reads the YAML that boxwright writes."""
    found, unused, rule = {"ingress": []}, [], {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"( *)(- )?([A-Za-z-]+):(?: (.+))?\n?", line)
        if match is None:
            raise Broken(f"error parsing YAML in config file at {path}: yaml: line {number}: did not find it")
        indent, new, key, value = len(match[1]), match[2], match[3], match[4] or ""
        value = json.loads(value) if value.startswith('"') else value
        if new:
            rule = {}
            found["ingress"].append(rule)
        known, kind, place = (
            (TOP, "configFileSettings", found)
            if indent == 0
            else (RULE, "config.UnvalidatedIngressRule", rule)
            if indent < 6
            else (ORIGIN, "config.OriginRequestConfig", rule.setdefault("origin", {}))
        )
        if key not in known and indent:
            unused.append(f"  line {number}: field {key} not found in type {kind}")
        elif key not in ("ingress", "originRequest"):
            place[key] = value
    return found, unused


def validate(path):
    """`tunnel ingress validate`."""
    try:
        found, unused = parsed(path)
    except Broken as error:
        print(error)
        return 1
    print(f"Validating rules from {path}")
    if not found["ingress"] or found["ingress"][-1].get("hostname"):
        print(
            "Validation failed: The last ingress rule must match all URLs (i.e. it should not have a hostname or path "
            "filter)"
        )
        return 1
    if unused:
        print("Warning: unused keys detected in your config file. Here is a list of unused keys:")
        print("\n".join(["yaml: unmarshal errors:", *unused]))
        return 0
    print("OK")
    return 0


def credentials(config, token_file):
    """The tunnel; None where the token is none."""
    try:
        if token_file:
            text = Path(token_file).read_text(encoding="utf-8").strip()
            return json.loads(base64.b64decode(text, validate=True))["t"]
        return json.loads(Path(config["credentials-file"]).read_text(encoding="utf-8"))["TunnelID"]
    except (ValueError, KeyError):
        return None


class Tunnel:
    """The running tunnel: its rules, and whether it is connected."""

    def __init__(self, config, remote):
        self.rules, self.version, self.connected = config["ingress"], -1, not Path(DOWN).exists()
        if remote and Path(REMOTE).exists():
            self.rules, self.version = json.loads(Path(REMOTE).read_text(encoding="utf-8")), 1

    def told(self):
        """What `/config` answers."""
        rules = [
            {"hostname": rule.get("hostname", ""), "path": rule.get("path"), "service": rule["service"]}
            for rule in self.rules
        ]
        return json.dumps({"version": self.version, "config": {"ingress": rules}}, separators=(",", ":"))

    def rule(self, host, path):
        """The first rule that fits."""
        for rule in self.rules:
            if rule.get("hostname") in (None, "", host) and re.search(rule.get("path") or "", path):
                return rule
        return self.rules[-1]


class Quiet(BaseHTTPRequestHandler):
    """A handler that writes no log."""

    tunnel = None

    def log_message(self, *arguments):
        """Nothing."""

    def say(self, status, body, headers=()):
        """One answer."""
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Metrics(Quiet):
    """`--metrics`."""

    def do_GET(self):
        tunnel = self.tunnel
        if self.path == "/ready":
            status = 200 if tunnel.connected else 503
            body = {"status": status, "readyConnections": 4 if tunnel.connected else 0, "connectorId": "double"}
            self.say(status, json.dumps(body, separators=(",", ":")).encode())
        elif self.path == "/config":
            self.say(200, tunnel.told().encode())
        elif self.path == "/healthcheck":
            self.say(200, b"OK\n")
        elif self.path == "/metrics":
            self.say(200, f'build_info{{version="{VERSION}"}} 1\n'.encode())
        else:
            self.say(404, b"")


class Edge(Quiet):
    """Cloudflare's edge, and cloudflared's proxy behind it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        host = self.headers["Host"].partition(":")[0]
        rule = self.tunnel.rule(host, self.path)
        if rule["service"].startswith("http_status:"):
            self.say(int(rule["service"].rpartition(":")[2]), b"")
            return
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("x-double")}
        client = self.headers.get("X-Double-Client", "198.51.100.1")
        headers["CF-Connecting-IP"] = client
        headers["X-Forwarded-For"] = ", ".join(filter(None, [headers.get("X-Forwarded-For"), client]))
        headers["X-Forwarded-Proto"] = "https"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        origin, service = rule.get("origin", {}), urlsplit(rule["service"])
        name = origin.get("originServerName", service.hostname)
        try:
            context = ssl.create_default_context(cafile=origin.get("caPool"))
            plain = socket.create_connection((service.hostname, service.port or 443), timeout=30)
            plain.settimeout(None)
            connection = http.client.HTTPConnection(service.hostname)
            connection.sock = context.wrap_socket(plain, server_hostname=name)
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            kept = [
                (key, value) for key, value in answer.getheaders() if key.lower() in ("content-type", "retry-after")
            ]
            self.hand_on(answer, kept)
        except OSError as error:
            self.say(502, f"Unable to reach the origin service: {error}\n".encode())

    do_POST = do_OPTIONS = do_GET

    def hand_on(self, answer, headers):
        """The origin's answer, each piece as soon as it is there."""
        self.send_response(answer.status)
        for name, value in (*headers, ("Transfer-Encoding", "chunked")):
            self.send_header(name, value)
        self.end_headers()
        while piece := answer.read1(65536):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


def serve(address, handler):
    """Serve in a thread of its own."""
    threading.Thread(target=ThreadingHTTPServer(address, handler).serve_forever, daemon=True).start()


def tell_systemd(text):
    """sd_notify(3)."""
    if place := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(place.replace("@", "\0", 1) if place.startswith("@") else place)
            notify.send(text.encode())


def run(path, token_file):
    """`tunnel run`."""
    config, _ = parsed(path)
    if credentials(config, token_file) is None:
        print("Provided Tunnel token is not valid.\nSee 'cloudflared tunnel run --help'.", file=sys.stderr)
        return 255
    Quiet.tunnel = Tunnel(config, remote=bool(token_file))
    host, _, port = config["metrics"].rpartition(":")
    serve((host, int(port)), Metrics)
    print(f"INF Version {VERSION}\nINF Settings: map[config:{path} token-file:{token_file}]", flush=True)
    if Quiet.tunnel.connected:
        serve(EDGE, Edge)
        tell_systemd("READY=1")
    threading.Event().wait()
    return 0


def main(arguments):
    """The command line, as far as boxwright uses it."""
    options = {"--config": "", "--token-file": ""}
    words = []
    given = iter(arguments)
    for word in given:
        if word in options:
            options[word] = next(given)
        elif word != "--no-autoupdate":
            words.append(word)
    if words == ["tunnel", "ingress", "validate"]:
        return validate(options["--config"])
    if words == ["tunnel", "run"]:
        return run(options["--config"], options["--token-file"])
    if words in (["version"], ["--version"]):
        print(f"cloudflared version {VERSION} (built unknown)")
        return 0
    print(f"the double does not know {words}", file=sys.stderr)
    return 64


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
