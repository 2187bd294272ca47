"""The `boxwright` command. Only click is imported at the top: help and completion are quick, the rest when needed.

Exit codes: 0 done, 1 failed, 2 refused (nothing was changed), 3 changes pending (`plan --exit-code`), 130 interrupted
(143 when terminated). Data goes to standard output, words to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from boxwright.errors import BoxwrightError, Problem, Style
    from boxwright.results import RunResult

FORMATS = ("full", "concise", "json")
CLIENT_PARTS = ("env", "curl", "python", "browser", "models")
PENDING = 3
STACK, REMOVE = "deploys/stack.py", "deploys/remove.py"


class _Commands(click.Group):
    """The top group; those that are added here are read only when they are named or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "caddy", "document", "key", "lab", "mirror", "token"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "caddy":
            from boxwright.caddy_build.cli import caddy

            return caddy
        if cmd_name == "document":
            from boxwright.document_cli import document

            return document
        if cmd_name == "key":
            from boxwright.key_cli import key

            return key
        if cmd_name == "lab":
            from boxwright.lab.cli import lab

            return lab
        if cmd_name == "mirror":
            from boxwright.site_mirror.cli import mirror

            return mirror
        if cmd_name == "token":
            from boxwright.token_cli import token

            return token
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="boxwright", message="%(prog)s %(version)s")
def cli() -> None:
    """Turns bare machines into private, authenticated LLM servers, and proves that they are.

    The target is the inventory named by --inventory or $BOXWRIGHT_INVENTORY, else inventory/hosts.yml, else the lab.
    """


def options_of(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


INVENTORY_OPTIONS = options_of(
    click.option("-i", "--inventory", type=click.Path(path_type=Path), help="An Ansible inventory."),
    click.option("-l", "--limit", metavar="HOSTS", help="Only these hosts or groups, separated by commas."),
)
_FORMAT = options_of(
    click.option("--format", "style", type=click.Choice(FORMATS), default="full", help="How problems are shown."),
    click.option(
        "--json", "style", flag_value="json", help="The same as --format json: the result, on standard output."
    ),
)
_RUN = options_of(
    INVENTORY_OPTIONS,
    _FORMAT,
    click.option("-v", "verbosity", count=True, help="Also what did not change; -vv commands, -vvv their output."),
    click.option("--diff", is_flag=True, help="Show how files change (never those with secrets)."),
    click.option("--plain", is_flag=True, help="Only append plain lines; so it is anyway without a terminal."),
)


@cli.command()
@_RUN
@click.option("--exit-code", "tell", is_flag=True, help=f"End with {PENDING} when changes are pending.")
def plan(tell: bool, **options: Any) -> None:
    """Show what `apply` would change. Touches nothing."""
    result, style = run_deploy(STACK, dry=True, **options)
    _finish(result, style, PENDING if tell and result.changed + _depending(result) else 0)


@cli.command()
@_RUN
@click.option("--no-check", is_flag=True, help="Do not ask the box from outside when done.")
def apply(no_check: bool, inventory: Path | None, limit: str | None, **options: Any) -> None:
    """Bring the boxes to what the inventory says. A second time changes nothing."""
    result, style = run_deploy(STACK, inventory=inventory, limit=limit, **options)
    if result.exit_code == 0 and not no_check:
        result.problems += _summaries(inventory, limit)
        _say_problems(result.problems, style)
    _finish(result, style)


@cli.command()
@_RUN
@click.option("--purge", is_flag=True, help="Also delete data: chats, models, generated state on the box.")
def remove(purge: bool, **options: Any) -> None:
    """Take away what `apply` added; data only with --purge."""
    result, style = run_deploy(REMOVE, data={"purge": True} if purge else None, **options)
    _finish(result, style)


def run_deploy(
    deploy: str,
    *,
    style: str,
    verbosity: int,
    plain: bool,
    inventory: Path | None = None,
    limit: str | None = None,
    data: dict[str, Any] | None = None,
    dry: bool = False,
    diff: bool = False,
) -> tuple[RunResult, str]:
    """Run `deploy` (a path below the repository) and report it on standard error; the result, and the style."""
    from boxwright import runner  # before any other import that touches sockets
    from boxwright.output import Output
    from boxwright.paths import repository_root
    from boxwright.results import report

    output = Output(plain=plain, verbosity=verbosity)
    options = ["--dry" if dry else "-y", *(["--diff"] if diff else [])]
    output.line(f"the same as: {_plain_command(deploy, inventory, limit, options, data)}", "faint")
    result = runner.run(
        repository_root() / deploy, inventory=inventory, limit=limit, dry=dry, data=data, diff=diff, output=output
    )
    report(result, output, style=_shown(style))
    return result, style


def _plain_command(
    deploy: str, inventory: Path | None, limit: str | None, options: list[str], data: dict[str, Any] | None
) -> str:
    """The pyinfra command that does the same, as typed in the folder of this repository."""
    import shlex

    words = ["pyinfra", "inventory.py", deploy, *options]
    for name in (limit or "").split(","):
        words += ["--limit", name.strip()] if name.strip() else []
    for key, value in (data or {}).items():
        words += ["--data", f"{key}={str(value).lower()}"]
    return (f"BOXWRIGHT_INVENTORY={shlex.quote(str(inventory))} " if inventory else "") + shlex.join(words)


def _depending(result: RunResult) -> int:
    return sum(len(host.depends) for host in result.hosts.values())


def _summaries(inventory: Path | None, limit: str | None) -> list[Problem]:
    """Ask each box from outside; say where it answers. Returns what is wrong with those that do not."""
    from boxwright.connection import from_variables
    from boxwright.errors import BoxwrightError
    from boxwright.inventory import load
    from boxwright.output import Output
    from boxwright.outside import Outside
    from boxwright.summary import summary

    output = Output()
    problems: list[Problem] = []
    for host in load(inventory, limit=limit):
        connection = from_variables(host.name, host.variables)
        try:
            with Outside(host.box, connection) as outside:
                outside.check()
        except BoxwrightError as error:
            problems += error.problems
            continue
        output.line()
        for line in summary(host.box, connection, "make test" if "lab" in host.groups else "boxwright verify"):
            output.line(line)
    return problems


def _finish(result: RunResult, style: str, pending: int = 0) -> NoReturn:
    if style == "json":
        import json

        from boxwright.masking import mask

        click.echo(mask(json.dumps(result.to_json(), indent=2, ensure_ascii=False)))
    _leave(result.exit_code or pending)


def _leave(code: int) -> NoReturn:
    """End now. Commands that still run on a box, and threads that wait for them, are not waited for."""
    for stream in (sys.stdout, sys.stderr):
        finish = getattr(stream, "finish", None)  # of a masked stream: what waits for more text is printed now
        if finish:
            finish()
        stream.flush()
    os._exit(code)


@cli.command()
@INVENTORY_OPTIONS
@_FORMAT
@click.option("-k", "keyword", metavar="WORDS", help="Only checks whose name matches, as pytest's -k.")
def verify(inventory: Path | None, limit: str | None, style: str, keyword: str | None) -> None:
    """Check the boxes from inside and from outside."""
    from boxwright.testing.verify import verify as run_checks

    raise SystemExit(run_checks(inventory=inventory, limit=limit, keyword=keyword, as_json=style == "json"))


@cli.command()
@INVENTORY_OPTIONS
@_FORMAT
def validate(inventory: Path | None, limit: str | None, style: str) -> None:
    """Check the inventory and its variables; connects to nothing."""
    from boxwright.inventory import load
    from boxwright.output import count

    hosts = load(inventory, limit=limit)
    if style == "json":
        click.echo(_problems_json([]))
    else:
        click.echo(f"{count(len(hosts), 'host')} valid: {', '.join(host.name for host in hosts)}", err=True)


@cli.command()
@click.argument("word")
def explain(word: str) -> None:
    """Explain WORD: an error code, a variable, a role, or the path of a file on a box."""
    from boxwright import explain as explaining
    from boxwright.inventory import box_class
    from boxwright.settings import RENAMED

    click.echo(explaining.explain(word, box_class(), RENAMED), nl=False)


@cli.command()
@click.option("--token", "name", metavar="NAME", help="Fill in the token of this client. It is a secret.")
@click.option("--part", "parts", multiple=True, type=click.Choice(CLIENT_PARTS), help="Only this part; repeatable.")
@INVENTORY_OPTIONS
def client(name: str | None, parts: tuple[str, ...], inventory: Path | None, limit: str | None) -> None:
    """Print what is pasted to use a box: environment, curl, Python, a web page, and the table of models."""
    from boxwright.client import guide
    from boxwright.errors import Problem, Refused
    from boxwright.inventory import load
    from boxwright.outside import ca_file

    found: list[Any] = list(load(inventory, limit=limit))
    tokens = {host.name: host.box.gateway.tokens for host in found}
    if name is not None:
        found = [host for host in found if name in tokens[host.name]]
        if not found:
            known = ", ".join(sorted({each for names in tokens.values() for each in names})) or "none"
            raise Refused(
                Problem(
                    code="BW040",
                    message=f"there is no token {name}",
                    variable="gateway_tokens",
                    help=f"boxwright token add {name}    (there are: {known})",
                )
            )
    for host in found:
        if host.box.inference.main is None:
            click.echo(f"{host.name} serves no model", err=True)
            continue
        key = tokens[host.name][name].get_secret_value() if name is not None else ""
        text = guide(host.box, ca_file(host.box), key, parts=parts or CLIENT_PARTS)
        # Past sys.stdout, where secrets are masked: a token is shown only when it was asked for.
        os.write(1, text.encode())


@cli.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@INVENTORY_OPTIONS
def sidecar(folder: Path, inventory: Path | None, limit: str | None) -> None:
    """Write a Tailscale container for a Compose project of one's own into FOLDER, serving what a host declares.

    A Mac is asked which container runtime it has, and the command that starts the project there is printed.
    """
    from boxwright import sidecar as writing
    from boxwright.errors import Problem, Refused
    from boxwright.inventory import load

    hosts: list[Any] = list(load(inventory, limit=limit))
    if len(hosts) != 1:
        names = ", ".join(host.name for host in hosts)
        raise Refused(
            Problem(code="BW154", message=f"one container is for one host, not for {names}", help="use --limit")
        )
    for name, text in writing.files(hosts[0].box).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        click.echo(path)
    if hosts[0].box.system == "darwin":
        click.echo(_where_it_runs(hosts[0]), err=True)


def _where_it_runs(host: Any) -> str:
    """In which container runtime of the Mac `host`; when that cannot be asked, why."""
    from boxwright import sidecar as writing
    from boxwright.errors import BoxwrightError
    from boxwright.facts.containers import ContainerRuntimes
    from boxwright.testing import hosts

    fact = ContainerRuntimes()
    command = str(fact.command(host.box.host.container_socket).get_raw_value())
    try:
        hosts.use([host])
        done = hosts.BoxBackend(host.name).run(command)
        if done.rc:
            raise RuntimeError(done.stderr.strip())
    except (BoxwrightError, RuntimeError) as error:
        return f"{host.name} could not be asked which container runtime it has: {error}"
    return writing.started_by(host.box, fact.process(done.stdout.splitlines()))


@cli.group()
def secret() -> None:
    """Secrets that are kept on this machine."""


@secret.command()
@click.argument("variable")
@INVENTORY_OPTIONS
def show(variable: str, inventory: Path | None, limit: str | None) -> None:
    """Print the secret VARIABLE (for example gateway_password) of a host."""
    from boxwright.errors import Problem, Refused
    from boxwright.inventory import load

    found = [(host.name, value) for host in load(inventory, limit=limit) if (value := _secret(host.box, variable))]
    if not found:
        raise Refused(Problem(code="BW012", message=f"`{variable}` is not a secret of these hosts", variable=variable))
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise Refused(
            Problem(code="BW006", message=f"there are several hosts: {names}", help="choose one with --limit")
        )
    # Past sys.stdout, where secrets are masked: this one is what was asked for.
    os.write(1, f"{found[0][1]}\n".encode())


def _secret(box: Any, variable: str) -> str | None:
    for role in type(box).model_fields:
        if variable.startswith(f"{role}_"):
            value = getattr(getattr(box, role), variable.removeprefix(f"{role}_"), None)
            if (reveal := getattr(value, "get_secret_value", None)) is not None:
                return str(reveal())
    return None


@cli.command()
@click.option("--check", is_flag=True, help="Write nothing; end with 1 when a generated page is out of date.")
def docs(check: bool) -> None:
    """Write the pages and schemas that are generated from the roles' settings."""
    from boxwright import reference
    from boxwright.paths import repository_root

    root = repository_root()
    stale = reference.check(root) if check else reference.write(root)
    for path in stale:
        click.echo(f"{'out of date' if check else 'written'}: {path}", err=True)
    if check and stale:
        raise SystemExit(1)


# Errors


def _problems_json(problems: Any) -> str:
    from boxwright.errors import render

    return render(problems, style="json")


def _shown(style: str) -> Style:
    """How problems are shown to people; with --json they are part of the JSON and are said in full as well."""
    return "concise" if style == "concise" else "full"


def _say_problems(problems: Any, style: str) -> None:
    if problems:
        from boxwright.errors import render
        from boxwright.output import Output

        output = Output()
        output.line()
        output.line(render(problems, style=_shown(style), color=output.colour))


def _wanted_style(arguments: list[str]) -> str:
    """The style that the command line asks for, also when it was never parsed to its end."""
    for style in FORMATS:
        if f"--format={style}" in arguments or (
            "--format" in arguments and arguments[arguments.index("--format") + 1 :][:1] == [style]
        ):
            return style
    return "json" if "--json" in arguments else "full"


def _refused(error: BoxwrightError, arguments: list[str]) -> int:
    style = _wanted_style(arguments)
    if style == "json":
        click.echo(_problems_json(error.problems))
    else:
        from boxwright.errors import render
        from boxwright.output import Output

        output = Output()
        output.line(render(error.problems, style=_shown(style), color=output.colour))
    return error.exit_code


def _unexpected(error: BaseException) -> int:
    """A fault of boxwright itself: one line for the person, the traceback for the log, secrets masked in both."""
    import traceback
    from datetime import datetime

    from boxwright.masking import mask
    from boxwright.paths import state_dir

    text = mask("".join(traceback.format_exception(error)))
    line = mask(f"boxwright: {type(error).__name__}: {error}".splitlines()[0])
    try:
        folder = state_dir() / "log"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-error-{os.getpid()}.log"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        line += f" (details: {path})"
    except OSError as cannot:
        line += f" (and no log could be written: {cannot})"
    click.echo(line, err=True)
    return 1


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; ends the process with an honest exit code and never with a traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = cli.main(args=given, prog_name="boxwright", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:
        # The reader went away (`| head`); click ends with 1 for it too. Python's own last flush must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    except ModuleNotFoundError as error:
        click.echo(
            f"error: the boxwright command needs the Python package that has the module {error.name}\n"
            "  = help: install the control machine's packages too: pip install 'boxwright[control]'",
            err=True,
        )
        code = 2
    except Exception as error:
        from boxwright.errors import BoxwrightError

        code = _refused(error, given) if isinstance(error, BoxwrightError) else _unexpected(error)
    raise SystemExit(code if isinstance(code, int) else 0)
