"""Reads an inventory with ansible-core's own loaders and says in our words what is wrong in it."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxwright import masking, quiet_ansible
from boxwright.connection import from_variables
from boxwright.describe import looks_secret
from boxwright.errors import Location, Problem, Refused, display_path
from boxwright.inventory import InventoryHost, located, merged, select
from boxwright.secrets import SecretStore
from boxwright.settings import BoxBase, is_secret, parse_box, variable_fields

_YAML = (".yml", ".yaml", ".json")
# Values of these are secrets, whatever role a host has.
_PASSWORDS = (
    "ansible_password",
    "ansible_ssh_pass",
    "ansible_ssh_password",
    "ansible_become_password",
    "ansible_become_pass",
    "ansible_sudo_pass",
)
_EXAMPLE = "put your machine into it, for example\n  linux:\n    hosts:\n      box1:\n        ansible_host: 192.0.2.10"
_VAULT_MESSAGE = re.compile("no vault secrets (were )?found|Vault (envelope|vaulttext) format error")
_VAULT_WAYS = (
    "name the file that holds it in the environment: ANSIBLE_VAULT_PASSWORD_FILE=~/.vault_password\n"
    "or in ansible.cfg: vault_password_file = ~/.vault_password (section [defaults])"
)


class Loader:
    """Reads one inventory; collects every problem on the way. Used once."""

    def __init__(self, path: Path, root: Path, box_class: type[BoxBase]) -> None:
        quiet_ansible.prepare()
        from boxwright import origins  # here, because it brings ansible-core with it

        self.origins = origins
        self.path = path
        self.store = SecretStore()
        self.box_class = box_class
        self.known = variable_fields(self.box_class)
        self.loader = origins.DataLoader()
        # group_vars/ and host_vars/ of the repository count as those beside a playbook.
        self.loader.set_basedir(str(root))
        self.problems: list[Problem] = []

    def load(self, limit: str | None) -> tuple[InventoryHost, ...]:
        with self._ansible() as warnings:
            self._open_vault()
            self._check_structure()
            self._stop_on_problems()
            manager = self._read_inventory(warnings)
            hosts = self._hosts(manager, limit)
        self._stop_on_problems()
        return hosts

    @contextmanager
    def _ansible(self) -> Iterator[list[tuple[str, BaseException | None]]]:
        """ansible-core as it is wanted here: silent, with trustworthy keys, strict about keys written twice."""
        self.origins.keep_newest_keys()
        self.origins.forget_files()
        setting = "ANSIBLE_DUPLICATE_YAML_DICT_KEY"
        before = os.environ.get(setting)
        if self.origins.refuses_duplicate_keys():
            os.environ[setting] = "error"
        try:
            with self.origins.quietly() as warnings:
                yield warnings
        finally:
            if before is None:
                os.environ.pop(setting, None)
            else:
                os.environ[setting] = before

    def _stop_on_problems(self) -> None:
        if self.problems:
            raise Refused(merged(self.problems))

    # Vault

    def _open_vault(self) -> None:
        """Gives ansible-core the passwords named by the usual settings. None is asked for: runs must not hang."""
        constants = self.origins.constants
        named: list[tuple[str, str]] = []
        for identity in constants.DEFAULT_VAULT_IDENTITY_LIST or []:
            label, _, file = str(identity).rpartition("@")
            named.append((label or constants.DEFAULT_VAULT_IDENTITY, file))
        default = [constants.DEFAULT_VAULT_PASSWORD_FILE, os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE")]
        # Read from the environment here as well: ansible-core looks at it only once in a process.
        for password_file in filter(None, default):
            absolute = str(Path(str(password_file)).expanduser().absolute())
            named.append((constants.DEFAULT_VAULT_IDENTITY, absolute))
        passwords: list[tuple[str, Any]] = []
        for label, file in dict.fromkeys(named):
            if file in ("prompt", "prompt_ask_vault_pass"):
                continue
            try:
                secret = self.origins.get_file_vault_secret(filename=file, vault_id=label, loader=self.loader)
                secret.load()
            except Exception as error:
                self.problems.append(
                    Problem(
                        code="BW033",
                        message=f"the vault password cannot be had from {display_path(file)}: {_first_line(error)}",
                        location=Location(str(Path(file).expanduser().absolute())),
                        help=_VAULT_WAYS,
                        sensitive=True,
                    )
                )
                continue
            passwords.append((label, secret))
            self.loader.set_vault_secrets(passwords)
        self.origins.use_vault_secrets(passwords)
        self.has_vault_password = bool(passwords)

    # The inventory itself

    def _files(self) -> list[Path]:
        """The YAML files of the inventory; the others are left to Ansible's plugins."""
        if self.path.is_dir():
            return [entry for entry in sorted(self.path.iterdir()) if entry.is_file() and entry.suffix in _YAML]
        return [self.path] if self.path.suffix in _YAML else []

    def _check_structure(self) -> None:
        """Says what Ansible would only warn about and then skip, or would report without a place."""
        for file in self._files():
            try:
                data = self.loader.load_from_file(str(file), cache="none", trusted_as_template=True)
            except Exception as error:
                self.problems.append(self._file_problem(error, file))
                continue
            if isinstance(data, Mapping) and "plugin" in data:
                continue
            if data is None:
                self.problems.append(_no_hosts(file))
            elif not isinstance(data, Mapping):
                self._structure(data, file, "an inventory is a mapping of groups", _EXAMPLE)
            else:
                for name, group in data.items():
                    self._check_group(name, group, file)

    def _check_group(self, name: Any, group: Any, file: Path) -> None:
        sections = ("hosts", "children", "vars")
        if group is None:
            return
        if not isinstance(group, Mapping):
            message = f"the group `{name}` must be a mapping of `hosts`, `children` and `vars`"
            self._structure(name, file, message, f"for example\n{name}:\n  hosts:\n    box1:")
            return
        for key, value in group.items():
            if key not in sections:
                near = difflib.get_close_matches(str(key), sections, n=1)
                way_out = f"did you mean `{near[0]}`?" if near else "put hosts under `hosts`, variables under `vars`"
                message = f"`{key}` is not a part of a group, and Ansible would skip it (in the group `{name}`)"
                self._structure(key, file, message, way_out, code="BW005")
            elif value is not None and not isinstance(value, Mapping):
                item = "some_variable: 1" if key == "vars" else "box1:"
                way_out = f"write each with a colon and no dash:\n{key}:\n  {item}"
                self._structure(key, file, f"`{key}` of the group `{name}` must be a mapping", way_out)
            elif key == "children":
                for child, inner in (value or {}).items():
                    self._check_group(child, inner, file)
            elif key == "hosts":
                for host, variables in (value or {}).items():
                    if not isinstance(host, str):
                        self._structure(host, file, f"the host name {host} must be text", f'put it in quotes: "{host}"')
                    elif variables is not None and not isinstance(variables, Mapping):
                        message = f"the variables of the host `{host}` must be a mapping"
                        self._structure(host, file, message, f"for example\n{host}:\n  ansible_host: 192.0.2.10")

    def _structure(self, at: Any, file: Path, message: str, way_out: str | None = None, code: str = "BW002") -> None:
        location = self.origins.place(at) or Location(str(file))
        self.problems.append(Problem(code=code, message=message, location=location, help=way_out))

    def _read_inventory(self, warnings: list[tuple[str, BaseException | None]]) -> Any:
        try:
            manager = self.origins.InventoryManager(loader=self.loader, sources=[str(self.path)])
        except Exception as error:
            raise Refused(self._file_problem(error, self.path)) from error
        # For a file that no plugin could read, each that tried says why; the one for the file's kind says it best.
        failures: dict[Path, BaseException] = {}
        for text, cause in warnings:
            if cause is not None:
                told = self.origins.error_place(cause)
                file = Path(self.origins.parsed_source(cause) or (told.path if told else self.path))
                if file not in failures or ("'yaml'" if file.suffix in _YAML else "'ini'") in text:
                    failures[file] = cause
        if failures:
            raise Refused([self._file_problem(cause, file) for file, cause in failures.items()])
        return manager

    def _file_problem(self, error: BaseException, file: Path) -> Problem:
        """What ansible-core says about a file that it could not read."""
        location = self.origins.error_place(error) or Location(str(file))
        chain = list(self.origins.error_chain(error))
        if problem := self._vault_problem(chain, location):
            return problem
        told = next((link for link in chain if type(link).__name__ == "AnsibleYAMLParserError"), None)
        if told is not None:
            text = _first_line(told).removeprefix("YAML parsing failed: ").rstrip(".")
            if duplicate := re.match(r"Found duplicate mapping key '?(.+?)'?$", text):
                return Problem(
                    code="BW019",
                    message=f"`{duplicate.group(1)}` is set twice in one mapping",
                    variable=duplicate.group(1),
                    location=location,
                    help="keep one of them",
                    sensitive=looks_secret(duplicate.group(1)),
                )
            if "surrogates not allowed" in text:
                text = "the file is not in UTF-8"
            return Problem(
                code="BW003",
                message=f"not valid YAML: {text}",
                location=location,
                help=_yaml_help(text),
                sensitive=_line_looks_secret(location),
            )
        if no_mapping := re.search(r"Could not process '([^']+)'", str(error)):
            return Problem(
                code="BW002",
                message="a file of variables must be a mapping of names to values",
                location=Location(no_mapping.group(1)),
                help="write each variable on a line of its own: name: value",
            )
        text = _first_line(error).removeprefix("Failed to parse inventory: ").rstrip(".")
        if "values to unpack" in text:
            text = "a line is not as Ansible wants it, probably one with brackets"
        elif looks_secret(text):
            text = re.split(r"[:']", text)[0].strip()  # what follows is quoted from the file
        return Problem(
            code="BW002",
            message=f"Ansible cannot read this inventory: {text}",
            location=location,
            help="`ansible-inventory --list -i` with this file shows what Ansible makes of it",
        )

    def _vault_problem(
        self, chain: Iterable[BaseException], location: Location | None, variable: str | None = None
    ) -> Problem | None:
        for link in chain:
            if not type(link).__name__.startswith("AnsibleVault") and not _VAULT_MESSAGE.search(str(link)):
                continue
            what = f"`{variable}`" if variable else "this file"
            if not self.has_vault_password:
                return Problem(
                    code="BW008",
                    message=f"{what} is encrypted with ansible-vault, and there is no vault password",
                    variable=variable,
                    location=location,
                    help="\n".join([_VAULT_WAYS, *self.origins.config_warnings()]),
                    sensitive=True,
                )
            return Problem(
                code="BW009",
                message=f"{what} is encrypted with ansible-vault, and the vault password given does not open it",
                variable=variable,
                location=location,
                help="give the password it was encrypted with; if it is that one, the encrypted text is damaged",
                sensitive=True,
            )
        return None

    # The hosts

    def _hosts(self, manager: Any, limit: str | None) -> tuple[InventoryHost, ...]:
        names = [str(name) for name in manager.hosts]
        if not names:
            raise Refused(_no_hosts(self.path))
        groups = {str(name): [str(host.name) for host in group.get_hosts()] for name, group in manager.groups.items()}
        self._check_variable_files(names, list(groups))
        if limit is not None:
            names = select(names, groups, [part.strip() for part in limit.split(",") if part.strip()])
        variables = self.origins.VariableManager(loader=self.loader, inventory=manager)
        others = self.origins.HostVars(manager, variables, self.loader)
        loaded = (self._host(manager.hosts[name], variables, others) for name in names)
        return tuple(host for host in loaded if host is not None)

    def _check_variable_files(self, hosts: list[str], groups: list[str]) -> None:
        """Says which files beside the inventory Ansible would never read for want of one letter."""
        beside = self.path if self.path.is_dir() else self.path.parent
        for folder, known in (("group_vars", groups), ("host_vars", hosts)):
            for file in sorted((beside / folder).glob("[!.]*")):
                name = file.stem if file.suffix in _YAML else file.name
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
                # box1 and box2 are two machines, not a slip.
                if name in known or not near or re.sub(r"\d", "", name) == re.sub(r"\d", "", near[0]):
                    continue
                kind = folder.removesuffix("_vars")
                self.problems.append(
                    Problem(
                        code="BW020",
                        message=f"{folder}/{file.name} is read for no {kind}: there is no {kind} `{name}`",
                        location=Location(str(file)),
                        help=f"did you mean {folder}/{near[0]}{file.suffix}?",
                    )
                )

    def _host(self, host: Any, manager: Any, others: Any) -> InventoryHost | None:
        name = str(host.name)
        groups = tuple(sorted(str(group.name) for group in host.get_groups() if group.name != "all"))
        try:
            written: dict[str, Any] = manager.get_vars(host=host, include_hostvars=False)
        except Exception as error:
            self.problems.append(self._file_problem(error, self.path))
            return None
        written = {str(key) if self.origins.place(key) is None else key: value for key, value in written.items()}
        rendered, failed = self._rendered(name, written, others)
        values = {str(key): self.origins.plain(value) for key, value in rendered.items()}
        self._mask(values)
        locate = self.origins.Places(written, rendered)
        connection = {key: value for key, value in values.items() if key.startswith("ansible_")}
        try:
            from_variables(name, connection)
        except Refused as refused:
            self.problems += [located(problem, name, locate) for problem in refused.problems]
        ours = {str(key): values.get(str(key)) for key in written if str(key) not in failed}
        try:
            set_in = display_path(str(self.path.parent / "group_vars" / "all.yml"))
            # With something to refuse already, no secret is made for this host.
            store = None if any(problem.host == name for problem in self.problems) else self.store
            box = parse_box(self.box_class, name, groups, ours, locate, store, unusable=failed, set_in=set_in)
        except Refused as refused:
            self.problems += refused.problems
            return None
        masking.register(box.secret_values())
        return InventoryHost(name, groups, connection, box, locate)

    def _rendered(self, host: str, written: Mapping[str, Any], others: Any) -> tuple[dict[str, Any], set[str]]:
        """The variables that boxwright reads, after Jinja and vault; and the names of those that cannot be rendered.

        Variables of the user's own are rendered only where one of these uses them.
        """
        engine = self.origins.Templar(loader=self.loader, variables={**written, "hostvars": others})
        magic = {"ansible_facts", "ansible_version", "ansible_config_file", "ansible_playbook_python"}
        rendered: dict[str, Any] = {}
        failed: set[str] = set()
        for key, value in written.items():
            if str(key) not in self.known and (not key.startswith("ansible_") or key in magic):
                continue
            try:
                rendered[key] = engine.template(value)
                self.origins.plain(rendered[key])  # an encrypted text is opened only when it is read
            except Exception as error:
                rendered.pop(key, None)
                failed.add(str(key))
                self.problems.append(self._render_problem(host, str(key), error, written))
        return rendered, failed

    def _render_problem(self, host: str, variable: str, error: Exception, written: Mapping[str, Any]) -> Problem:
        chain = list(self.origins.error_chain(error))
        used = self.origins.Places(written, {})((variable,), "value")
        place = self.origins.error_place(error) or used
        # Inside a list or mapping the error knows the exact line; elsewhere it may be about another variable.
        same = place is not None and used is not None and place.path == used.path and place.line == used.line
        nested = isinstance(written.get(variable), Mapping | list)
        location, source = (place, None) if same or nested or used is None else (used, place)
        if problem := self._vault_problem(chain, location, variable):
            return replace(problem, host=host, source=source)
        text = _first_line(error)
        way_out = "correct the expression, or define what it uses"
        if any(isinstance(one, RecursionError) for one in chain) and (others := _loop(variable, written)):
            # Which of them the error names depends on how deep the stack was.
            through = f", by way of {', '.join(f'`{name}`' for name in others)}" if others != [variable] else ""
            text = f"it needs its own value{through}"
            way_out = "give one of them a value of its own" if through else "give it a value"
            location, source = used, self.origins.Places(written, {})((others[0],), "value") if through else None
        if undefined := re.search(r"'(\w+)' is undefined", text):
            way_out = _how_to_define(undefined.group(1), [str(key) for key in written if key != variable], used)
        known = self.known.get(variable)
        return Problem(
            code="BW007",
            message=f"`{variable}` cannot be rendered: {text}",
            variable=variable,
            location=location,
            help=way_out,
            host=host,
            source=source,
            sensitive=looks_secret(variable) or (known is not None and is_secret(known[2])),
        )

    def _mask(self, values: Mapping[str, Any]) -> None:
        """Registers what must never be printed, before a message could print it."""
        secrets = [values[name] for name in _PASSWORDS if values.get(name)]
        secrets += [values[name] for name, (_, _, known) in self.known.items() if is_secret(known) and values.get(name)]
        for data in self.loader._FILE_CACHE.values():
            secrets += [text for name, text in self.origins.encrypted_names(data) if looks_secret(name)]
        masking.register(str(secret) for secret in secrets)


def _how_to_define(name: str, others: Sequence[str], used: Location | None) -> str:
    """What to do about the undefined variable `name`, which is used at `used` where `others` are defined."""
    if near := difflib.get_close_matches(name, others, n=1):
        return f"did you mean `{near[0]}`?"
    folder = Path(used.path).parent if used else Path()
    # By Ansible's custom such a one is in a file of its own, encrypted, beside the one that uses it.
    if name.startswith("vault_") and folder.parent.name in ("group_vars", "host_vars"):
        vault = folder / "vault.yml"
        verb = "edit" if vault.exists() else "create"
        return f"write `{name}: ...` into a vault beside it: `ansible-vault {verb} {display_path(str(vault))}`"
    return f"define `{name}`, or correct its name"


def _loop(variable: str, written: Mapping[str, Any]) -> list[str]:
    """The variables by way of which `variable` uses itself, in their order; itself alone where it does so directly, and
    none where it does not.
    """
    found: dict[str, list[str]] = {}
    waiting: list[tuple[str, list[str]]] = [(variable, [])]
    while waiting:
        name, way = waiting.pop(0)
        for word in re.findall(r"\w+", str(written[name])):
            if word == variable:
                return way or [variable]
            if word in written and word not in found:
                found[word] = [*way, word]
                waiting.append((word, found[word]))
    return []


def _no_hosts(path: Path) -> Problem:
    return Problem(
        code="BW004",
        message="the inventory names no host",
        location=Location(str(path)),
        help=_EXAMPLE,
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _yaml_help(text: str) -> str:
    if "quotes around a template block" in text:
        return 'a value that begins with {{ needs quotes: "{{ other_variable }}"'
    if "Tabs" in text:
        return "indent with spaces"
    if "UTF-8" in text:
        return "save the file in the encoding UTF-8"
    if "Colons in unquoted values" in text:
        return "put a value that contains a colon and a space in quotes"
    return "correct the indentation, quotes or brackets at or above this line"


def _line_looks_secret(location: Location) -> bool:
    try:
        lines = Path(location.path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    return location.line is not None and location.line <= len(lines) and looks_secret(lines[location.line - 1])
