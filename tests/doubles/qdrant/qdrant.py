#!/usr/bin/python3
"""A double of Qdrant's server: a part of its REST API, and its way of being configured and started.

    python3 qdrant.py --config-path FILE

Nothing but the standard library. Written after Qdrant 1.18.3: src/main.rs and src/settings.rs (options, files),
src/actix and src/common/auth (keys, errors), docs/redoc/master/openapi.json (requests and answers). README.md says what
is not there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

VERSION = "1.18.3"
# What holds where no file says otherwise: config/config.yaml of the release, which is part of the program.
DEFAULTS: dict[str, Any] = {
    "storage": {"storage_path": "./storage", "snapshots_path": "./snapshots"},
    "service": {"host": "0.0.0.0", "http_port": 6333, "grpc_port": 6334, "max_request_size_mb": 32},
    "telemetry_disabled": False,
}


class Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# Configuration


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` wins, member by member; null is a value too."""
    found = dict(below)
    for name, value in above.items():
        known = found.get(name)
        found[name] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return found


def configuration(path: str | None) -> dict[str, Any]:
    """The files of the working folder, then the named one. Only JSON is read here, which YAML contains.

    One that is not there is told and passed over, as the real program does it: then there is no key either.
    """
    found = DEFAULTS
    names = ["config/config.yaml", "config/development.yaml", *([path] if path else [])]
    for name in names:
        try:
            found = merged(found, json.loads(Path(name).read_text(encoding="utf-8")))
        except OSError:
            say("ERROR" if name == path else "WARN", f"Config file not found: {name}")
    return found


def say(level: str, text: str) -> None:
    """A line of the log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {level:>5} qdrant: {text}", flush=True)


# What is kept


def normal(vector: list[float]) -> list[float]:
    """Of length one, but for the one of length zero."""
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else vector


def identity(value: Any) -> int | str:
    """A point's: a number that is not negative, or a UUID in its usual form."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    try:
        return str(uuid.UUID(value))
    except (ValueError, TypeError, AttributeError):
        raise Refused(400, f"Format error in JSON body: value {value} is not a valid point ID") from None


def order(point: dict[str, Any]) -> tuple[bool, Any]:
    """Numbers come before UUIDs."""
    return isinstance(point["id"], str), point["id"]


def values(payload: Any, key: str) -> list[Any]:
    """What is at a key (`a.b` is b in a); each element of a list."""
    for part in key.split("."):
        payload = payload.get(part) if isinstance(payload, dict) else None
    return payload if isinstance(payload, list) else [] if payload is None else [payload]


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same kind: true is not 1."""
    return type(one) is type(other) and one == other


def holds(condition: Any, point: dict[str, Any]) -> bool:
    """Whether a condition of a filter is true of a point."""
    if not isinstance(condition, dict):
        raise Refused(400, "Format error in JSON body: a condition is an object")
    if "has_id" in condition:
        return point["id"] in [identity(one) for one in condition["has_id"]]
    if "key" not in condition:
        return passes(condition, point)
    match = condition.get("match")
    if set(condition) == {"key", "range"}:
        return within(condition["range"], values(point["payload"], condition["key"]))
    if set(condition) != {"key", "match"} or not isinstance(match, dict) or len(match) != 1:
        raise Refused(400, "Format error in JSON body: the double knows `key` with `match` or `range` alone")
    there = values(point["payload"], condition["key"])
    ((kind, wanted),) = match.items()
    if kind == "value":
        return any(same(one, wanted) for one in there)
    if kind == "any":
        return any(same(one, other) for one in there for other in wanted)
    if kind == "except":
        return bool(there) and not any(same(one, other) for one in there for other in wanted)
    raise Refused(400, f"Format error in JSON body: the double does not know the match `{kind}`")


def within(range: Any, there: list[Any]) -> bool:
    """Whether one of the numbers is in the range."""
    kinds = {"lt": float.__lt__, "lte": float.__le__, "gt": float.__gt__, "gte": float.__ge__}
    if not isinstance(range, dict) or not range or set(range) - set(kinds):
        raise Refused(400, "Format error in JSON body: not a range that the double knows")
    numbers = [float(one) for one in there if isinstance(one, int | float) and not isinstance(one, bool)]
    return any(all(kinds[kind](number, float(edge)) for kind, edge in range.items()) for number in numbers)


def passes(filter: Any, point: dict[str, Any]) -> bool:
    """Whether a filter lets a point through."""
    if filter is None:
        return True
    if not isinstance(filter, dict) or not filter or set(filter) - {"must", "should", "must_not"}:
        raise Refused(400, "Format error in JSON body: not a filter that the double knows")
    parts = {name: part if isinstance(part, list) else [part] for name, part in filter.items() if part is not None}
    should = parts.get("should", [])
    return (
        all(holds(one, point) for one in parts.get("must", ()))
        and (not should or any(holds(one, point) for one in should))
        and not any(holds(one, point) for one in parts.get("must_not", ()))
    )


class Collections:
    """All collections; each is a file, written anew at each change before it is answered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "collections"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.all: dict[str, dict[str, Any]] = {}
        for path in self.folder.glob("*.json"):
            self.all[unquote(path.stem)] = json.loads(path.read_text(encoding="utf-8"))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('%', '%25')}.json"

    def write(self, name: str) -> None:
        """To the disk."""
        new = self.folder / f".{os.getpid()}.new"
        with new.open("w", encoding="utf-8") as handle:
            json.dump(self.all[name], handle)
            handle.flush()
            os.fsync(handle.fileno())
        new.replace(self._path(name))

    def get(self, name: str) -> dict[str, Any]:
        """One of them, or the refusal."""
        if name not in self.all:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return self.all[name]

    def create(self, name: str, body: dict[str, Any]) -> bool:
        """A new one."""
        if not 0 < len(name) <= 255 or re.search(r'[<>:"/\\|?*\x00\x1f]', name):
            raise Refused(422, f"Validation error in path parameters: [collection_name: value {name} invalid]")
        vectors = body.get("vectors")
        if not isinstance(vectors, dict) or not isinstance(vectors.get("size"), int):
            raise Refused(400, "Format error in JSON body: the double wants `vectors` with `size` and `distance`")
        if vectors["size"] < 1 or vectors["size"] > 65536:
            raise Refused(422, "Validation error in JSON body: [vectors.size: value is not between 1 and 65536]")
        if vectors.get("distance") not in ("Cosine", "Dot"):
            raise Refused(400, "Format error in JSON body: the double knows the distances Cosine and Dot")
        if name in self.all:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        self.all[name] = {"vectors": vectors, "points": [], "fields": {}, "version": 0}
        self.write(name)
        return True

    def delete(self, name: str) -> bool:
        """Whether there was one."""
        if name in self.all:
            self._path(name).unlink()
        return self.all.pop(name, None) is not None


def upsert(collection: dict[str, Any], body: dict[str, Any]) -> None:
    """Points with the same identity are replaced, where they fit `update_filter`; others stay as they are."""
    given = body.get("points")
    if not isinstance(given, list) or not given:
        raise Refused(400 if given is None else 422, "Format error in JSON body: the double wants `points`")
    made = []
    for point in given:
        vector, payload = point.get("vector"), point.get("payload")
        if not isinstance(payload, dict | None) or not is_vector(vector):
            raise Refused(400, "Format error in JSON body: a point has `id`, a list of numbers `vector` and `payload`")
        fits(collection, vector)
        cosine = collection["vectors"]["distance"] == "Cosine"
        made.append(
            {
                "id": identity(point.get("id")),
                "vector": normal(vector) if cosine else vector,
                "payload": payload or {},
                "version": collection["version"] + 1,
            }
        )
    collection["version"] += 1
    kept = {point["id"]: point for point in collection["points"]}
    only = body.get("update_filter")
    kept |= {point["id"]: point for point in made if point["id"] not in kept or passes(only, kept[point["id"]])}
    collection["points"] = sorted(kept.values(), key=order)


def is_vector(value: Any) -> bool:
    """Numbers, and nothing else."""
    return isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)


def fits(collection: dict[str, Any], vector: list[float]) -> None:
    """Refuses one of another dimension."""
    expected = collection["vectors"]["size"]
    if len(vector) != expected:
        raise Refused(400, f"Wrong input: Vector dimension error: expected dim: {expected}, got {len(vector)}")


def shown(point: dict[str, Any], body: dict[str, Any], payload: Any, **more: Any) -> dict[str, Any]:
    """A point in an answer; `payload` is whether it is shown where the request does not say."""
    wanted = body.get("with_payload", payload)
    found = {"id": point["id"], **more}
    if isinstance(wanted, list):
        found["payload"] = {name: value for name, value in point["payload"].items() if name in wanted}
    elif wanted:
        found["payload"] = point["payload"]
    if body.get("with_vector"):
        found["vector"] = point["vector"]
    return found


def number(body: dict[str, Any], name: str, default: int, least: int) -> int:
    """A number of a request."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Refused(400, f"Format error in JSON body: {name} is not a number")
    if value < least:
        raise Refused(422, f"Validation error in JSON body: [{name}: value {value} invalid, must be {least} or larger]")
    return value


def query(collection: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """The nearest points, best first; without a query the first ones."""
    limit, offset = number(body, "limit", 10, 1), number(body, "offset", 0, 0)
    asked = body.get("query")
    vector = asked.get("nearest") if isinstance(asked, dict) else asked
    if asked is not None and not is_vector(vector):
        raise Refused(400, "Format error in JSON body: the double knows a list of numbers as `query` alone")
    through = [point for point in collection["points"] if passes(body.get("filter"), point)]
    scored = [(0.0, point) for point in through]
    if vector is not None:
        fits(collection, vector)
        if collection["vectors"]["distance"] == "Cosine":
            vector = normal(vector)
        scored = [(sum(a * b for a, b in zip(vector, point["vector"], strict=True)), point) for point in through]
        least = body.get("score_threshold")
        scored = [one for one in scored if least is None or one[0] >= least]
        scored.sort(key=lambda one: -one[0])
    return {
        "points": [
            shown(point, body, False, version=point["version"], score=score)
            for score, point in scored[offset : offset + limit]
        ]
    }


def scroll(collection: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """A page of points, by identity."""
    limit = number(body, "limit", 10, 1)
    through = [point for point in collection["points"] if passes(body.get("filter"), point)]
    if body.get("offset") is not None:
        first = order({"id": identity(body["offset"])})
        through = [point for point in through if order(point) >= first]
    after = through[limit]["id"] if len(through) > limit else None
    return {"points": [shown(point, body, True) for point in through[:limit]], "next_page_offset": after}


def retrieve(collection: dict[str, Any], body: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of some points that are there."""
    if not isinstance(body.get("ids"), list):
        raise Refused(400, "Format error in JSON body: missing field `ids`")
    wanted = [identity(one) for one in body["ids"]]
    return [shown(point, body, True) for point in collection["points"] if point["id"] in wanted]


def delete(collection: dict[str, Any], body: dict[str, Any]) -> None:
    """Points by a filter, or by identity."""
    if isinstance(body.get("filter"), dict):
        gone = [point["id"] for point in collection["points"] if passes(body["filter"], point)]
    elif isinstance(body.get("points"), list):
        gone = [identity(one) for one in body["points"]]
    else:
        raise Refused(400, "Format error in JSON body: data did not match any variant of untagged enum PointsSelector")
    collection["version"] += 1
    collection["points"] = [point for point in collection["points"] if point["id"] not in gone]


def information(collection: dict[str, Any]) -> dict[str, Any]:
    """What is told of a collection."""
    return {
        "status": "green",
        "optimizer_status": "ok",
        "indexed_vectors_count": 0,
        "points_count": len(collection["points"]),
        "segments_count": 1,
        "config": {
            "params": {"vectors": collection["vectors"], "shard_number": 1, "replication_factor": 1},
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
            "optimizer_config": {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "flush_interval_sec": 5},
        },
        "payload_schema": {
            name: {"data_type": kind, "points": len(collection["points"])}
            for name, kind in collection["fields"].items()
        },
    }


# HTTP


class Handler(BaseHTTPRequestHandler):
    """The REST API."""

    protocol_version = "HTTP/1.1"
    # An answer in one piece: two would wait for each other (Nagle, RFC 896).
    wbufsize = -1
    collections: Collections
    key: str
    largest: int

    def log_message(self, format: str, *args: Any) -> None:
        """As the real one: no questions about health."""
        if self.path.partition("?")[0] not in ("/", "/healthz", "/readyz", "/livez"):
            say("INFO", format % args)

    def answer(self) -> None:
        """Any request."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length <= self.largest else b""
        parts = urlsplit(self.path)
        path = parts.path.rstrip("/") or "/"
        plain = {
            "/healthz": "healthz check passed",
            "/livez": "healthz check passed",
            "/readyz": "all shards are ready",
        }
        if path in plain and self.command == "GET":
            return self.send(200, plain[path])
        if path == "/" and self.command == "GET":
            return self.send(200, {"title": "qdrant - vector search engine", "version": VERSION})
        if self.key:
            given = self.headers.get("api-key")
            if given is None and (self.headers.get("Authorization") or "").startswith("Bearer "):
                given = self.headers["Authorization"].removeprefix("Bearer ")
            if given is None:
                return self.send(401, "Must provide an API key or an Authorization bearer token")
            if given != self.key:
                return self.send(401, "Invalid API key or JWT")
        if length > self.largest:
            self.close_connection = True
            return self.send(413, {"status": {"error": "JSON payload is larger than allowed"}, "time": 0.0})
        try:
            wait = parse_qs(parts.query).get("wait") == ["true"]
            with self.collections.lock:
                result = self.result(self.command, [unquote(one) for one in path[1:].split("/")], wait, body)
            return self.send(200, {"result": result, "status": "ok", "time": 0.001})
        except Refused as refusal:
            return self.send(refusal.status, {"status": {"error": str(refusal)}, "time": 0.001})

    do_GET = do_PUT = do_POST = do_DELETE = answer

    def result(self, method: str, path: list[str], wait: bool, body: bytes) -> Any:
        """What a request to a collection is answered."""
        known, what = self.collections, path[2:]
        if path[0] != "collections" or len(path) > 4:
            raise Refused(404, "")
        if len(path) == 1 and method == "GET":
            return {"collections": [{"name": name} for name in sorted(known.all)]}
        if len(path) == 1:
            raise Refused(404, "")
        name = path[1]
        if (method, what) == ("GET", []):
            return information(known.get(name))
        if (method, what) == ("GET", ["exists"]):
            return {"exists": name in known.all}
        if (method, what) == ("DELETE", []):
            return known.delete(name)
        given = self.parsed(body)
        if (method, what) == ("PUT", []):
            return known.create(name, given)
        reads: dict[tuple[str, ...], Any] = {
            ("points",): retrieve,
            ("points", "query"): query,
            ("points", "scroll"): scroll,
        }
        if method == "POST" and tuple(what) in reads:
            return reads[tuple(what)](known.get(name), given)
        if (method, what) == ("POST", ["points", "count"]):
            return {"count": sum(passes(given.get("filter"), point) for point in known.get(name)["points"])}
        collection = known.get(name)
        if (method, what) == ("PUT", ["points"]):
            upsert(collection, given)
        elif (method, what) == ("POST", ["points", "delete"]):
            delete(collection, given)
        elif (method, what) == ("PUT", ["index"]):
            collection["fields"][given["field_name"]] = given.get("field_schema") or "keyword"
        else:
            raise Refused(404, "")
        known.write(name)
        return {"operation_id": collection["version"], "status": "completed" if wait else "acknowledged"}

    def parsed(self, body: bytes) -> dict[str, Any]:
        """A request's object."""
        try:
            found = json.loads(body)
        except ValueError as error:
            raise Refused(400, f"Format error in JSON body: {error}") from None
        if not isinstance(found, dict):
            raise Refused(400, "Format error in JSON body: expected an object")
        return found

    def send(self, status: int, said: Any) -> None:
        """The answer."""
        data = (said if isinstance(said, str) else json.dumps(said)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(said, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """Takes as many clients at once as come."""

    daemon_threads = True
    request_queue_size = 128


def main() -> int:
    """Serves until it is told to stop."""
    parser = argparse.ArgumentParser(prog="qdrant", allow_abbrev=False)
    parser.add_argument("--config-path")
    parser.add_argument("--disable-telemetry", action="store_true")
    parser.add_argument("--version", action="version", version=f"qdrant {VERSION} (a double)")
    given = parser.parse_args()
    settings = configuration(given.config_path)
    service, storage = settings["service"], settings["storage"]
    for folder in (storage["storage_path"], storage["snapshots_path"]):
        Path(folder).mkdir(parents=True, exist_ok=True)
    Handler.collections = Collections(Path(storage["storage_path"]))
    Handler.key = service.get("api_key") or ""
    Handler.largest = service["max_request_size_mb"] * 1024 * 1024
    disabled = settings["telemetry_disabled"] or given.disable_telemetry
    say("INFO", f"Telemetry reporting {'disabled' if disabled else 'enabled'}")
    if not Handler.key:
        say("WARN", "No API key: everybody may do everything")
    mark = Path(os.environ.get("QDRANT_INIT_FILE_PATH", ".qdrant-initialized"))
    mark.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Whether the other protocol is offered shall be seen from outside.
    other = socket.create_server((service["host"], service["grpc_port"])) if service.get("grpc_port") else None
    server = Server((service["host"], service["http_port"]), Handler)
    try:
        mark.write_text("")
    except OSError as error:
        say("WARN", f"Failed to create init file indicator: {error}")
    say("INFO", f"Qdrant HTTP listening on {service['http_port']}")
    try:
        server.serve_forever()
    finally:
        if other:
            other.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
