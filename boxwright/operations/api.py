"""How an operation of this package is made: pyinfra's decorator, with types, and content that pyinfra never prints."""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, cast

from pyinfra.api import StringCommand
from pyinfra.api import operation as pyinfra_operation

P = ParamSpec("P")
Operation = Callable[..., Any]  # called with the function's arguments and pyinfra's global ones (name, _if, _sudo ...)
Commands = Iterator[StringCommand]


class Content(str):
    """Text that shows only its size where it is printed.

    pyinfra prints the arguments of an operation that has no name, so content must not be an ordinary string there.
    """

    def __str__(self) -> str:
        return f"<{len(self.encode())} bytes>"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    @property
    def text(self) -> str:
        """The text itself, as an ordinary string."""
        return "".join(self)


def operation(*, content: Sequence[str] = ()) -> Callable[[Callable[P, Commands]], Operation]:
    """Makes a pyinfra operation of a generator of commands; the arguments named in `content` are never printed."""

    def decorate(function: Callable[P, Commands]) -> Operation:
        made = cast(Operation, pyinfra_operation()(function))
        if not content:
            return made
        names = list(signature(function).parameters)

        def hide(name: str, value: object) -> object:
            return Content(value) if name in content and isinstance(value, str) else value

        @wraps(made)
        def call(*args: Any, **kwargs: Any) -> Any:
            args = tuple(hide(name, value) for name, value in zip(names, args, strict=False)) + args[len(names) :]
            return made(*args, **{name: hide(name, value) for name, value in kwargs.items()})

        return call

    return decorate
