"""PostgreSQL and Valkey as Homebrew's formulae for the double of a Mac: Debian's programs, with what they need.

The double's own system is the same release of Debian, so the programs run in it. They are taken from the container
image with databases that tests/api has.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from boxwright.facts.homebrew import PREFIX
from boxwright.lab import engine
from boxwright.lab.progress import Progress
from roles.postgresql.settings import FORMULA as POSTGRESQL
from roles.redis.tasks import FORMULA as VALKEY
from tests.api.databases import ensure_image

# Below a formula's folder: Debian's programs where they look for what belongs to them, libraries that a bare system
# lacks, and in bin/ what starts each program with them. $1 and $2 are the names of the formulae, $3 Homebrew's prefix.
_PACK = r"""
set -e
postgresql=/tmp/formulae/$1 valkey=/tmp/formulae/$2
mkdir -p "$postgresql/lib/postgresql" "$postgresql/share/postgresql" "$valkey/lib/valkey"
cp -a /usr/lib/postgresql/17 "$postgresql/lib/postgresql/"
cp -a /usr/share/postgresql/17 "$postgresql/share/postgresql/"
rm -rf "$postgresql"/lib/postgresql/17/lib/bitcode "$postgresql"/lib/postgresql/17/lib/llvmjit*
cp /usr/bin/valkey-check-rdb "$valkey/lib/valkey/valkey-server"
cp /usr/bin/valkey-cli "$valkey/lib/valkey/valkey-cli"
for formula in "$1" "$2"; do
    root=/tmp/formulae/$formula
    mkdir -p "$root/bin" "$root/lib/needed"
    find "$root/lib" -type f \( -perm -100 -o -name '*.so*' \) | xargs ldd 2>/dev/null |
        awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
        grep -v -E '/(libc|libm|libdl|libpthread|librt|libresolv)\.so' | xargs cp -L -t "$root/lib/needed"
    for program in "$root"/lib/postgresql/17/bin/* "$root"/lib/valkey/*; do
        [ -f "$program" ] || continue
        started=$3/opt/$formula/${program#"$root/"}
        cat >"$root/bin/${program##*/}" <<END
#!/bin/sh
LD_LIBRARY_PATH=$3/opt/$formula/lib/needed exec $started "\$@"
END
        chmod 755 "$root/bin/${program##*/}"
    done
done
"""


def formulae(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Name, version, and a folder below `folder` as it is to lie in the Cellar."""
    with Progress(plain=True) as progress:
        client = engine.ensure(progress)
        image = ensure_image(client, progress)
    container = client.containers.run(
        image, ["sh", "-c", _PACK, "pack", POSTGRESQL, VALKEY, PREFIX], entrypoint="", detach=True
    )
    try:
        ended = container.wait(timeout=120)
        assert ended["StatusCode"] == 0, container.logs().decode(errors="replace")
        pieces, _ = container.get_archive("/tmp/formulae")
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
            archive.extractall(folder, filter="data")
    finally:
        container.remove(force=True, v=True)
    for name, version in ((POSTGRESQL, "17.5"), (VALKEY, "8.1.1")):
        yield name, version, folder / "formulae" / name
