"""The time zone of the target, and which of its units are enabled."""

from collections.abc import Sequence

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script


class TimeZone(Fact[tuple[str, str]]):
    """The time zone by /etc/localtime and by /etc/timezone; each empty where it does not say one."""

    def command(self) -> StringCommand:
        return script(
            """
            echo "localtime=$(readlink /etc/localtime)" || exit 1
            echo "timezone=$(cat /etc/timezone 2>/dev/null)"
            """
        )

    def process(self, output: Sequence[str]) -> tuple[str, str]:
        values = dict(line.partition("=")[::2] for line in output)
        if values.keys() != {"localtime", "timezone"}:
            raise FactProcessError(f"not a time zone: {list(output)!r}")
        return values["localtime"].partition("zoneinfo/")[2], values["timezone"].strip()


class Boot(Fact[str]):
    """Names the run of the operating system: another text after each boot, also of a container.

    By the kernel's own name for it, and when the first process began, which a container has of its own.
    """

    def command(self) -> StringCommand:
        return script('echo "$(cat /proc/sys/kernel/random/boot_id) $(cut -d " " -f 22 /proc/1/stat)"')

    def process(self, output: Sequence[str]) -> str:
        if len(output) != 1 or len(output[0].split()) != 2:
            raise FactProcessError(f"not the name of a boot: {list(output)!r}")
        return output[0]


class Enabled(Fact[frozenset[str]]):
    """Those of `units` that start at boot and are active now, or may not be active by a condition of their own."""

    def command(self, units: tuple[str, ...]) -> StringCommand:
        return script(
            """
            echo units
            for unit; do
                systemctl --quiet is-enabled -- "$unit" 2>/dev/null || continue
                # A condition that fails (no time service in a container) is no drift.
                if systemctl --quiet is-active -- "$unit" ||
                    [ "$(systemctl show --value --property ConditionResult -- "$unit")" = no ]
                then
                    echo "$unit"
                fi
            done
            """,
            *units,
        )

    def process(self, output: Sequence[str]) -> frozenset[str]:
        first, *rest = output
        if first != "units":
            raise FactProcessError(f"not a list of units: {first!r}")
        return frozenset(rest)
