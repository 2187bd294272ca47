"""`boxwright caddy ...`: the custom Caddy. Only click is imported at the top, so that help is quick."""

from __future__ import annotations

from typing import Any

import click

# As `TARGETS` of the package, which is not imported here.
ARCHITECTURES = ("x86_64", "aarch64", "macos-arm64")


@click.group(name="caddy")
def caddy() -> None:
    """The Caddy with limits per client, exact ones and ACME by DNS."""


@caddy.command()
@click.option(
    "--arch",
    "architectures",
    type=click.Choice(ARCHITECTURES),
    multiple=True,
    help="The box's processor; can be given several times. Without it: this machine's.",
)
def build(architectures: tuple[str, ...]) -> None:
    """Build it and print where it is; at once when it is there already."""
    from boxwright import caddy_build
    from boxwright.caddy_build import builder
    from boxwright.errors import Problem, Refused
    from boxwright.lab.progress import Progress

    own = caddy_build.own_architecture()
    if not architectures and own not in ARCHITECTURES:
        raise Refused(
            Problem("BW325", f"there is no custom Caddy for this machine's {own}", help="name the box's with --arch")
        )
    with Progress() as progress:
        paths = [builder.build(arch, progress) for arch in architectures or (own,)]
        if builder.work().exists():
            with progress.step("work folder", "taking it away", quiet=True):
                builder.clear()
    for path in paths:
        click.echo(path)


@caddy.command()
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
def info(as_json: bool) -> None:
    """What goes into it, where it lies, and whether it is there."""
    from boxwright import caddy_build

    versions = caddy_build.pinned()
    found: dict[str, Any] = {
        "caddy": versions[caddy_build.CADDY],
        "go": caddy_build.GO_VERSION,
        "licence": caddy_build.LICENCE,
        "modules": {
            **{name: f"{module} {versions[module]}" for name, module in caddy_build.MODULES.items()},
            **dict.fromkeys(caddy_build.OWN_MODULES, "boxwright's own"),
        },
        "programs": {
            arch: {
                "state": caddy_build.state(arch),
                "path": str(caddy_build.binary(arch)),
                "sha256": caddy_build.SHA256[arch],
            }
            for arch in ARCHITECTURES
        },
    }
    if as_json:
        import json

        click.echo(json.dumps(found, indent=2))
        return
    for name in ("caddy", "go", "licence"):
        click.echo(f"{name + ':':<10}{found[name]}")
    for name, module in found["modules"].items():
        click.echo(f"{'module:':<10}{name} ({module})")
    for arch, program in found["programs"].items():
        click.echo(f"{arch + ':':<10}{program['state']}, {program['path']}")
        click.echo(f"{'':<10}sha256 {program['sha256']}")
