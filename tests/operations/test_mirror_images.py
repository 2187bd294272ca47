"""Container images in a mirror, copied from a registry that the test is: with tokens, and blobs from another server.

tests/integration/test_mirror_images.py does it with real registries.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from pathlib import Path

import pytest

from boxwright.errors import Failed
from boxwright.lab.oci import Registry
from boxwright.site_mirror import builder, images
from boxwright.site_mirror.builder import Site
from boxwright.site_mirror.supply import Supply, Wanted
from boxwright.sizes import human

INDEX, DOCKER = images.INDEX_TYPES[0], images.MANIFEST_TYPES[1]
NAME = "registry.example/team/sample"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Hub:
    """A registry that hands out tokens to everybody, and sends whoever asks for a blob to another server."""

    def __init__(self) -> None:
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.generation = 1
        self.closed = False
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                path, _, query = self.path.partition("?")
                if path == "/token":
                    assert query == "service=sample&scope=repository%3Ateam%2Fsample%3Apull"
                    self.say(401 if hub.closed else 200, json.dumps({"token": f"t{hub.generation}"}).encode())
                elif path.startswith("/elsewhere/"):
                    # As the stores behind registries do.
                    code = 400 if "Authorization" in self.headers else 200
                    self.say(code, hub.blobs[path.removeprefix("/elsewhere/")])
                elif self.headers.get("Authorization") != f"Bearer t{hub.generation}":
                    realm = f'Bearer realm="{hub.url}/token",service="sample",scope="repository:team/sample:pull"'
                    self.say(401, b"", {"WWW-Authenticate": realm})
                elif "/blobs/" in path:
                    place = f"http://localhost:{hub.port}/elsewhere/{path.rpartition('/')[2]}"
                    self.say(307, b"", {"Location": place})
                elif (what := path.removeprefix("/v2/team/sample/manifests/")) in hub.manifests:
                    kind, text = hub.manifests[what]
                    assert kind in self.headers["Accept"]
                    self.say(200, text, {"Content-Type": kind})
                else:
                    self.say(404, b"")

            def say(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(code)
                for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                """Nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def blob(self, content: bytes) -> dict[str, object]:
        self.blobs[digest(content)] = content
        return {"digest": digest(content), "size": len(content)}

    def image(self, architecture: str) -> dict[str, object]:
        """An image of two layers, one of which all have."""
        parts = {"config": self.blob(f"for {architecture}".encode()), "layers": [self.blob(b"base" * 1000)]}
        parts["layers"].append(self.blob(f"program of {architecture}".encode()))
        text = json.dumps({"schemaVersion": 2, **parts}).encode()
        self.manifests[digest(text)] = (DOCKER, text)
        return {"digest": digest(text), "size": len(text), "platform": {"os": "linux", "architecture": architecture}}

    def publish(self, tag: str, *architectures: str) -> None:
        entries = [self.image(architecture) for architecture in architectures]
        # Where it comes from and how it was built stand beside the images.
        about = {"digest": digest(b""), "size": 0, "platform": {"os": "unknown", "architecture": "unknown"}}
        text = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*entries, about]}).encode()
        self.manifests[tag] = (INDEX, text)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Hub()
    monkeypatch.setitem(images.SERVERS, "registry.example", f"127.0.0.1:{made.port}")
    made.publish("1", "amd64", "arm64")
    yield made
    made.server.shutdown()
    made.server.server_close()


def wanted(reference=f"{NAME}:1", *architectures):
    return Wanted(Supply(images=(reference,)), architectures=architectures or ("amd64",))


def fill(folder, what):
    site = Site(folder)
    plan = site.plan(what)
    return plan, site.fill(plan)


def holds(folder, tag="1"):
    """The blobs of the registry's folder, and what its tag leads to; each blob is what its name says."""
    registry = folder / "registry/docker/registry/v2"
    found = {path.parent.name: path.read_bytes() for path in registry.glob("blobs/sha256/??/*/data")}
    assert all(hashlib.sha256(content).hexdigest() == name for name, content in found.items())
    link = registry / f"repositories/{NAME}/_manifests/tags/{tag}/current/link"
    return set(found.values()), found[link.read_text().removeprefix("sha256:")] if link.exists() else None


def refused(folder, what):
    with pytest.raises(Failed) as error:
        fill(folder, what)
    [problem] = error.value.problems
    return problem.code, f"{problem.message}\n{problem.help}"


def test_an_image_arrives_as_it_is_published_for_the_wanted_processors(hub, tmp_path):
    plan = Site(tmp_path / "mirror").plan(wanted())
    line, _ = builder.table(plan)
    assert line.split() == ["image", f"{NAME}:1", *human(plan.bytes).split()]
    assert plan.to_fetch == plan.bytes > 4000
    assert "/elsewhere/" not in "".join(hub.asked)
    assert not (tmp_path / "mirror").exists()

    plan, count = fill(tmp_path / "mirror", wanted())
    assert count == len(plan.items)
    blobs, tagged = holds(tmp_path / "mirror")
    assert tagged == hub.manifests["1"][1]
    assert {b"for amd64", b"base" * 1000, b"program of amd64"} < blobs
    assert b"for arm64" not in blobs
    # Once more fetches nothing; another processor brings what it has of its own.
    hub.asked.clear()
    assert fill(tmp_path / "mirror", wanted())[1] == 0
    assert "/elsewhere/" not in "".join(hub.asked)
    fill(tmp_path / "mirror", wanted(f"{NAME}:1", "amd64", "arm64"))
    assert {b"for arm64", b"program of arm64"} < holds(tmp_path / "mirror")[0]
    assert len([path for path in hub.asked if path.startswith("/elsewhere/")]) == 2


def test_an_image_for_one_processor_alone(hub, tmp_path):
    _, text = hub.manifests[str(hub.image("amd64")["digest"])]
    hub.manifests["latest"] = (DOCKER, text)
    fill(tmp_path / "mirror", wanted(NAME))
    assert holds(tmp_path / "mirror", "latest")[1] == text


def test_a_token_that_has_run_out_is_replaced(hub, tmp_path):
    site = Site(tmp_path / "mirror")
    plan = site.plan(wanted())
    assert [path for path in hub.asked if path.startswith("/token")] == [hub.asked[1]]
    hub.generation = 2
    site.fill(plan)
    assert len([path for path in hub.asked if path.startswith("/token")]) == 2
    assert holds(tmp_path / "mirror")[1]


def test_what_cannot_be_had_is_said(hub, tmp_path):
    folder = tmp_path / "mirror"
    code, said = refused(folder, wanted(f"{NAME}:2"))
    assert (code, f"has no image {NAME}:2" in said) == ("BW163", True)
    code, said = refused(folder, wanted(f"{NAME}:1", "riscv64"))
    assert (code, "not published for riscv64, but for amd64, arm64" in said) == ("BW166", True)
    hub.manifests["odd"] = (INDEX, b'{"schemaVersion": 1}')
    assert refused(folder, wanted(f"{NAME}:odd"))[0] == "BW166"
    hub.closed, hub.generation = True, 3
    code, said = refused(folder, wanted())
    assert (code, "push" in said) == ("BW163", True)
    hub.server.shutdown()
    hub.server.server_close()
    assert refused(folder, wanted())[0] == "BW163"
    assert not folder.exists()


def test_what_is_altered_on_the_way_is_never_tagged(hub, tmp_path):
    [program] = [name for name, content in hub.blobs.items() if content == b"program of amd64"]
    hub.blobs[program] = b"program of nobody"[:16]
    code, said = refused(tmp_path / "mirror", wanted())
    assert (code, "wrong checksum" in said) == ("BW163", True)
    assert holds(tmp_path / "mirror")[1] is None
    hub.blobs[program] = b"program of amd64"
    fill(tmp_path / "mirror", wanted())
    assert holds(tmp_path / "mirror")[1]

    for name, (kind, text) in list(hub.manifests.items()):
        if name != "1":
            hub.manifests[name] = (kind, text + b" ")
    assert "another manifest" in refused(tmp_path / "other", wanted())[1]


def test_left_to_a_registry_of_the_site(hub, tmp_path):
    plan = Site(tmp_path / "mirror").plan(wanted(), with_images=False)
    assert (plan.items, plan.images, hub.asked) == ((), (f"{NAME}:1",), [])


def test_the_lab_and_a_mirror_have_one_layout(hub, tmp_path):
    """The lab's registry finds an image that was copied."""
    hub.manifests["plain"] = (DOCKER, hub.manifests[str(hub.image("amd64")["digest"])][1])
    fill(tmp_path / "mirror", wanted(f"{NAME}:plain"))
    assert Registry(tmp_path / "mirror" / images.FOLDER).has(f"{NAME}:plain")
    assert not Registry(Path(tmp_path)).has(f"{NAME}:plain")
