"""Docker's client on a Mac: it talks to the container runtime that is there (boxwright/containers.py)."""

from boxwright.containers import CLIENT
from boxwright.facts.homebrew import PREFIX
from boxwright.operations import files, homebrew, programs

FORMULAE = ("docker", "docker-compose")


def client(role: str) -> None:
    """`docker` with its Compose plugin, as root's own copies: a role's steps, not an operation.

    Not every runtime brings them, and what a person's account can change, root does not run.
    """
    homebrew.packages(FORMULAE, name=f"{role}: install Docker's client with Homebrew")
    for formula, path in (("docker", "docker"), ("docker-compose", "cli-plugins/docker-compose")):
        programs.copied(
            f"{PREFIX}/opt/{formula}/bin/{formula}", f"{CLIENT}/{path}", name=f"{role}: root's copy of {formula}"
        )


def client_absent(role: str) -> None:
    """Root's copies are gone; the formulae go with the others that boxwright installed."""
    files.absent(name=f"{role}: remove Docker's client", path=CLIENT, recursive=True)
