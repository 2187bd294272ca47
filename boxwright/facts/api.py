"""What every fact of this package is: one remote command, and a parser of its lines."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from pyinfra.api import FactBase

T = TypeVar("T")


class Fact(FactBase, Generic[T]):  # type: ignore[misc]  # pyinfra is not checked
    """A pyinfra fact with types.

    `command` makes the remote command, `process` reads its lines and raises FactProcessError for any that it does not
    know. Where either fails, pyinfra fails the host, and whoever asked is given None.
    """

    command: Any

    @abstractmethod
    def process(self, output: Sequence[str]) -> T:
        """The value that the lines of `output` say."""
