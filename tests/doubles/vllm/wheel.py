"""The wheel of the double of vLLM: installed by pip as vLLM is, with the command `vllm`.

As a program it puts the wheel into the lab's mirror: `python -m tests.doubles.vllm.wheel`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from pathlib import Path

from boxwright.lab import mirror, wheels
from boxwright.lab.locks import locked
from boxwright.paths import cache_dir

NAME = "vllm-{version}-py3-none-any.whl"


def wheel(version: str = "0.33.0") -> tuple[str, bytes]:
    """Name and content of the wheel; the same bytes each time and everywhere, so nothing is compressed."""
    source = (Path(__file__).parent / "__init__.py").read_text(encoding="utf-8")
    information = f"vllm-{version}.dist-info"
    files = {
        "vllm/__init__.py": source.replace('__version__ = "0.33.0"', f'__version__ = "{version}"'),
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/entry_points.txt": "[console_scripts]\nvllm = vllm:main\n",
    }
    record = "".join(f"{name},sha256={_digest(text)},{len(text.encode())}\n" for name, text in files.items())
    files[f"{information}/RECORD"] = f"{record}{information}/RECORD,,\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text)
    return NAME.format(version=version), packed.getvalue()


def requirements(version: str = "0.33.0") -> str:
    """The requirements file that admits it."""
    digest = hashlib.sha256(wheel(version)[1]).hexdigest()
    return f"vllm=={version} \\\n    --hash=sha256:{digest}\n"


def install(version: str = "0.33.0") -> str:
    """Puts the wheel into the lab's mirror; the requirements file that admits it."""
    name, data = wheel(version)
    folder = mirror.mirror_dir() / "files" / "wheels"
    with locked(cache_dir() / "lab" / "wheels.lock"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o644)
        wheels.write_index(folder, {path.name: wheels.sha256_of(path) for path in folder.glob("*.whl")})
    return requirements(version)


def _digest(text: str) -> str:
    """As RECORD has it: base64 for URLs, without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    print(install())
