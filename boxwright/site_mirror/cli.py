"""`boxwright mirror ...`: a mirror for a site without internet. Only click is imported at the top: help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

RELEASES = ("debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04", "ubuntu-26.04")
ARCHITECTURES = ("amd64", "arm64")


@click.group(name="mirror")
def mirror() -> None:
    """A mirror for a site without internet."""


@mirror.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("-i", "--inventory", type=click.Path(path_type=Path), help="An Ansible inventory.")
@click.option("-l", "--limit", metavar="HOSTS", help="Only for these hosts or groups, separated by commas.")
@click.option(
    "--release", "releases", multiple=True, type=click.Choice(RELEASES), help="What the boxes run; repeatable."
)
@click.option(
    "--arch",
    "architectures",
    multiple=True,
    default=("amd64",),
    show_default=True,
    type=click.Choice(ARCHITECTURES),
    help="The boxes' processor; repeatable.",
)
@click.option(
    "--images/--no-images",
    "with_images",
    default=True,
    show_default=True,
    help="Container images too, as the folder of a registry; without, the site's own registry must have them.",
)
@click.option("--dry-run", is_flag=True, help="Say what there is to fetch and how large it is, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask before fetching.")
@click.option("--check", "read", is_flag=True, help="Read every file that is there again, whatever was noted of it.")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON, on standard output.")
def build(
    folder: Path,
    inventory: Path | None,
    limit: str | None,
    releases: tuple[str, ...],
    architectures: tuple[str, ...],
    with_images: bool,
    dry_run: bool,
    yes: bool,
    read: bool,
    as_json: bool,
) -> None:
    """Fill FOLDER with what the boxes of an inventory fetch; any web server can then serve it as `mirror_url`.

    First it says each file with its size, and how much is to be fetched. An interrupted run is continued by the next
    one; when everything is there, nothing is fetched.
    """
    from boxwright.errors import Problem, Refused
    from boxwright.inventory import load
    from boxwright.output import Output
    from boxwright.site_mirror import builder, supply
    from boxwright.sizes import human

    if not releases:
        raise Refused(
            Problem(
                code="BW165",
                message="nothing says what the boxes run, and packages and wheels differ with it",
                help=f"name it: --release {' or --release '.join(RELEASES)}",
            )
        )
    targets = [supply.Target(release, architecture) for release in releases for architecture in architectures]
    output = Output()
    boxes: list[Any] = [host.box for host in load(inventory, limit=limit)]
    site = builder.Site(folder, say=lambda line: output.line(f"fetching {line}"))
    plan = site.plan(supply.wanted(boxes, targets), read, with_images)
    if as_json:
        _print_json(plan, folder)
    for line in [] if as_json else builder.table(plan):
        click.echo(line)
    output.line(f"free where {folder} is: {human(_free(folder))}")
    signed = sorted({box.name for box in boxes if box.mirror.key_fingerprint})
    if signed and any(item.kind == "package" for item in plan.items):
        output.line(
            f"note: {', '.join(signed)} expect package repositories signed by `mirror_key_fingerprint`; these are "
            "copies as their publishers signed them"
        )
    for remark in plan.remarks:
        output.line(f"note: {remark}")
    for image in plan.images:
        output.line(f"not fetched here, but needed in the site's registry: {image}")
    if dry_run or not plan.missing:
        output.line("nothing was fetched" if plan.missing else f"{folder} holds everything")
        return
    site.require_space(plan)
    if not yes:
        if not sys.stdin.isatty():
            raise Refused(
                Problem(
                    code="BW165",
                    message="nobody is there to be asked whether this shall be fetched",
                    help="say --yes, or --dry-run to see the list alone",
                )
            )
        click.confirm("fetch it?", abort=True, err=True)
    count = site.fill(plan)
    output.line(f"{count} files were fetched; {folder} holds everything")


def _free(folder: Path) -> int:
    from boxwright.lab.machine import free_bytes

    return free_bytes(folder)


def _print_json(plan: object, folder: Path) -> None:
    import json

    from boxwright.site_mirror.builder import Plan

    assert isinstance(plan, Plan)  # noqa: S101 -- for the type checker
    files = [
        {
            "kind": item.kind,
            "name": item.name,
            "path": item.path,
            "size": item.size,
            "there": item.path not in plan.missing,
        }
        for item in plan.items
    ]
    told = {
        "folder": str(folder),
        "files": files,
        "images": plan.images,
        "bytes": plan.bytes,
        "to_fetch": plan.to_fetch,
    }
    click.echo(json.dumps({**told, "free": _free(folder)}, indent=2))
