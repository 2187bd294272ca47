"""What the mirror must hold: the wheels that the roles declare, and what a box needs by its variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from boxwright.artifacts import Wheel, pinned
from boxwright.inventory import box_class, role_modules
from boxwright.lab import mirror, ollama, tailnet
from boxwright.lab.mirror import Fill
from boxwright.lab.progress import Progress
from boxwright.paths import repository_root


def wheels() -> Sequence[Wheel]:
    """Every `Wheel` at the top of a role's modules."""
    found: list[Wheel] = []
    for role in box_class().model_fields:
        for module in role_modules(role):
            values = vars(module).values()
            found += [value for value in values if isinstance(value, Wheel) and value not in found]
    return found


def engines(variables: Mapping[str, Any]) -> set[str]:
    """The inference engines that a box with these variables runs beside the one it has by default."""
    models = variables.get("inference_models") or []
    named = [model.get("engine") for model in models if isinstance(model, Mapping)]
    return {str(name) for name in (variables.get("inference_engine"), *named) if name}


def programs(variables: Mapping[str, Any]) -> list[Fill]:
    """What puts into the mirror what only some boxes need: it is much, or takes minutes, and most boxes run without."""
    wanted = sorted(engines(variables))
    fills: list[Fill] = [partial(_packages, engine) for engine in wanted if requirements_of(engine).is_file()]
    if "ollama" in wanted:
        fills.append(partial(_ollama, variables))
    if variables.get("openwebui_run") == "native":
        fills.append(_openwebui)
    if variables.get("api_enabled"):
        fills.append(_api)
    if variables.get("tailscale_enabled") and variables.get("tailscale_repository", True):
        fills.append(tailnet.fill)
    return fills


def requirements_of(engine: str) -> Path:
    """The requirements file of a role that installs more Python packages than it names one by one; may not exist."""
    return repository_root() / "roles" / engine / "requirements.txt"


def _packages(engine: str, root: Path, progress: Progress) -> Mapping[str, Any]:
    wanted = pinned(requirements_of(engine).read_text(encoding="utf-8"))
    mirror.fill_wheels(progress, lambda: wanted, what=f"wheels for {engine}")
    return {}


def _openwebui(root: Path, progress: Progress) -> Mapping[str, Any]:
    # A box has a newer Python than Open WebUI works with: it must be given one of these, as `openwebui_python` says.
    wanted = pinned(requirements_of("openwebui").read_text(encoding="utf-8"))
    mirror.fill_wheels(progress, lambda: wanted, what="wheels for openwebui", python="3.11")
    return {}


def _api(root: Path, progress: Progress) -> Mapping[str, Any]:
    wanted = pinned((repository_root() / "services" / "api" / "requirements.txt").read_text(encoding="utf-8"))
    mirror.fill_wheels(progress, lambda: wanted, what="wheels for the API service")
    return {}


def _ollama(variables: Mapping[str, Any], root: Path, progress: Progress) -> Mapping[str, Any]:
    return ollama.variables(root, variables, progress)
