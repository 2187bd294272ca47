"""What several roles' checks ask of a box, each with a tool that knows nothing of boxwright."""

import re
from typing import Any


def listeners(host: Any, port: int) -> set[str]:
    """Addresses on which something listens on TCP `port`.

    A socket that takes connections of both families, which `ss` prints as `*`, counts as `0.0.0.0` and `::`.
    """
    addresses = set()
    for line in host.check_output("ss -Hltn").splitlines():
        address, _, found = line.split()[3].rpartition(":")
        if found == str(port):
            plain = address.split("%")[0].strip("[]")
            addresses |= {"0.0.0.0", "::"} if plain == "*" else {plain}  # noqa: S104 -- found, not opened
    return addresses


def exposure(host: Any, service: str) -> float:
    """How exposed systemd rates `service`: 0 (nothing) to 10 (everything)."""
    output = host.check_output(f"systemd-analyze security --no-pager {service}.service")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", output)
    assert found, output
    return float(found.group(1))


def unprivileged(host: Any, service: str, account: str) -> bool:
    """Whether the main process of `service` runs as `account` and can get no capability."""
    pid = host.check_output(f"systemctl show --value --property MainPID {service}").strip()
    owner = host.check_output(f"stat -c %U /proc/{pid}").strip()
    status = host.check_output(f"cat /proc/{pid}/status")
    return owner == account and re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE) is not None


def layers_on_the_card(host: Any, unit: str) -> tuple[int, int] | None:
    """Layers of the model that the running llama.cpp of the service `unit` has put on the graphics card, and all.

    None where its log has no such line: builds for the processor alone print none. The line is printed by
    `llama_model::load_tensors` when a model was loaded (llama.cpp, src/llama-model.cpp).
    """
    run = host.check_output(f"systemctl show -P InvocationID {unit}")
    said = host.check_output(f"journalctl --no-pager --output cat _SYSTEMD_INVOCATION_ID={run}")
    found = re.findall(r"offloaded (\d+)/(\d+) layers to GPU", said)
    return (int(found[-1][0]), int(found[-1][1])) if found else None
