"""What must hold of the gateway, most of it as seen from outside."""

from typing import Any

import pytest

from boxwright.testing.probes import exposure, listeners, on_a_mac, process, sockets, starts_at_boot, unprivileged

CONFIGURATIONS = {"caddy": "Caddyfile", "nginx": "nginx.conf"}
LONG_ANSWERS = ("Count from one to twenty.", "Tell me a story about a fox.", "Name the months of the year.")
QUESTION = {"messages": [{"role": "user", "content": LONG_ANSWERS[0]}], "max_tokens": 48}


@pytest.fixture
def engine(box: Any) -> None:
    """Leaves a check out where nothing serves a model."""
    if box.inference.main is None:
        pytest.skip("this box serves no model")


@pytest.fixture
def own_credentials(box: Any) -> None:
    """Leaves a check out where not the gateway knows who may ask, but the API service."""
    if box.gateway.asks_for_keys:
        pytest.skip("gateway_auth is keys: the checks of the API service ask with a key of theirs")


def test_running_and_enabled(host: Any, box: Any) -> None:
    """The gateway runs and starts at boot, and no other server beside it."""
    assert process(host, box.gateway.server)
    assert starts_at_boot(host, box.gateway.server)
    other = {"caddy": "nginx", "nginx": "caddy"}[box.gateway.server]
    assert host.run(f"systemctl cat {other}.service | grep -q /etc/boxwright/").rc != 0


@pytest.mark.system("darwin")
def test_is_not_root(host: Any) -> None:
    """The gateway has an account of its own."""
    assert unprivileged(host, "caddy", "caddy")


@pytest.mark.system("linux")
def test_sandbox(host: Any, box: Any) -> None:
    """systemd rates the exposure of the service 1.5 or better."""
    assert exposure(host, box.gateway.server) <= 1.5


def test_listens_where_declared(host: Any, box: Any) -> None:
    """The door is open on the declared addresses only."""
    assert listeners(host, box.gateway.port) == {str(address) for address in box.gateway.bind}


def test_the_door_is_the_only_one(host: Any, box: Any) -> None:
    """Beside SSH, nothing but the door listens on an address that others can reach.

    What tailscaled listens on is reached within the tailnet alone, and is what the role tailscale declares.
    """
    ssh = host.backend.tested.connection.port or 22
    allowed = {ssh, box.gateway.port} if box.gateway.public_addresses else {ssh}
    # What a Mac's owner shares is the owner's; a person's programs run while somebody is signed in.
    allowed |= {5900} if on_a_mac(host) else set()
    internal = (box.openwebui.box_address(box), box.gateway.internal_port)
    public = set()
    for program, address, port in sockets(host):
        if box.tailscale.enabled and program == "tailscaled":
            continue
        if not address.startswith("127.") and address != "::1" and (address, port) != internal:
            public.add(port)
    assert box.gateway.port in public or not box.gateway.public_addresses
    assert public <= allowed


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("path", ["v1/models", "v1/chat/completions"])
def test_refused_without_credentials(outside: Any, box: Any, path: str) -> None:
    """Without credentials, and with wrong ones, the model's paths answer 401."""
    if box.gateway.auth == "none":
        pytest.skip("gateway_auth is none: the door is open to the box alone, and asks nobody who they are")
    method = "GET" if path.endswith("models") else "POST"
    body = {} if method == "GET" else {"json": QUESTION}
    assert outside.request(method, path, auth=False, **body).status_code == 401
    assert outside.request(method, path, auth=(box.gateway.user, "wrong"), **body).status_code == 401
    password = box.gateway.password.get_secret_value()
    assert outside.request(method, path, auth=("wrong", password), **body).status_code == 401


@pytest.mark.usefixtures("engine", "own_credentials")
def test_models(outside: Any, box: Any) -> None:
    """With credentials the model is listed under its public name."""
    assert box.engine(box.inference.engine).listed(box.inference.main.name) in outside.models()


@pytest.mark.usefixtures("engine", "own_credentials")
def test_chat(outside: Any) -> None:
    """With credentials a chat completion answers."""
    assert outside.chat("Say hello.", max_tokens=16).strip()


@pytest.mark.usefixtures("engine", "own_credentials")
def test_stream(outside: Any) -> None:
    """A streamed answer arrives piece by piece, each as soon as the model has it."""
    from time import monotonic

    # The first question may have to wait until the model is in memory.
    outside.chat("Say hello.", max_tokens=1)
    shares = []
    for question in LONG_ANSWERS * 2:
        asked = monotonic()
        times = [monotonic() for _ in outside.stream_chat(question, max_tokens=48)]
        # A small model may answer anything in three words, and they tell nothing.
        if len(times) > 5:
            shares.append((times[-1] - times[0]) / (times[-1] - asked))
        if len(shares) == 3:
            break
    if not shares:
        pytest.skip(f"the model answered {len(LONG_ANSWERS) * 2} questions in five pieces or fewer each")
    # Were the whole answer held back, all pieces would arrive together, at its very end.
    assert max(shares) > 0.25


@pytest.mark.usefixtures("engine", "own_credentials")
def test_engine_paths_beside_v1_stay_inside(outside: Any) -> None:
    """What the engine offers beside /v1 is not reachable from outside."""
    for path in ("metrics", "slots", "props", "completion"):
        answer = outside.get(path, auth=True)
        assert "llama" not in answer.text[:2000].lower(), path


def test_undeclared_names_are_refused(outside: Any) -> None:
    """A request for a name that was not declared is refused."""
    assert outside.get("v1/models", headers={"Host": "somebody.else.example"}).status_code == 421


def test_settings_are_for_the_gateway_alone(host: Any, box: Any) -> None:
    """Only root and the gateway can read its settings, which hold tokens and a password's hash."""
    server = box.gateway.server
    folder = host.file(f"/etc/boxwright/{server}")
    group = box.gateway.account(box) if server == "caddy" else server
    assert (folder.user, folder.group, folder.mode) == ("root", group, 0o750)
    file = host.file(f"/etc/boxwright/{server}/{CONFIGURATIONS[server]}")
    assert (file.user, file.group, file.mode) == ("root", group, 0o640)


def test_metrics_are_for_the_box_alone(host: Any, box: Any) -> None:
    """The gateway tells its metrics, and on loopback only."""
    port = box.gateway.metrics_port
    assert listeners(host, port) == {"127.0.0.1"}
    said = host.check_output(f"curl --silent --fail http://127.0.0.1:{port}/metrics")
    assert {"caddy": "caddy_", "nginx": "Active connections:"}[box.gateway.server] in said


def test_administration_is_closed(host: Any, box: Any) -> None:
    """The administration interface is a socket that others cannot open."""
    if box.gateway.server == "nginx":
        pytest.skip("nginx has no administration interface")
    socket = f"{'/var/run' if on_a_mac(host) else '/run'}/caddy/admin.sock"
    nobody = "sudo -n -H -u nobody sh -c" if on_a_mac(host) else "su -s /bin/sh nobody -c"
    assert host.run(f"test -S {socket}").rc == 0
    assert host.run(f"{nobody} 'echo asked; test -e {socket}'").stdout == "asked\n"
    assert host.run(f"{nobody} 'test -e {socket}'").rc == 1
