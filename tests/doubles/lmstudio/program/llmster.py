"""The program `llmster` of the double: `bootstrap` installs it into the home of the user; without it, the daemon."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

import daemon
import store

BUNDLE = Path(__file__).resolve().parent.parent


def bootstrap() -> None:
    """The bundle is copied below the home, and `bin/lms` knows it from then on."""
    home = store.find_home()
    version = (BUNDLE / "version").read_text().strip()
    target = home / "llmster" / version
    if target != BUNDLE.parent:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(BUNDLE.parent, target)
    for wheel in (target / ".bundle" / "backends").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target / ".bundle" / "backend")
    (home / "bin").mkdir(parents=True, exist_ok=True)
    command = home / "bin" / "lms"
    shutil.copyfile(BUNDLE / "lms", command)
    command.chmod(0o755)
    (home / "models").mkdir(exist_ok=True)
    store.write_json(
        store.internal(home, "llmster-install-location.json"),
        {"path": str(target / "llmster"), "argv": [str(target / "llmster")], "cwd": str(target)},
    )
    if not os.environ.get("LMS_NO_MODIFY_PATH"):
        with (home.parent / ".profile").open("a") as profile:
            profile.write(f'export PATH="$PATH:{home / "bin"}"\n')
    print(f"Installed llmster {version} at {target}")


if __name__ == "__main__":
    if sys.argv[1:] == ["bootstrap"]:
        bootstrap()
    else:
        daemon.run()
