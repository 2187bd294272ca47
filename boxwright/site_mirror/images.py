"""Container images for a mirror: asked of their registries, and laid out as a registry's folder has them.

An image comes as its publisher has it, so its digests stay: of an image for several processors the list itself, and
the parts of those processors that are wanted. Asked by the OCI distribution specification 1.1; tokens as Docker's
documentation of its registry describes them (https://distribution.github.io/distribution/spec/auth/token/).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from boxwright.artifacts import full_reference
from boxwright.lab.oci import MANIFEST_TYPE, Blob, Registry
from boxwright.site_mirror.items import TIMEOUT, Item, failed

# Where the folder of the registry lies in that of the mirror.
FOLDER = "registry"
INDEX_TYPES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = (MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")
# Docker's own name of its registry, and the server behind it.
SERVERS = {"docker.io": "registry-1.docker.io"}


class Tokens(AuthBase):
    """Gets tokens as registries ask for them, each for the images of one name, and a new one when that has run out."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token := self._known.get(_scope(request.url)):
            request.headers["Authorization"] = f"Bearer {token}"
        request.register_hook("response", self._answer)  # type: ignore[no-untyped-call]
        return request

    def _answer(self, answer: requests.Response, **options: Any) -> requests.Response:
        asked = answer.request
        kind, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
        if answer.status_code != 401 or kind.lower() != "bearer":
            return answer
        challenge = dict(re.findall(r'([a-z_]+)="([^"]*)"', rest))
        words = {key: challenge[key] for key in ("service", "scope") if key in challenge}
        told = requests.get(challenge.get("realm", ""), params=words, timeout=TIMEOUT)
        if told.status_code != 200:
            return answer
        found = told.json()
        self._known[_scope(asked.url)] = token = found.get("token") or found["access_token"]
        answer.close()
        again = asked.copy()
        again.headers["Authorization"] = f"Bearer {token}"
        sent: requests.Response = answer.connection.send(again, **options)
        sent.history.append(answer)
        sent.request = again
        return sent


def _scope(url: str | None) -> str:
    """The server, and the name of the images."""
    parts = urlsplit(url or "")
    return f"{parts.netloc}{re.sub('/(manifests|blobs)/.*', '', parts.path)}"


def items(session: requests.Session, tokens: Tokens, reference: str, architectures: Iterable[str]) -> list[Item]:
    """What the image `reference` consists of for `architectures`, as Debian calls them (`amd64`), the tag last.

    `reference` has a tag, or nothing for `latest`. Raises Failed (BW163, BW166).
    """
    full = full_reference(reference)
    name, _, tag = full.rpartition(":")
    server, _, path = name.partition("/")
    host = SERVERS.get(server, server)
    # As Docker does: the machine itself is asked without TLS.
    scheme = "http" if host.split(":")[0] in ("localhost", "127.0.0.1") else "https"
    base = f"{scheme}://{host}/v2/{path}"

    def manifest(what: str) -> bytes:
        headers = {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}
        try:
            answer = session.get(f"{base}/manifests/{what}", headers=headers, auth=tokens, timeout=TIMEOUT)
        except (requests.RequestException, ValueError, KeyError) as error:
            raise failed("BW163", f"the image {full} cannot be asked for at {host}: {error}") from None
        if answer.status_code in (401, 403, 404):
            raise failed(
                "BW163",
                f"{host} has no image {full}, or not for everybody (HTTP {answer.status_code})",
                "is its name right? one that wants a login must be pushed by hand: docs/air-gapped.md",
            )
        if answer.status_code != 200:
            raise failed("BW163", f"the image {full} cannot be asked for at {host}: HTTP {answer.status_code}")
        found = answer.content
        if what.startswith("sha256:") and _blob(found).digest != what:
            raise failed("BW163", f"{host} handed out another manifest than {what} of {full}")
        return found

    top = manifest(tag)
    lists = json.loads(top)
    manifests = [top]
    if "manifests" in lists:
        manifests = [manifest(_for(full, lists["manifests"], one)) for one in architectures]
    parts: dict[str, int] = {}
    for one in map(json.loads, manifests):
        if "layers" not in one:
            raise failed("BW166", f"the image {full} is of a kind that boxwright does not know", "push it by hand")
        parts |= {entry["digest"]: entry["size"] for entry in (one["config"], *one["layers"])}

    registry = Registry(Path(FOLDER))
    blobs = [Blob(digest.removeprefix("sha256:"), size) for digest, size in parts.items()]
    texts = {_blob(text): text for text in (*manifests, top)}
    found = [
        Item("image", full, str(registry.blob_path(one.sha256)), f"{base}/blobs/{one.digest}", one.sha256, one.size)
        for one in blobs
    ]
    found += [
        Item("image", full, str(registry.blob_path(blob.sha256)), size=blob.size, text=text)
        for blob, text in texts.items()
    ]
    leads = registry.links(name, tag, _blob(top), list(texts), blobs)
    for place, blob in leads.items():
        text = blob.digest.encode()
        found.append(Item("image", full, str(place), size=len(text), text=text))
    return found


def _blob(text: bytes) -> Blob:
    return Blob(hashlib.sha256(text).hexdigest(), len(text))


def _for(full: str, entries: Iterable[Mapping[str, Any]], architecture: str) -> str:
    """The digest of the part for Linux on `architecture`."""
    there = {
        entry["platform"]["architecture"]: entry["digest"]
        for entry in reversed(list(entries))
        if (entry.get("platform") or {}).get("os") == "linux"
    }
    if architecture not in there:
        raise failed(
            "BW166",
            f"the image {full} is not published for {architecture}, but for {', '.join(sorted(there)) or 'none'}",
            "name another image or version, or leave the processor out of this mirror",
        )
    return str(there[architecture])
