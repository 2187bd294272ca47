"""The image of Open WebUI for the lab's registry, made from Debian 12 and the wheels of its own release.

The lab's mirror is filled from package registries alone, so the published image is rebuilt from the same release's
wheels: same paths, port, variables, health check and start command (the Dockerfile and backend/start.sh of
open-webui/open-webui). Left out are torch, sentence-transformers and accelerate (several GB), so embeddings are asked
of an OpenAI-compatible server.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from boxwright.errors import Failed, Problem
from boxwright.lab import image, machine, wheels
from boxwright.lab.oci import Blob, ImageConfig, Registry, balanced
from boxwright.paths import repository_root, state_dir

NAME = "ghcr.io/open-webui/open-webui"
#: Those with which a box runs it without a container: what the module's text names is left out there too.
REQUIREMENTS = repository_root() / "roles" / "openwebui" / "requirements.txt"
# Debian 12 is the last Debian with a Python (3.11) that this release accepts.
SUITE, PYTHON, GLIBC = "bookworm", "3.11", 36
PACKAGES = ("python3", "ca-certificates", "curl", "jq", "libmagic1")
SITE = f"usr/local/lib/python{PYTHON}/dist-packages"
#: Parts that the packages are divided into: an engine fetches three layers at once and unpacks one meanwhile.
PARTS = 3

START = """\
#!/usr/bin/env bash
# The published image's start.sh without what needs packages that this image leaves out.
cd -- "$(dirname -- "${BASH_SOURCE[0]}")" || exit 1
KEY_FILE="${WEBUI_SECRET_KEY_FILE:-.webui_secret_key}"
if [ -z "$WEBUI_SECRET_KEY" ] && [ -z "$WEBUI_JWT_SECRET_KEY" ]; then
    [ -e "$KEY_FILE" ] || (umask 077 && head -c 24 /dev/urandom | base64 >"$KEY_FILE")
    WEBUI_SECRET_KEY=$(cat "$KEY_FILE")
fi
export WEBUI_SECRET_KEY
exec python3 -m uvicorn open_webui.main:app --host "${HOST:-0.0.0.0}" --port "${PORT:-8080}" \\
    --forwarded-allow-ips "${FORWARDED_ALLOW_IPS:-*}" --workers "${UVICORN_WORKERS:-1}"
"""

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "ENV": "prod",
    "PORT": "8080",
    "DOCKER": "true",
    "OLLAMA_BASE_URL": "/ollama",
    "OPENAI_API_BASE_URL": "",
    "OPENAI_API_KEY": "",
    "WEBUI_SECRET_KEY": "",
    "SCARF_NO_ANALYTICS": "true",
    "DO_NOT_TRACK": "true",
    "ANONYMIZED_TELEMETRY": "false",
    "WHISPER_MODEL_DIR": "/app/backend/data/cache/whisper/models",
    "SENTENCE_TRANSFORMERS_HOME": "/app/backend/data/cache/embedding/models",
    "HF_HOME": "/app/backend/data/cache/embedding/models",
    # Not as in the published image, which carries an embedding model: see the module's text.
    "RAG_EMBEDDING_ENGINE": "openai",
}


def version(requirements: str) -> str:
    """The version of Open WebUI in the text of a requirements file. Raises ValueError when it has none."""
    match = re.search(r"^open-webui==(\S+)", requirements, flags=re.MULTILINE)
    if match is None:
        raise ValueError("the requirements do not pin open-webui")
    return match[1]


def config(architecture: str, release: str) -> ImageConfig:
    """How a container of the image starts, as in the published Dockerfile."""
    return ImageConfig(
        architecture=architecture,
        command=("bash", "start.sh"),
        environment=ENVIRONMENT,
        working_dir="/app/backend",
        ports=("8080/tcp",),
        health=(
            "CMD-SHELL",
            "curl --silent --fail http://localhost:${PORT:-8080}/health | jq -ne 'input.status == true' || exit 1",
        ),
        labels={"org.opencontainers.image.title": "Open WebUI", "org.opencontainers.image.version": release},
    )


def recipe() -> image.Recipe:
    """The root file system below the packages."""
    return image.recipe(SUITE, PACKAGES)


def digest() -> str:
    """16 hexadecimal digits that change when anything changes that the image is made from."""
    parts = {
        "rootfs": recipe().digest(),
        "requirements": hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest(),
        "start": START,
        "environment": ENVIRONMENT,
        "module": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
    return image.digest(parts)


def install_command(target: Path, architecture: str) -> list[str]:
    """Unpacks the pinned wheels into `target`. Nothing is built or run, so any Python may do it for the image's."""
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(target)),
        *("--no-deps", "--require-hashes", "--requirement", str(REQUIREMENTS)),
        *wheels.for_python(PYTHON, GLIBC, architecture),
    ]


def build(registry: Registry) -> str:
    """Put the image into the registry; its name with tag.

    Raises Refused when this machine cannot do it, Failed (BW307) when a step fails.
    """
    release = version(REQUIREMENTS.read_text(encoding="utf-8"))
    architecture = machine.architecture()
    machine.require_disk(registry.blob_path("00"), 5_000_000_000, why="put Open WebUI together")
    with tempfile.TemporaryDirectory(prefix="open-webui-", dir=_workplace(registry)) as folder:
        tree = Path(folder)
        with ThreadPoolExecutor(max_workers=2) as pool:
            base = pool.submit(lambda: registry.add_file(image.rootfs(recipe())[0]))
            machine.run(
                install_command(tree / SITE, architecture),
                what="unpacking Open WebUI's packages",
                log=state_dir() / "log" / "open-webui-packages.log",
                environment=wheels.PIP,
            )
            arrange(tree, release)
            try:
                above = list(pool.map(lambda paths: _layer(registry, tree, paths), layer_paths(tree)))
            except RuntimeError as error:
                raise Failed(Problem(code="BW307", message=f"writing Open WebUI's layers failed: {error}")) from error
            layers = [base.result(), *above]
    reference = f"{NAME}:v{release}"
    registry.publish(reference, config(architecture, release), layers)
    return reference


def _workplace(registry: Registry) -> Path:
    folder = registry.temporary("").parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def arrange(tree: Path, release: str) -> None:
    """Move Open WebUI from among the packages to where the published image has it, and add what that adds.

    The packages' commands are left out, as their first line names the machine's Python.
    """
    shutil.rmtree(tree / SITE / "bin", ignore_errors=True)
    backend = tree / "app" / "backend"
    (backend / "data").mkdir(parents=True)
    (tree / SITE / "open_webui").rename(backend / "open_webui")
    (backend / "open_webui" / "frontend").rename(tree / "app" / "build")
    (backend / "open_webui" / "CHANGELOG.md").rename(tree / "app" / "CHANGELOG.md")
    (tree / "app" / "package.json").write_text(f'{{"name": "open-webui", "version": "{release}"}}\n', encoding="utf-8")
    (backend / "start.sh").write_text(START, encoding="utf-8")
    (backend / "start.sh").chmod(0o755)


def layer_paths(tree: Path) -> list[list[str]]:
    """What goes into which layer: the application (most releases change only that), the packages in even parts."""
    sizes = {f"{SITE}/{path.name}": _size(path) for path in (tree / SITE).iterdir()}
    return [["app"], *balanced(sizes, PARTS)]


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    listed = subprocess.run(["du", "-sb", str(path)], capture_output=True, text=True, check=True)
    return int(listed.stdout.split()[0])


def _layer(registry: Registry, tree: Path, paths: list[str]) -> Blob:
    """A layer of some paths of the tree, without maps for debuggers; equal trees give equal layers."""
    tar = ["tar", "--create", "--format=posix", "--pax-option=delete=atime,delete=ctime", "--sort=name", "--mtime=@0"]
    tar += ["--owner=0", "--group=0", "--numeric-owner", "--mode=u+rwX,go+rX,go-w", "--exclude=*.map"]
    return registry.add_tar([*tar, f"--directory={tree}", "--", *paths], Path(paths[0]).name)
