"""Real Debian packages with doubles of NVIDIA's programs in them, in a flat repository that is signed with real gpg.

What they follow is in README.md beside this file.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARIES = "usr/lib/x86_64-linux-gnu"

# As on Ubuntu: the daemon begins with the mode switched off, cannot be enabled, and ends when nothing needs it.
PERSISTENCED_UNIT = """\
[Unit]
Description=NVIDIA Persistence Daemon
StopWhenUnneeded=true

[Service]
Type=exec
ExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --no-persistence-mode --verbose
"""
PERSISTENCED = """\
#!/bin/sh
[ -e /proc/driver/nvidia/version ] || { echo "Failed to query NVIDIA devices." >&2; exit 1; }
exec sleep infinity
"""
REFRESH_UNIT = """\
[Unit]
Description=Refresh NVIDIA CDI specification file
ConditionPathExists=/usr/bin/nvidia-ctk

[Service]
Type=oneshot
Environment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/var/run/cdi/nvidia.yaml
ExecCondition=/bin/sh -c 'grep -qE "/(nvidia|nvidia-current)[.]ko" /lib/modules/%v/modules.dep'
ExecStart=/usr/bin/nvidia-ctk cdi generate

[Install]
WantedBy=multi-user.target
"""
REFRESH_PATH = """\
[Unit]
Description=Trigger CDI refresh on NVIDIA driver install / upgrade events

[Path]
PathChanged=/lib/modules/%v/modules.dep

[Install]
WantedBy=multi-user.target
"""
ENABLE = """\
#!/bin/sh
deb-systemd-helper enable nvidia-cdi-refresh.path nvidia-cdi-refresh.service >/dev/null
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload && deb-systemd-invoke start nvidia-cdi-refresh.path nvidia-cdi-refresh.service || :
fi
"""
DISABLE = """\
#!/bin/sh
[ "$1" != purge ] || deb-systemd-helper purge nvidia-cdi-refresh.path nvidia-cdi-refresh.service >/dev/null
"""


def program(name: str) -> str:
    """The text of one of the doubles beside this file."""
    return (HERE / f"{name}.sh").read_text()


def build(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    scripts: Mapping[str, str] | None = None,
    **fields: str,
) -> Path:
    """A package; programs are those files that begin with `#!`."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = {"Package": name, "Version": version, "Architecture": "all", "Maintainer": "Nobody <nobody@example.org>"}
    control |= fields | {"Description": "a double, made by a test"}
    (tree / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in control.items()))
    for path, text in {**(files or {}), **{f"DEBIAN/{key}": text for key, text in (scripts or {}).items()}}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
        (tree / path).chmod(0o755 if text.startswith("#!") else 0o644)
    for path, target in (links or {}).items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).symlink_to(target)
    made = folder / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", "-Znone", tree, made], capture_output=True, check=True)
    subprocess.run(["rm", "-rf", tree], check=True)
    return made


def driver(folder: Path, flavour: str, version: str, kernel: str) -> list[Path]:
    """The packages of Ubuntu's driver `flavour` (`580-server-open`) for the kernel `kernel`, of one version."""
    name = flavour.removesuffix("-open")
    modules = f"usr/lib/modules/{kernel}"
    one = {"Conflicts": "double-driver", "Replaces": "double-driver", "Provides": "double-driver"}
    return [
        build(
            folder,
            f"linux-modules-nvidia-{flavour}-generic",
            version,
            {
                f"{modules}/kernel/double/nvidia.version": f"{version}\n",
                f"{modules}/modules.dep": f"kernel/double/{flavour}/nvidia.ko:\n",
            },
            Depends=f"libnvidia-compute-{name} (= {version})",
            **dict.fromkeys(one, "double-modules"),
        ),
        build(
            folder,
            f"nvidia-headless-no-dkms-{flavour}",
            version,
            Depends=f"libnvidia-compute-{name} (= {version}), nvidia-compute-utils-{name} (= {version})",
            **dict.fromkeys(one, "double-headless"),
        ),
        *_common(folder, name, version),
    ]


def _common(folder: Path, name: str, version: str) -> list[Path]:
    library = f"{LIBRARIES}/libnvidia-ml.so"
    if (folder / f"libnvidia-compute-{name}_{version}_all.deb").exists():
        return []
    return [
        build(
            folder,
            f"libnvidia-compute-{name}",
            version,
            {f"{library}.{version}": "", f"{LIBRARIES}/libcuda.so.{version}": ""},
            {f"{library}.1": f"libnvidia-ml.so.{version}"},
            **dict.fromkeys(("Conflicts", "Replaces", "Provides"), "double-libraries"),
        ),
        build(
            folder,
            f"nvidia-utils-{name}",
            version,
            {"usr/bin/nvidia-smi": program("nvidia-smi")},
            Depends=f"libnvidia-compute-{name}",
            **dict.fromkeys(("Conflicts", "Replaces", "Provides"), "double-utils"),
        ),
        build(
            folder,
            f"nvidia-compute-utils-{name}",
            version,
            {
                "usr/bin/nvidia-persistenced": PERSISTENCED,
                "usr/lib/systemd/system/nvidia-persistenced.service": PERSISTENCED_UNIT,
            },
            scripts={"postinst": "#!/bin/sh\nsystemctl daemon-reload\n"},
            **dict.fromkeys(("Conflicts", "Replaces", "Provides"), "double-compute-utils"),
        ),
    ]


def tools(folder: Path) -> list[Path]:
    """ubuntu-drivers, and NVIDIA's container toolkit of two packages."""
    units = {
        "usr/bin/nvidia-ctk": program("nvidia-ctk"),
        "usr/lib/systemd/system/nvidia-cdi-refresh.service": REFRESH_UNIT,
        "usr/lib/systemd/system/nvidia-cdi-refresh.path": REFRESH_PATH,
    }
    return [
        build(
            folder,
            "ubuntu-drivers-common",
            "1:0.10.9".replace("1:", ""),
            {"usr/bin/ubuntu-drivers": program("ubuntu-drivers")},
        ),
        build(
            folder, "nvidia-container-toolkit-base", "1.20.0-1", units, scripts={"postinst": ENABLE, "postrm": DISABLE}
        ),
        build(folder, "nvidia-container-toolkit", "1.20.0-1", Depends="nvidia-container-toolkit-base (= 1.20.0-1)"),
    ]


def publish_flat(root: Path, key: Any, packages: Iterable[Path]) -> None:
    """The folder `root` becomes a flat repository, as NVIDIA's for its toolkit is; `key` has `gpg` to sign."""
    root.mkdir(parents=True, exist_ok=True)
    entries = []
    for path in packages:
        target = root / path.name
        target.write_bytes(path.read_bytes())
        fields = subprocess.run(["dpkg-deb", "--field", path], capture_output=True, check=True, text=True).stdout
        content = target.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entries.append(f"{fields.rstrip()}\nFilename: ./{path.name}\nSize: {len(content)}\nSHA256: {digest}\n")
    index = "\n".join(entries).encode()
    (root / "Packages").write_bytes(index)
    (root / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
    lines = ["Origin: Double", f"Date: {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} UTC", "SHA256:"]
    for name in ("Packages", "Packages.gz"):
        content = (root / name).read_bytes()
        lines.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}")
    release = ("\n".join(lines) + "\n").encode()
    (root / "Release").write_bytes(release)
    (root / "InRelease").write_bytes(key.gpg("--clearsign", "--output", "-", stdin=release))
    (root / "key.asc").write_bytes(key.public())
