"""An image on its way to a site without internet, by real registries and a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kit import Box, Lab, eventually
from requests import RequestException, get

from boxwright.artifacts import MirrorSettings
from boxwright.site_mirror import images
from boxwright.site_mirror.builder import Site
from boxwright.site_mirror.supply import Supply, Wanted

pytestmark = pytest.mark.lab

MIRROR = "boxwright-mirror-registry"
REFERENCE = "registry.example/team/sample:1"
CONFIGURATION = """
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: /srv/registry}
http: {addr: ":5000", secret: for-one-test}
"""


class Registry:
    """The registry of the lab's mirror, with a folder of its own, at an address of this machine."""

    def __init__(self, lab: Lab, folder: Path, settings: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.container = lab.engine.containers.run(
            lab.engine.containers.get(MIRROR).image.id,
            ["docker-registry", "serve", "/settings/registry.yml"],
            detach=True,
            labels={"boxwright.state": str(lab.state)},
            name=f"boxwright-test-registry-{uuid4().hex[:8]}",
            ports={"5000/tcp": ("127.0.0.1", 0)},
            volumes={str(folder): {"bind": "/srv/registry"}, str(settings): {"bind": "/settings", "mode": "ro"}},
        )
        self.container.reload()
        self.address = f"127.0.0.1:{self.container.ports['5000/tcp'][0]['HostPort']}"
        eventually("the registry answers", self._answers)

    def _answers(self) -> bool:
        try:
            return get(f"http://{self.address}/v2/", timeout=5).ok
        except RequestException:
            return False


@pytest.fixture
def registry(light: Box, tmp_path: Path) -> Iterator[Any]:
    """Makes registries."""
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/registry.yml").write_text(CONFIGURATION)
    made: list[Registry] = []

    def make(folder: Path) -> Registry:
        made.append(Registry(light.lab, folder, tmp_path / "settings"))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            # What it wrote is root's, also where the test is not.
            one.container.exec_run("rm -rf /srv/registry/docker")
            one.container.remove(force=True)


def test_an_engine_pulls_from_a_mirror_what_a_registry_published(
    light: Box, registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = light.lab.engine
    publisher = registry(tmp_path / "publisher")
    monkeypatch.setitem(images.SERVERS, "registry.example", publisher.address)
    source = client.images.get(client.containers.get(MIRROR).image.id)
    name = f"{publisher.address}/team/sample"
    source.tag(name, "1")
    try:
        client.images.push(name, "1")
    finally:
        client.images.remove(f"{name}:1")

    site = Site(tmp_path / "mirror")
    architecture = client.version()["Arch"]
    plan = site.plan(Wanted(Supply(images=(REFERENCE,)), architectures=(architecture,)))
    assert site.fill(plan) == len(plan.items)
    served = registry(tmp_path / "mirror" / images.FOLDER)
    pulled = MirrorSettings(registry=f"http://{served.address}").image(REFERENCE)
    assert pulled == f"{served.address}/{REFERENCE}"
    found = client.images.pull(pulled)
    try:
        assert found.id == source.id
    finally:
        client.images.remove(pulled)
