"""What a box says of its NVIDIA cards, their driver, and what hands them to containers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.graphics import CARDS
from boxwright.nvidia import OWNER_KEYS, DriverState, Source, module_version, secure_boot
from boxwright.shell import script

# In this order: nvidia-smi may wake the card up, and the module is what was loaded before.
_ASK = """
kernel=$(uname -r)
echo "kernel=$kernel"
echo "architecture=$(uname -m)"
sed 's/^/loaded=/' /proc/driver/nvidia/version 2>/dev/null
version_of() { modinfo -k "$kernel" -F version "$1" 2>/dev/null; }
echo "available=$(version_of nvidia || version_of nvidia-current)"
for library in /usr/lib/*-linux-gnu/libnvidia-ml.so.1 /usr/lib/libnvidia-ml.so.1 /usr/lib64/libnvidia-ml.so.1; do
    if [ -e "$library" ]; then echo "library=$(readlink -f "$library")"; break; fi
done
for list in /lib/modules/*/modules.dep; do
    if grep -q -s -E '/(nvidia|nvidia-current)[.]ko' "$list"; then
        list=${list%/modules.dep}
        echo "module=${list##*/}"
    fi
done
# The newest is what boot loaders of both distributions take.
newest=$(for image in /boot/vmlinuz-*; do echo "${image#/boot/vmlinuz-}"; done | sort -V | tail -n 1)
case $newest in "*") ;; *) echo "next=$newest" ;; esac
if command -v nvidia-smi >/dev/null; then
    said=$(nvidia-smi --query-gpu=index,uuid --format=csv,noheader 2>&1) || printf '%s\\n' "$said" | sed 's/^/smi=/'
else
    echo "smi=nvidia-smi: not found"
fi
if command -v mokutil >/dev/null; then
    mokutil --sb-state 2>&1 | sed 's/^/secure=/'
    for key in "$@"; do
        [ -e "$key" ] || continue
        # It ends with 1 for a key that the machine knows.
        case $(mokutil --test-key "$key" 2>&1) in
            *"is already enrolled"*) echo "key=enrolled" ;;
            *) echo "key=not enrolled" ;;
        esac
        break
    done
elif [ -d /sys/firmware/efi ]; then
    # The fifth byte of the variable; the four before it are its attributes.
    case $(od -An -t u1 -j 4 -N 1 /sys/firmware/efi/efivars/SecureBoot-* 2>/dev/null) in
        *1) echo "secure=SecureBoot enabled" ;;
        *) echo "secure=SecureBoot disabled" ;;
    esac
fi
dpkg-query --show --showformat '${db:Status-Abbrev} ${Package}\\n' 'nvidia-*' 'libnvidia-*' \\
    'linux-modules-nvidia-*' 'libcuda1' 'cuda-drivers*' 2>/dev/null \\
    | awk '$1 == "ii" && $2 !~ /container/ && $2 !~ /^nvidia-(installer-cleanup|legacy-check|detect)$/ {
        print "package=" $2 }'
echo examined=yes
"""


class Driver(Fact[DriverState]):
    """The `DriverState` of a box, in one command."""

    def command(self) -> StringCommand:
        return script(CARDS + _ASK, *OWNER_KEYS.values())

    def process(self, output: Sequence[str]) -> DriverState:
        values: dict[str, list[str]] = {}
        for line in output:
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
        if values.get("examined") != ["yes"]:
            raise FactProcessError(f"not the state of a driver: {list(output)[-3:]!r}")

        def one(key: str) -> str:
            return values.get(key, [""])[0].strip()

        try:
            loaded, is_open = module_version("\n".join(values["loaded"])) if "loaded" in values else ("", False)
        except ValueError as error:
            raise FactProcessError(str(error)) from None
        keys = get_args(DriverState.__annotations__["owner_key"])
        return DriverState(
            cards={address: by for address, _, by in (card.strip().partition(" ") for card in values.get("card", ()))},
            kernel=one("kernel"),
            architecture=one("architecture"),
            loaded=loaded,
            loaded_open=is_open,
            available=one("available"),
            libraries=one("library").rpartition(".so.")[2],
            kernels=tuple(values.get("module", ())),
            next_kernel=one("next"),
            smi=" ".join(line.strip() for line in values.get("smi", ())),
            secure_boot=secure_boot("\n".join(values.get("secure", ()))),
            owner_key=one("key") if one("key") in keys else "none",  # type: ignore[arg-type]
            packages=tuple(values.get("package", ())),
        )


class Offers(Fact[tuple[str, ...]]):
    """The lines of `ubuntu-drivers list --gpgpu`; empty where it is not installed or has nothing to offer.

    It ends with 1 where a kernel update must be finished first; what it says then is in the lines.
    """

    def command(self) -> StringCommand:
        return script("if command -v ubuntu-drivers >/dev/null; then ubuntu-drivers list --gpgpu 2>&1; fi; echo end")

    def process(self, output: Sequence[str]) -> tuple[str, ...]:
        if list(output)[-1:] != ["end"]:
            raise FactProcessError(f"ubuntu-drivers did not come to its end: {list(output)[-3:]!r}")
        return tuple(output[:-1])


class Candidate(Fact[bool]):
    """Whether apt can install `package`, by the lists that it has."""

    def command(self, package: str) -> StringCommand:
        text = """apt-cache policy -- "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print "yes" }'; echo end"""
        return script(text, package)

    def process(self, output: Sequence[str]) -> bool:
        if list(output)[-1:] != ["end"]:
            raise FactProcessError(f"apt-cache did not come to its end: {list(output)!r}")
        return "yes" in output


@dataclass(frozen=True)
class AptSources:
    """What apt reads: the archive's indexes, whether `package` can be had of them, and our file's text if there is
    one.
    """

    sources: tuple[Source, ...]
    candidate: bool
    written: bool


class Sources(Fact[AptSources]):
    """The `AptSources` of a box: whether it can install `package`, and whether the file `path` is there."""

    def command(self, package: str, path: str) -> StringCommand:
        return script(
            """
            list=$(apt-get indextargets --format '$(SOURCESENTRY)|$(SITE)|$(RELEASE)|$(COMPONENT)' \\
                'Created-By: Packages') || exit 1
            # An entry is the path of a file and which paragraph (or line) of it; apt itself tells no keys.
            printf '%s\\n' "$list" | while IFS='|' read -r entry rest; do
                file=${entry%:*} number=${entry##*:}
                case $file in
                    *.sources) key=$(grep -v '^#' -- "$file" | awk -v n="$number" 'BEGIN { RS = "" } NR == n' | awk '
                        tolower($1) == "signed-by:" { print (NF > 1 ? $2 : "inline"); exit }') ;;
                    *) key=$(sed -n "${number}p" -- "$file" | sed -n 's/.*[[ ]signed-by=\\([^] ]*\\).*/\\1/p') ;;
                esac
                echo "source=$rest|$key"
            done
            case $(apt-cache policy -- "$1" | awk '$1 == "Candidate:" { print $2 }') in
                "" | "(none)") ;;
                *) echo candidate=yes ;;
            esac
            if [ -e "$2" ]; then echo written=yes; fi
            echo examined=yes
            """,
            package,
            path,
        )

    def process(self, output: Sequence[str]) -> AptSources:
        lines = [line.partition("=")[::2] for line in output]
        if ("examined", "yes") not in lines:
            raise FactProcessError(f"not what apt reads: {list(output)[-3:]!r}")
        found = [value.split("|", 3) for key, value in lines if key == "source"]
        sources = tuple(Source(*(part.strip() for part in parts)) for parts in found if len(parts) == 4 and parts[0])
        return AptSources(sources, ("candidate", "yes") in lines, ("written", "yes") in lines)


@dataclass(frozen=True)
class ContainersState:
    """What hands cards to containers: `toolkit` is the version of nvidia-ctk, empty for none; `devices` are those of
    the specification that Docker reads (`nvidia.com/gpu=all`), and `driver` the version of the libraries in it.

    `refreshes`: the toolkit has the units by which it writes that again itself; they are `enabled`, and the one that
    watches the driver is `active`. `loaded` is the version of the kernel module at work, `cards` how many nvidia-smi
    lists.
    """

    toolkit: str
    devices: tuple[str, ...]
    driver: str
    refreshes: bool
    enabled: bool
    active: bool
    loaded: str
    cards: int

    @property
    def current(self) -> bool:
        """Whether the specification is there, and of the driver that runs."""
        return "nvidia.com/gpu=all" in self.devices and self.driver == self.loaded


# The kind and the names, as nvidia-ctk writes them into YAML; and the libraries, whose names end in the version.
_CONTAINERS = """
echo "toolkit=$(nvidia-ctk --version 2>/dev/null | sed -n 's/.*version \\([0-9][^ ]*\\).*/\\1/p' | head -n 1)"
for file in /var/run/cdi/nvidia.yaml /etc/cdi/nvidia.yaml; do
    [ -e "$file" ] || continue
    kind=$(sed -n 's/^kind: *//p' "$file" | tr -d '"' | head -n 1)
    sed -n '/^devices:/,/^[a-z]/s/^ *-\\{0,1\\} *name: *//p' "$file" | tr -d '"' | sed "s|^|device=$kind=|"
    echo "driver=$(sed -n 's/.*libcuda[.]so[.]\\([0-9][0-9]*[.][0-9.]*[0-9]\\).*/\\1/p' "$file" | head -n 1)"
    break
done
systemctl show --property=LoadState,UnitFileState nvidia-cdi-refresh.path nvidia-cdi-refresh.service
echo "active=$(systemctl is-active nvidia-cdi-refresh.path)"
sed 's/^/loaded=/' /proc/driver/nvidia/version 2>/dev/null
echo "cards=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | grep -c '^[0-9]')"
echo examined=yes
"""


class Containers(Fact[ContainersState]):
    """The `ContainersState` of a box."""

    def command(self) -> StringCommand:
        return script(_CONTAINERS)

    def process(self, output: Sequence[str]) -> ContainersState:
        values: dict[str, list[str]] = {}
        for line in output:
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value.strip())
        if values.get("examined") != ["yes"]:
            raise FactProcessError(f"not the state of the container toolkit: {list(output)[-3:]!r}")

        def one(key: str) -> str:
            return values.get(key, [""])[0]

        try:
            loaded = module_version("\n".join(values["loaded"]))[0] if "loaded" in values else ""
        except ValueError as error:
            raise FactProcessError(str(error)) from None
        return ContainersState(
            toolkit=one("toolkit"),
            devices=tuple(values.get("device", ())),
            driver=one("driver"),
            refreshes=values.get("LoadState") == ["loaded", "loaded"],
            enabled=values.get("UnitFileState") == ["enabled", "enabled"],
            active=one("active") == "active",
            loaded=loaded,
            cards=int(one("cards") or 0),
        )
