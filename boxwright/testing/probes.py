"""What several roles' checks ask of a box, each with a tool that knows nothing of boxwright."""

import plistlib
import re
from collections.abc import Iterator
from typing import Any


def on_a_mac(host: Any) -> bool:
    """Whether the box runs macOS."""
    return bool(host.system_info.type == "darwin")


def listeners(host: Any, port: int) -> set[str]:
    """Addresses on which something listens on TCP `port`.

    A socket that takes connections of both families, which `ss` and `lsof` print as `*`, counts as `0.0.0.0` and `::`.
    """
    if on_a_mac(host):
        # One of IPv4 alone is printed as `*` too.
        every = {"IPv4": {"0.0.0.0"}, "IPv6": {"0.0.0.0", "::"}}  # noqa: S104 -- found, not opened
        there = [(kind, address) for kind, (_, address, found) in _mac_sockets(host) if found == port]
        return {one for kind, address in there for one in (every[kind] if address == "*" else {address})}
    addresses = set()
    for line in host.check_output("ss -Hltn").splitlines():
        address, _, found = line.split()[3].rpartition(":")
        if found == str(port):
            plain = address.split("%")[0].strip("[]")
            addresses |= {"0.0.0.0", "::"} if plain == "*" else {plain}  # noqa: S104 -- found, not opened
    return addresses


def sockets(host: Any) -> Iterator[tuple[str, str, int]]:
    """Everything that listens on a TCP port: the program (a Mac tells its first nine letters), address and port.

    The address of a socket that takes connections of both families is printed as `*`.
    """
    if on_a_mac(host):
        for _, found in _mac_sockets(host):
            yield found
        return
    for line in host.check_output("ss -Hltnp").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        users = re.search(r'users:\(\("([^"]*)"', line)
        yield users[1] if users else "", address.strip("[]").split("%")[0], int(port)


def _mac_sockets(host: Any) -> Iterator[tuple[str, tuple[str, str, int]]]:
    """`sockets` on a Mac, each after its kind: IPv4 or IPv6."""
    program = kind = ""
    # Ends with 1 where nothing listens. An option and its value in one word: else it is taken for two questions.
    for line in host.run("lsof -nP -iTCP -sTCP:LISTEN -Fctn").stdout.splitlines():
        if line.startswith("c"):
            program = line[1:]
        elif line.startswith("t"):
            kind = line[1:]
        elif line.startswith("n"):
            address, _, port = line[1:].rpartition(":")
            yield kind, (program, address.strip("[]"), int(port))


def session(host: Any, service: str) -> str:
    """The person of a Mac in whose session one of boxwright's services runs; empty for a LaunchDaemon."""
    definition = host.file(f"/Library/LaunchAgents/boxwright.{service}.plist")
    if not definition.exists:
        return ""
    words = plistlib.loads(definition.content)["ProgramArguments"]
    return str(words[words.index("--user") + 1])


def _domain(host: Any, user: str) -> str:
    """What launchd has a person's services in, or the system's."""
    return f"gui/{host.check_output(f'id -u {user}').strip()}" if user else "system"


def process(host: Any, service: str) -> int:
    """The main process of one of boxwright's services, which runs; raises AssertionError when it does not."""
    if on_a_mac(host):
        user = session(host, service)
        done = host.run(f"launchctl print {_domain(host, user)}/boxwright.{service}")
        said = done.stdout if done.rc == 0 else done.stderr
        assert done.rc == 0, f"{service} is not there{f', and starts when {user} signs in' if user else ''}: {said}"
        # Its own lines begin with one tab, what belongs to a block with two.
        state, pid = (re.findall(rf"^\t{word} = (.*)$", said, re.MULTILINE) for word in ("state", "pid"))
        assert state[:1] == ["running"], f"{service} does not run: {said}"
        return int(pid[-1])
    assert host.service(service).is_running, service
    return int(host.check_output(f"systemctl show --value --property MainPID {service}"))


def starts_at_boot(host: Any, service: str) -> bool:
    """Whether one of boxwright's services is started with the box; a LaunchAgent is with its user's session."""
    if on_a_mac(host):
        user = session(host, service)
        # A job without a row there is enabled; until macOS 12 `true` meant disabled.
        rows = host.check_output(f"launchctl print-disabled {_domain(host, user)}")
        off = re.search(rf'"boxwright[.]{re.escape(service)}" => (disabled|true)', rows)
        defined = user or host.file(f"/Library/LaunchDaemons/boxwright.{service}.plist").exists
        return bool(defined and not off)
    return bool(host.service(service).is_enabled)


def log(host: Any, service: str) -> str:
    """What the process of one of boxwright's services has said since it was started; on a Mac, what is in its log."""
    if on_a_mac(host):
        return str(host.check_output(f"cat /var/log/boxwright/{service}/{service}.log"))
    run = host.check_output(f"systemctl show -P InvocationID {service}")
    return str(host.check_output(f"journalctl --no-pager --output cat _SYSTEMD_INVOCATION_ID={run}"))


def exposure(host: Any, service: str) -> float:
    """How exposed systemd rates `service`: 0 (nothing) to 10 (everything)."""
    output = host.check_output(f"systemd-analyze security --no-pager {service}.service")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", output)
    assert found, output
    return float(found.group(1))


def unprivileged(host: Any, service: str, account: str) -> bool:
    """Whether the main process of `service` runs as `account` and can get no capability, or on a Mac as `_account`, or
    as the person in whose session it runs.
    """
    pid = process(host, service)
    if on_a_mac(host):
        owner = session(host, service) or f"_{account}"
        return bool(host.check_output(f"ps -ww -o user= -p {pid}").strip() == owner)
    owner = host.check_output(f"stat -c %U /proc/{pid}").strip()
    status = host.check_output(f"cat /proc/{pid}/status")
    return owner == account and re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE) is not None


def layers_on_the_card(host: Any, unit: str) -> tuple[int, int] | None:
    """Layers of the model that the running llama.cpp of the service `unit` has put on the graphics card, and all.

    None where its log has no such line: builds for the processor alone print none. The line is printed by
    `llama_model::load_tensors` when a model was loaded (llama.cpp, src/llama-model.cpp).
    """
    found = re.findall(r"offloaded (\d+)/(\d+) layers to GPU", log(host, unit))
    return (int(found[-1][0]), int(found[-1][1])) if found else None
