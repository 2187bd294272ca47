"""Services: defined, running with what is on the disk now, or gone; by systemd, or by launchd on a Mac.

What must be done is derived from what the system and the service's own records say, never from what this run changed: a
run that was killed between the change of a file and the restart is completed by the next one.
"""

from collections.abc import Sequence

from pyinfra.api.exceptions import OperationValueError

from boxwright.operations import launchd, systemd
from boxwright.operations.api import Commands, operation
from boxwright.platforms import system
from boxwright.services import PackagedService, Service


def with_copies(path: str) -> tuple[str, ...]:
    """A file that may be rolled back, after all that `running` and `reloaded` keep beside it: what goes with it."""
    return tuple(path + kind for kind in (".good", ".bad", ".asked", ""))


def _ours(service: Service | PackagedService) -> Service:
    if isinstance(service, PackagedService):
        raise OperationValueError(f"the service {service.name} comes with a Linux package: there is none on a Mac")
    return service


@operation()
def unit(service: Service | PackagedService) -> Commands:
    """The system knows `service` as it is described; the process itself is left alone (see `running`).

    The definition can be read by every user of the box: a secret belongs into the service's `environment_file`.
    """
    yield from launchd.unit(_ours(service)) if system() == "darwin" else systemd.unit(service)


@operation()
def unit_absent(service: Service | PackagedService) -> Commands:
    """`service` is stopped and gone: unit file, enablement and records. Of a packaged service only our drop-in goes.

    What the service keeps in its folders stays. On a Mac its log goes: nobody would rotate it any more.
    """
    yield from launchd.unit_absent(_ours(service)) if system() == "darwin" else systemd.unit_absent(service)


@operation()
def running(service: Service | PackagedService, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> Commands:
    """`service` starts at boot and runs, ready, with its unit and files as they are on the disk now.

    It is restarted when its unit, a drop-in, one of its `restart_files` or its program changed since its start, and
    reloaded when only `reload_files` did, or restarted where it cannot be reloaded: check such files before they are
    put in place (`validate` of `files.content`). Returns when the service is ready; a service that does not get there
    fails the step with the last 20 lines of its log.

    `answers` is a command on the box that must succeed after each start and reload. When it does not, or the service
    does not start, the files `roll_back` (paths without spaces, that of the unit may be one) get the content back with
    which it last did, which is kept beside them as `<path>.good`, the service is reloaded or restarted with it, as it
    was with the new one, and the step fails all the same. The new content is left as `<path>.bad`.
    """
    if system() == "darwin":
        yield from launchd.running(_ours(service), answers, roll_back)
    else:
        yield from systemd.running(service, answers, roll_back)


@operation()
def scheduled(service: Service) -> Commands:
    """`service` is started at its `schedule`, now and after the next boot. It is not started here."""
    yield from launchd.scheduled(service) if system() == "darwin" else systemd.scheduled(service)


@operation()
def reloaded(service: Service, answers: Sequence[str] = (), roll_back: Sequence[str] = ()) -> Commands:
    """The running process of `service` has read its `reload_files` as they are now. It is not restarted, whatever else
    changed. `answers` and `roll_back` are as in `running`; a service that does not run is an error.
    """
    if system() == "darwin":
        yield from launchd.reloaded(service, answers, roll_back)
    else:
        yield from systemd.reloaded(service, answers, roll_back)


@operation()
def stopped(service: str) -> Commands:
    """The service `service`, whoever made it, does not run and does not start at boot; its definition stays.

    On Linux it is the name of a systemd service, on a Mac a label of launchd or the name of a Homebrew service, of
    every user who is logged in. That it once ran is not remembered: whoever wants it back enables it.
    """
    yield from launchd.stopped(service) if system() == "darwin" else systemd.stopped(service)
