"""Root file systems made with mmdebstrap, and the image of a box.

A box is what a freshly installed Debian 13 server is: systemd, sshd, sudo, python3 and little else. What a role needs
beyond that, the role installs. Everything is kept under the hash of its recipe: a tarball in `<cache>/lab/images` and
an image `boxwright-box:<hash>` in the engine; nothing is built again until the recipe changes, and an interrupted build
leaves nothing that could be taken for a finished one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.lab import aptsources, machine
from boxwright.lab.locks import locked
from boxwright.lab.progress import Progress
from boxwright.paths import cache_dir, state_dir

if TYPE_CHECKING:
    from docker import DockerClient

BOX_REPOSITORY = "boxwright-box"
SUITE = "trixie"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "sudo",
    "python3",
    "ca-certificates",
    "curl",
    "iproute2",
)
#: Who can log in to a box, as the three kinds of account that people have on real machines.
ACCOUNTS = ("root", "operator", "secured")

#: Run by mmdebstrap on the finished tree, which is `$1`.
BOX_SETUP = """\
#!/bin/sh
set -eu
# "operator" is also a group of Debian's own, so the account joins it. Passwordless sudo for one account, sudo with a
# password (Debian's rule for group sudo) for the other; the password is set when a box is made.
chroot "$1" useradd --create-home --shell /bin/bash --gid operator operator
chroot "$1" useradd --create-home --shell /bin/bash --user-group --groups sudo secured
printf 'operator ALL=(ALL:ALL) NOPASSWD: ALL\\n' >"$1/etc/sudoers.d/operator"
chmod 0440 "$1/etc/sudoers.d/operator"
# Each box gets host keys and a machine id of its own.
rm -f "$1"/etc/ssh/ssh_host_*
: >"$1/etc/machine-id"
# On a machine that it booted itself systemd lets mounts propagate, in a container it does not. Then a service with a
# mount namespace of its own would keep the network namespace of a container alive that was replaced, address included.
cat >"$1/etc/systemd/system/shared-mounts.service" <<'END'
[Unit]
Description=Mounts propagate, as on a real machine
DefaultDependencies=no
Before=local-fs-pre.target sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount --make-rshared /
END
mkdir -p "$1/etc/systemd/system/sysinit.target.wants"
ln -s ../shared-mounts.service "$1/etc/systemd/system/sysinit.target.wants/shared-mounts.service"
# The box's own timers would hold apt's lock at moments that no test chooses.
for unit in apt-daily.timer apt-daily-upgrade.timer; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
# Downloaded packages are kept: their folder is a volume that outlives the box, so a rebuilt box does not fetch them
# again.
printf 'APT::Keep-Downloaded-Packages "true";\\nBinary::apt::APT::Keep-Downloaded-Packages "true";\\n' \\
    >"$1/etc/apt/apt.conf.d/02keep-downloaded-packages"
"""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a root file system holds. Two equal recipes give the same thing.

    `sources` is the sources.list (empty: mmdebstrap's default archive), `apt_lines` are apt.conf lines that also stay
    in the tree, `setup` is a shell script that gets the tree's path as its argument, `keyring` the hash of a foreign
    archive key.
    """

    suite: str
    architecture: str
    packages: tuple[str, ...]
    sources: str = ""
    apt_lines: tuple[str, ...] = ()
    setup: str = ""
    keyring: str = ""

    def digest(self) -> str:
        """16 hexadecimal digits that name this recipe."""
        return digest(asdict(self))


def digest(parts: Mapping[str, object]) -> str:
    """16 hexadecimal digits of the SHA-256 of `parts` as canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def recipe(suite: str, packages: tuple[str, ...], setup: str = "") -> Recipe:
    """A recipe for Debian `suite` from the archive that this machine's apt uses."""
    release = machine.os_release()
    found = aptsources.archive(aptsources.read_sources(), release.get("ID", ""), release.get("VERSION_CODENAME", ""))
    key = hashlib.sha256(Path(found.keyring).read_bytes()).hexdigest() if found.keyring else ""
    return Recipe(
        suite=suite,
        architecture=machine.architecture(),
        packages=packages,
        sources=aptsources.sources_list(found, suite),
        apt_lines=tuple(aptsources.proxies()),
        setup=setup,
        keyring=key,
    )


def box_recipe() -> Recipe:
    """The recipe of a box."""
    return recipe(SUITE, PACKAGES, BOX_SETUP)


def images_dir() -> Path:
    """Where finished tarballs are kept."""
    return cache_dir() / "lab" / "images"


def command(wanted: Recipe, target: Path, setup: Path, sources: Path) -> list[str]:
    """The mmdebstrap command that writes `target`; `setup` and `sources` are files with the recipe's texts.

    Manual pages and translations are left out of the tree: they are a third of the work and nobody reads them in a lab.
    """
    line = ["mmdebstrap", "--format=tar", "--variant=minbase", f"--architectures={wanted.architecture}"]
    line += [f"--include={','.join(wanted.packages)}"]
    line += ['--aptopt=Acquire::Languages "none"', *(f"--aptopt={apt_line}" for apt_line in wanted.apt_lines)]
    line += ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
    if wanted.keyring:
        # apt in the finished box looks for the key where the sources name it.
        keyring = wanted.sources.split("signed-by=", 1)[1].split("]", 1)[0]
        line += [f'--setup-hook=mkdir -p "$1{Path(keyring).parent}"', f"--setup-hook=upload {keyring} {keyring}"]
    if wanted.setup:
        line += [f"--customize-hook={setup}"]
    line += [wanted.suite, str(target)]
    if wanted.sources:
        line += [str(sources)]
    return line


def authorise(*wanted: Recipe) -> None:
    """Let sudo ask for its password now, before several things are done at once, when a root file system is missing.

    Without root and sudo nothing happens here: see `rootfs`.
    """
    if not all((images_dir() / f"{one.digest()}.tar").exists() for one in wanted):
        machine.can_be_root("build root file systems")


def rootfs(wanted: Recipe) -> tuple[Path, bool]:
    """The tarball of a recipe's root file system, and whether it was there already. Call it under the images' lock.

    Built as root; where that is not to be had, mmdebstrap tries a user namespace and says what is missing for it.
    Raises Refused (BW301, BW302, BW305) when this machine cannot build one, Failed (BW307) when mmdebstrap fails.
    """
    target = images_dir() / f"{wanted.digest()}.tar"
    if target.exists():
        return target, True
    images_dir().mkdir(parents=True, exist_ok=True)
    machine.require_disk(target, 1_500_000_000, why="build a root file system")
    logs = state_dir() / "log"
    why = f"build a Debian {wanted.suite} root file system"
    tools = ["mmdebstrap"] if wanted.sources else ["mmdebstrap", "debian-archive-keyring"]
    machine.install_packages(tools, why=why, log=logs / "apt-mmdebstrap.log")
    with tempfile.TemporaryDirectory(prefix="boxwright-") as folder:
        setup, sources = Path(folder) / "setup.sh", Path(folder) / "sources.list"
        setup.write_text(wanted.setup, encoding="utf-8")
        setup.chmod(0o755)
        sources.write_text(wanted.sources, encoding="utf-8")
        Path(folder).chmod(0o755)
        partial = target.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        line = command(wanted, partial, setup, sources)
        machine.run(
            machine.root_command(line, why=why) if machine.can_be_root(why) else line,
            what=f"building a Debian {wanted.suite} root file system",
            log=logs / f"mmdebstrap-{wanted.suite}.log",
        )
    partial.rename(target)
    return target, False


def has_image(client: DockerClient, tag: str) -> bool:
    """True when the engine has an image of that name."""
    from docker.errors import ImageNotFound

    try:
        client.images.get(tag)
    except ImageNotFound:
        return False
    return True


def ensure_box(client: DockerClient, progress: Progress) -> str:
    """The name of the box image, built and imported first when the engine does not have it."""
    return ensure(client, progress, "box image", BOX_REPOSITORY, box_recipe())


def ensure(client: DockerClient, progress: Progress, title: str, repository: str, wanted: Recipe) -> str:
    """The name of the image of a machine that boots systemd from the root file system of `wanted`, built and imported
    first when the engine does not have it. `title` is what the progress calls it.
    """
    tag = f"{repository}:{wanted.digest()}"
    with locked(images_dir() / f"{wanted.digest()}.lock"):
        if has_image(client, tag):
            return tag
        with progress.step(title, "building") as step:
            tarball, cached = rootfs(wanted)
            changes = ['CMD ["/lib/systemd/systemd"]', "ENV container=docker"]
            client.api.import_image_from_file(str(tarball), repository=repository, tag=wanted.digest(), changes=changes)
            step.result = "imported (root file system cached)" if cached else "built"
    return tag
