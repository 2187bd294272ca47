"""Renders the Jinja2 templates of the repository: values in, text out."""

from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from boxwright.paths import repository_root


@cache
def _environment() -> Environment:
    # Configuration files, not web pages: nothing here is HTML, so nothing is escaped for it.
    return Environment(  # noqa: S701
        loader=FileSystemLoader(repository_root() / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, /, **values: Any) -> str:
    """Text of `template` (a path below templates/) with `values`.

    Raises jinja2.UndefinedError when the template asks for a value that was not given.
    """
    return _environment().get_template(template).render(**values)
