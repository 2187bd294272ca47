"""`boxwright document ...`: texts that a box's API service looks up passages in. Only click is imported at the top.

They go to the service's admin API over SSH, as keys do (boxwright/api_admin.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.api_cli import JSON, TARGET, service, show

if TYPE_CHECKING:
    from boxwright.api_admin import AdminApi

# Bytes; the service takes no more (boxwright_api/documents.py), and closes the connection on whoever sends it.
LARGEST = 1024**2

COLLECTION = click.argument("collection")


@click.group(name="document")
def document() -> None:
    """Documents of the API service, from which a request can have passages given to the model.

    They are in collections; which of them a key may ask for is said by `boxwright key add --collection NAME`.
    """


@document.command()
@COLLECTION
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", help="What a single file is called there. Left out: its own name.")
@TARGET
def add(collection: str, files: tuple[Path, ...], name: str | None, **target: Any) -> None:
    """Put each FILE, plain text in UTF-8, into COLLECTION, which is made with the first one.

    A document of the same name is replaced; until the new one is complete, the old one is found.
    """
    if name is not None and len(files) > 1:
        raise click.UsageError("--name is for one file")
    texts: dict[str, bytes] = {}
    for file in files:
        called = name or file.name
        if called in texts:
            raise click.UsageError(f"there are two files called {called}; add them one by one, with --name")
        texts[called] = _read(file)
    with _api(**target) as api:
        for called, text in texts.items():
            made = api.put_document(collection, called, text)
            told = f"{made.get('passages')} passages, {made.get('tokens')} tokens"
            click.echo(f"{api.host.name} has {_clean(called)} in {_clean(collection)}: {told}", err=True)


@document.command(name="list")
@click.argument("collection", required=False)
@TARGET
@JSON
def list_(collection: str | None, as_json: bool, **target: Any) -> None:
    """List the documents of COLLECTION, or all collections."""
    from boxwright.key_text import moment, table

    with _api(**target) as api:
        found = api.collections() if collection is None else api.documents(collection)
    if collection is None:
        rows = [(one["name"], *map(str, (one["documents"], one["passages"]))) for one in found]
        lines = table(("collection", "documents", "passages"), rows, numbers=2)
    else:
        rows = [
            (one["name"], moment(one["added_at"]), *map(str, (one["characters"], one["passages"]))) for one in found
        ]
        lines = table(("document", "added", "characters", "passages"), rows, numbers=2)
    show(found, as_json, lines)
    if not found:
        click.echo("there are no documents; boxwright document add COLLECTION FILE adds one", err=True)


@document.command()
@COLLECTION
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="The whole collection.")
@TARGET
def remove(collection: str, names: tuple[str, ...], everything: bool, **target: Any) -> None:
    """Take the documents NAME out of COLLECTION, or all of it away."""
    if bool(names) == everything:
        raise click.UsageError("name documents, or --all")
    with _api(**target) as api:
        if everything:
            api.remove_collection(collection)
            click.echo(f"{api.host.name} has no collection {_clean(collection)} any more", err=True)
        for name in names:
            api.remove_document(collection, name)
            click.echo(f"{api.host.name} has no {_clean(name)} in {_clean(collection)} any more", err=True)


def _api(**target: Any) -> AbstractContextManager[AdminApi]:
    return service(**target, look="boxwright document list COLLECTION")


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            text = opened.read(LARGEST + 1)
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from None
    if len(text) > LARGEST:
        raise click.UsageError(f"{file} is larger than {LARGEST} bytes: split it into several documents")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise click.UsageError(
            f"{file} is not plain text in UTF-8: turn it into text first, a PDF with pdftotext"
        ) from None
    return text


def _clean(text: str) -> str:
    from boxwright.key_text import clean

    return clean(text)
