"""The documentation against the product: links, commands, variables, inventories, versions and paths that it names.

Each reader below takes a text and returns what is wrong in it. The tests at the end give every reader a text that is
wrong, so that none of them passes because it finds nothing to read.
"""

import ast
import functools
import importlib
import re
import shlex
import subprocess
import sys
import textwrap

import click
import pytest
import yaml

from boxwright import masking, preflight
from boxwright.artifacts import Wheel
from boxwright.cli import PENDING, cli
from boxwright.connection import from_variables
from boxwright.errors import CODES, Failed, Refused
from boxwright.inventory import box_class, load
from boxwright.paths import repository_root
from boxwright.settings import system_of_field, variable_fields

ROOT = repository_root()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# What the documentation tells people to make, and the product lacks: CONTRIBUTING.md's role, docs/ci.md's scenario.
EXAMPLE_ROLE, EXAMPLE_SCENARIO = "hello", "molecule/mine"


def name_of(page):
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# Reading Markdown


def blocks(text, language):
    """The fenced code blocks of a language, without the indentation of a list item."""
    found = re.findall(rf"^([ ]*)```{language}\n(.*?)^[ ]*```[ ]*$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(body) for _, body in found]


def prose(text):
    """`text` without code blocks and HTML comments."""
    text = re.sub(r"^[ ]*```.*?^[ ]*```[ ]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def spans(text):
    """The inline code of a text, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    made: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = made.get(slug, 0)
        made[slug] = count + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def links(text):
    """The targets of links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(text)))


def wrong_links(text, page):
    problems = []
    for link in links(text):
        if re.match(r"https://[\w.-]+(/|$)", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            problems.append(f"{link}: there is no such file")
        elif anchor and target.suffix != ".md":
            problems.append(f"{link}: an anchor in something that is no page")
        elif anchor and anchor not in anchors(text if target == page else target.read_text(encoding="utf-8")):
            problems.append(f"{link}: the page has no such heading")
    return problems


# Commands


def commands(text):
    """What the page tells people to type: lines after `$ `, and inline code that begins with a program of ours."""
    typed = [line[2:] for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]
    return typed + [span for span in spans(text) if re.match(r"(boxwright|make|pyinfra) ", span)]


def words_of(command):
    """The words of the first program of a command line, without variables before it; [] for unfinished quotes."""
    try:
        words = shlex.split(re.sub(r"(?<=\s)#.*", "", command))
    except ValueError:
        return []
    for stop in ("|", "&&", ">", "<"):
        words = words[: words.index(stop)] if stop in words else words
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def boxwright_problem(words):
    """What click says about `boxwright WORDS`; an argument that is left out is fine, since a text may only name it."""
    command, path = cli, "boxwright"
    words = list(words)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        word = words.pop(0)
        child = command.get_command(click.Context(command, info_name=path), word)
        if child is None:
            return f"{path} has no command {word}"
        command, path = child, f"{path} {word}"
    if isinstance(command, click.Group):
        options = {name for option in command.params for name in option.opts} | {"-h", "--help"}
        unknown = [word for word in words if word not in options]
        return f"{path} has no option {unknown[0]}" if unknown else None
    try:
        command.make_context(path, words)
    except click.MissingParameter:
        return None
    except click.exceptions.Exit:  # --help
        return None
    except click.UsageError as error:
        return f"{path}: {error.format_message()}"
    return None


@functools.cache
def has_target(target):
    """Whether make knows the target; -n runs nothing."""
    ended = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    return ended.returncode == 0


def wrong_commands(text):
    problems = []
    for command in commands(text):
        match words_of(command):
            case ["boxwright", *words]:
                if problem := boxwright_problem(words):
                    problems.append(f"{command}: {problem}")
            case ["make", *words]:
                targets = [word for word in words if "=" not in word]
                problems += [f"{command}: no target {word}" for word in targets if not has_target(word)]
            case ["pyinfra", *words]:
                files = [word for word in words if word.endswith(".py")]
                own = [word for word in files if word not in ("deploy.py",)]
                problems += [f"{command}: there is no {word}" for word in own if not (ROOT / word).exists()]
    return problems


# Names


def wrong_variables(text):
    """Names with one of our prefixes that are not variables, connection variables that nobody reads, unknown codes."""
    text = re.sub(r"<!-- renamed variables -->.*?<!-- /renamed variables -->", "", text, flags=re.DOTALL)
    known = variable_fields(box_class())
    prefixes = "|".join(box_class().model_fields)
    # A name that ends with an underscore stands for all that begin so; host_vars is Ansible's folder, sshd_config
    # OpenSSH's file, api_key an argument of OpenAI's library and a parameter of queries.
    ours = set(re.findall(rf"(?<![\w./-])(?:{prefixes})_[a-z0-9_]*[a-z0-9]\b", text)) - {
        "host_vars",
        "sshd_config",
        "api_key",
    }
    sources = source_text()
    ansible = set(re.findall(r"(?<![\w./-])ansible_[a-z0-9_]+\b", text))
    environment = set(re.findall(r"\bBOXWRIGHT_[A-Z_]+\b", text))
    return [
        *(f"{name} is no variable" for name in sorted(ours - set(known))),
        *(f"{name} is read nowhere" for name in sorted(ansible | environment) if f'"{name}"' not in sources),
        *(f"{code} is no error code" for code in sorted(set(re.findall(r"\bBW\d{3}\b", text)) - set(CODES))),
    ]


@functools.cache
def source_text():
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "boxwright").rglob("*.py")))


@functools.cache
def role_constants():
    """The texts that stand at the top of the roles' modules, such as paths on a box."""
    texts = set()
    for path in sorted((ROOT / "roles").glob("*/*.py")):
        module = importlib.import_module(f"roles.{path.parent.name}.{path.stem}")
        texts |= {value for value in vars(module).values() if isinstance(value, str)}
    from boxwright import launchd, services, systemd

    shared = [value for module in (launchd, services, systemd) for value in vars(module).values()]
    return texts | {value for value in shared if isinstance(value, str)}


def wrong_paths(text):
    """Files of this repository that are not there, paths on a box that no role has, folders that are not kept."""
    text = re.sub(r"\]\([^)]*\)", "", text)  # links are read elsewhere
    problems = []
    pattern = r"(?<![\w./~@-])(?:boxwright|roles|deploys|templates|tests|scripts|schema|bench|docs|molecule)/[\w./-]*\w"
    for path in set(re.findall(pattern, text)) | set(re.findall(r"(?<![\w/.-])inventory/examples/[\w-]+", text)):
        example = path.startswith((f"roles/{EXAMPLE_ROLE}/", f"templates/{EXAMPLE_ROLE}/", EXAMPLE_SCENARIO))
        if not example and "ROLE" not in path and not (ROOT / path).exists():
            problems.append(f"{path} does not exist")
    known = role_constants()
    for path in set(re.findall(r"(?:/etc/boxwright|/opt/boxwright|/var/lib/boxwright|/run/boxwright)[\w./-]*\w", text)):
        folder = path.rpartition("/")[0]
        if EXAMPLE_ROLE not in path and not any(made in (path, folder) for made in known):
            problems.append(f"{path} is no path of a role")
    for folder in set(re.findall(r"~/\.local/state/boxwright/(\w+)", text)):
        if f'state_dir() / "{folder}"' not in source_text():
            problems.append(f"nothing is kept in {folder}")
    return problems


def forbidden(text):
    """Addresses of package registries, paths of somebody's machine."""
    registries = r"\b(?:pypi\.org|files\.pythonhosted\.org|registry\.npmjs\.org|proxy\.golang\.org|deb\.debian\.org)\b"
    return re.findall(registries, text) + re.findall(r"(?<![\w.])/(?:work|root|home/\w+|tmp/w)/\S*", text)


# Inventories


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """State and streams of its own, since loading an inventory makes secrets and masks them in all output."""
    monkeypatch.setenv("BOXWRIGHT_STATE_DIR", str(tmp_path / "state"))
    for name in ("BOXWRIGHT_INVENTORY", "ANSIBLE_VAULT_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    yield tmp_path / "inventory"
    masking.forget()


def preset():
    return ROOT / "inventory" / "examples" / "cpu-llamacpp"


def is_inventory(data):
    return isinstance(data, dict) and any(isinstance(group, dict) and "hosts" in group for group in data.values())


def is_of_a_mac(data):
    """Whether the variables are those of a Mac."""
    known = variable_fields(box_class())
    found = [known[name] for name in data if name in known]
    return any(role.systems == {"darwin"} or system_of_field(field) == "darwin" for role, _, field in found)


def wrong_inventories(text, folder):
    """What boxwright says about the YAML of a page: whole inventories, and variables given to the preset's host."""
    problems = []
    for number, block in enumerate(blocks(text, "yaml")):
        try:
            data = yaml.safe_load(block)
        except yaml.YAMLError as error:
            problems.append(f"not valid YAML: {error}")
            continue
        if data is None:  # a comment
            continue
        if isinstance(data, dict) and "jobs" in data:  # a workflow
            steps = [step for job in data["jobs"].values() for step in job["steps"] if "run" in step]
            typed = "".join(f"$ {step['run'].replace('.venv/bin/', '')}\n" for step in steps)
            problems += wrong_commands(f"```console\n{typed}```\n")
            continue
        if not isinstance(data, dict):
            problems.append(f"neither an inventory nor variables: {block}")
            continue
        place = folder / str(number)
        (place / "group_vars").mkdir(parents=True)
        (place / "host_vars").mkdir()
        (place / "group_vars" / "all.yml").write_text((preset() / "group_vars" / "all.yml").read_text())
        if is_inventory(data):
            (place / "hosts.yml").write_text(block)
        else:
            strange = [name for name in data if name not in variable_fields(box_class()) and "ansible_" not in name]
            problems += [f"{name} is no variable" for name in strange]
            hosts = (preset() / "hosts.yml").read_text()
            (place / "hosts.yml").write_text(hosts.replace("linux:", "darwin:") if is_of_a_mac(data) else hosts)
            (place / "host_vars" / "box.yml").write_text(block)
        try:
            for host in load(place / "hosts.yml"):
                from_variables(host.name, host.variables)
        except Refused as refused:
            problems += [problem.message for problem in refused.problems]
    return problems


# Python


def wrong_python(text):
    """Blocks that are not Python, and names that they import of ours and that do not exist."""
    problems = []
    for block in blocks(text, "python"):
        try:
            tree = ast.parse(block)
        except SyntaxError as error:
            problems.append(f"not Python: {error}")
            continue
        for statement in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
            package = statement.module or ""
            if package.partition(".")[0] not in ("boxwright", "roles"):
                continue
            module = importlib.import_module(package)
            for alias in statement.names:
                try:
                    found = hasattr(module, alias.name) or importlib.import_module(f"{package}.{alias.name}")
                except ImportError:
                    found = False
                if not found:
                    problems.append(f"{package} has no {alias.name}")
    return problems


# The pages


@every_page
def test_links_lead_somewhere(page):
    assert wrong_links(page.read_text(encoding="utf-8"), page) == []


@every_page
def test_commands_exist(page):
    assert wrong_commands(page.read_text(encoding="utf-8")) == []


@every_page
def test_names_exist(page):
    assert wrong_variables(page.read_text(encoding="utf-8")) == []


@every_page
def test_paths_exist(page):
    assert wrong_paths(page.read_text(encoding="utf-8")) == []


@every_page
def test_no_registry_and_no_path_of_a_machine(page):
    assert forbidden(page.read_text(encoding="utf-8")) == []


@every_page
def test_inventories_are_valid(page, apart):
    assert wrong_inventories(page.read_text(encoding="utf-8"), apart) == []


@every_page
def test_python_imports_what_exists(page):
    assert wrong_python(page.read_text(encoding="utf-8")) == []


def test_the_pages_hold_what_is_tested_here():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    typed = [words[0] for command in commands(text) if (words := words_of(command))]
    assert typed.count("boxwright") > 50
    assert typed.count("make") > 10
    assert len(blocks(text, "yaml")) > 20
    assert len(blocks(text, "python")) > 3
    assert len(links(text)) > 50


def test_every_guide_is_listed():
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index.read_text(encoding="utf-8"))}
    assert {page for page in PAGES if page.parent != ROOT and page != index} - listed == set()


def test_readme_lists_the_roles():
    rows = re.findall(r"^\| \[(\w+)\]\(docs/roles/(\w+)\.md\) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    roles = {page.parent.name for page in (ROOT / "roles").glob("*/tasks.py")}
    assert {name for row in rows for name in row} == roles


def test_readme_has_every_exit_code():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)}
    assert codes == {0, Failed.exit_code, Refused.exit_code, PENDING, 130}


def test_the_tutorial_names_the_supported_systems():
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (debian,) = re.findall(r"It runs ((?:Debian \d+[, ]*)+)", text)
    (ubuntu,) = re.findall(r"Ubuntu (\d\d\.\d\d[^:]*?), has an SSH server", text)
    assert tuple(re.findall(r"\d+", debian)) == preflight.SUPPORTED["debian"]
    assert tuple(re.findall(r"\d\d\.\d\d", ubuntu)) == preflight.SUPPORTED["ubuntu"]


def test_other_projects_are_told_of_every_operation():
    text = (ROOT / "docs" / "other-projects.md").read_text(encoding="utf-8")
    told = {
        module: set(re.findall(r"`(\w+)`", names))
        for module, names in re.findall(r"^\| `boxwright\.operations\.(\w+)` \| (.+) \|$", text, re.MULTILINE)
    }
    there = {}
    for path in (ROOT / "boxwright" / "operations").glob("*.py"):
        functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        decorated = {f.name for f in functions for d in f.decorator_list if ast.unparse(d).startswith("operation(")}
        if decorated:
            there[path.stem] = decorated
    assert told == there


def test_dependencies_are_described_with_their_versions():
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    lock = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text().lower(), re.MULTILINE)
    named = (ROOT / "requirements.in").read_text() + (ROOT / "services" / "api" / "requirements.in").read_text()
    direct = re.findall(r"^(\w[\w.-]*)", named, re.MULTILINE)
    rows = {
        name.strip().lower(): row
        for row in re.findall(r"^\| .+ \|$", text, re.MULTILINE)
        for name in row.split("|")[1].split(",")
    }
    assert [name for name in direct if name.lower() not in rows] == []
    stubs = ("types-requests", "types-pyyaml", "types-docker")  # one row, which gives months
    direct_ones = {name.lower() for name in direct} - {*stubs}
    outdated = [(name, version) for name, version in lock if name in direct_ones and version not in rows[name]]
    assert outdated == []


def test_versions_on_the_box_are_the_ones_installed():
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for tasks in (ROOT / "roles").glob("*/tasks.py"):
        module = importlib.import_module(f"roles.{tasks.parent.name}.tasks")
        for wheel in (value for value in vars(module).values() if isinstance(value, Wheel)):
            assert f"`{wheel.name}`" in text
            assert wheel.version in text
    default = box_class().model_fields["openwebui"].annotation.model_fields["version"].default
    for page in PAGES:
        named = re.findall(r"(?:open-webui:v|Open WebUI )(\d+\.\d+\.\d+)", page.read_text(encoding="utf-8"))
        assert set(named) <= {default}, page


def missing_tests(text):
    """Tests that the text names below tests/ and that are not there."""
    problems = []
    for file, function in re.findall(r"`((?:unit|operations|integration)/\w+\.py)(?:::(\w+))?`", text):
        path = ROOT / "tests" / file
        functions = re.findall(r"^ *def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE) if path.exists() else []
        if not functions or (function and function not in functions):
            problems.append(f"{file}::{function}")
    return problems


def test_what_is_said_to_be_proven_has_its_tests():
    text = (ROOT / "docs" / "proven.md").read_text(encoding="utf-8")
    assert text.count("`integration/") > 10
    assert missing_tests(text) == []


def test_schema_lines_lead_to_the_schema():
    for page in PAGES:
        for path in re.findall(r"^# yaml-language-server: \$schema=(\S+)$", page.read_text(), re.MULTILINE):
            places = (ROOT / "group_vars", ROOT / "inventory" / "group_vars")
            assert any((place / path).resolve() == ROOT / "schema" / "vars.schema.json" for place in places), path


def test_figures_in_the_readme_are_measured_ones():
    """Each duration in the README stands in a row of bench/stack.md with the same name and the same figure."""
    measured = ROOT / "bench" / "stack.md"
    if not measured.exists():
        pytest.skip("bench/stack.py has not been run")
    assert wrong_figures((ROOT / "README.md").read_text(encoding="utf-8"), measured.read_text(encoding="utf-8")) == []


def wrong_figures(text, measured):
    """Rows `| what | figure |` of `text` that `measured` has not, and durations outside of such rows."""

    def rows(page):
        found = re.findall(r"^\| (.+?) \| ([\d.]+)(?: s)? \|", page, re.MULTILINE)
        return {re.sub(r"[*`]", "", name): figure for name, figure in found}

    known = rows(measured)
    told = {name: figure for name, figure in rows(text).items() if not name.isdigit()}
    problems = [
        f"{name}: {figure} is not what was measured" for name, figure in told.items() if known.get(name) != figure
    ]
    outside = re.sub(r"^\|.*$", "", prose(text), flags=re.MULTILINE)
    return problems + re.findall(r"\b\d+(?:\.\d+)? ?(?:s|seconds|min|minutes)\b", outside)


# The readers find what is wrong


def test_a_broken_link_is_found():
    page = ROOT / "README.md"
    good = "[a](docs/tutorial.md#3-chat-in-the-browser) [b](LICENSE) [c](https://example.org/x) `[d](none.md)`"
    assert wrong_links(good, page) == []
    bad = "[a](docs/none.md) [b](docs/tutorial.md#none) [c](../outside.md) ![d](docs/images/none.png) [e](LICENSE#x)"
    assert len(wrong_links(bad, page)) == 5
    assert anchors("# A `b_c`: d\n## E\n## E\n```\n# no\n```\n") == {"a-b_c-d", "e", "e-1"}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("`boxwright plan --limit box -vv` `boxwright secret show` `boxwright lab ssh NAME -- rm --odd`", 0),
        ("`boxwright plann`", 1),
        ("`boxwright plan --none`", 1),
        ("`boxwright lab none`", 1),
        ("`boxwright --none`", 1),
        ("`boxwright lab up --login nobody`", 1),
        ("`make none`", 1),
        ("`make stack` `make PYTHON=python3.12 stack`", 0),
        ("`pyinfra inventory.py deploys/none.py`", 1),
        ("```console\n$ X=1 boxwright applyy | cat   # why\n$ boxwright plan --exit-code   # --none\n```\n", 1),
        ("1. do\n\n   ```console\n   $ boxwright none\n   ```\n", 1),
    ],
)
def test_a_wrong_command_is_found(text, count):
    assert len(wrong_commands(text)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("`gateway_port`, gateway_..., host_vars/x.yml, `gateway_`, vault_gateway_password, box.gateway_x", 0),
        ("10.0.0.1/gateway_x", 0),
        ("`gateway_prot`", 1),
        ("`docker_port: 1`", 1),
        ("`ansible_become_passwort`", 1),
        ("`ansible_host`", 0),
        ("`BOXWRIGHT_STATE`", 1),
        ("BW999", 1),
    ],
)
def test_a_wrong_name_is_found(text, count):
    assert len(wrong_variables(text)) == count


@pytest.mark.parametrize(
    "text",
    [
        "roles/none/tasks.py",
        "inventory/examples/none",
        "/etc/boxwright/none/key",
        "/opt/boxwright/none/x",
        "~/.local/state/boxwright/none",
    ],
)
def test_a_wrong_path_is_found(text):
    assert len(wrong_paths(f"in `{text}`")) == 1
    assert (
        wrong_paths("`roles/gateway/tasks.py`, `/etc/boxwright/caddy/Caddyfile`, `~/.local/state/boxwright/ca/`") == []
    )


def test_a_wrong_inventory_is_found(apart):
    text = """
```yaml
linux:
  hosts:
    box:
      gateway_names: [a.test]
      gateway_prot: 1
```

- in a list

  ```yaml
  gateway_port: many
  ```

```yaml
something: else
```

```yaml
a: b: c
```

```yaml
jobs: {box: {steps: [{run: make none}, {uses: something}]}}
```

```yaml
linux: {hosts: {box: {gateway_names: [a.test], ansible_connection: telnet}}}
```
"""
    problems = wrong_inventories(text, apart)
    assert len(problems) == 6
    for part in ("gateway_prot", "many", "something", "not valid YAML", "telnet", "no target none"):
        assert sum(part in problem for problem in problems) == 1, part


def test_wrong_python_is_found():
    text = "```python\nfrom boxwright.services import Service, Nothing\n```\n\n```python\ndef (\n```\n"
    assert len(wrong_python(text)) == 2


def test_a_registry_or_a_path_of_a_machine_is_found():
    hidden = "https://pypi" + ".org/simple and /home" + "/ada/x and /wo" + "rk/main"
    assert len(forbidden(hidden)) == 3


def test_a_missing_test_is_found():
    assert missing_tests("`unit/test_docs.py::test_a_missing_test_is_found` `unit/test_docs.py`") == []
    assert len(missing_tests("`unit/test_docs.py::test_none` `unit/test_none.py`")) == 2


def test_a_wrong_figure_is_found():
    measured = "| step | seconds |\n| --- | ---: |\n| plan | 2.5 | 1 |\n| **first `make stack`** | 100.0 | 40 |\n"
    assert wrong_figures("| `plan` | 2.5 s |\n| first `make stack` | 100.0 s |\n| 0 | done |\n", measured) == []
    assert wrong_figures("| plan | 2.6 |\n", measured) != []
    assert wrong_figures("| something | 3 |\n", measured) != []
    assert wrong_figures("It takes 3 minutes.", measured) != []
