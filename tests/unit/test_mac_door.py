"""What of a box is no engine, on a Mac and beside Docker: refusals, files and services, from settings alone."""

import plistlib
import re
from dataclasses import replace
from typing import Any

import pytest

from boxwright import caddy_build, launchd, platforms
from boxwright.errors import Problem, Refused
from boxwright.preflight import Machine
from boxwright.settings import parse_box
from boxwright.systemd import systemd_unit
from roles.cloudflared import tasks as cloudflared
from roles.gateway import caddy
from roles.openwebui import native
from roles.openwebui import tasks as openwebui
from roles.openwebui.environment import environment
from roles.registry import Box
from roles.tailscale import tasks as tailscale

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}
MAC = Machine("Darwin", "arm64", "macos", "26.1", systemd=False, memory=2**36, disk_free=2**38)
DEBIAN = Machine("Linux", "x86_64", "debian", "12", systemd=True, memory=2**33, disk_free=2**34)
CREDENTIALS = '{"AccountTag": "a", "TunnelSecret": "cw==", "TunnelID": "6ff42ae2-765d-4adf-8112-31c55c1551ef"}'


def a_box(system: str = "darwin", **variables: Any) -> Box:
    defaults = {"gateway_names": ["llm.example.com"], "gateway_port": 8443, "inference_models": [MODEL]}
    return parse_box(Box, "box", (system,), {**defaults, **variables}, None, None)


def refused(system: str = "darwin", **variables: Any) -> list[Problem]:
    with pytest.raises(Refused) as caught:
        a_box(system, **variables)
    return list(caught.value.problems)


def definition(service: Any) -> dict[str, Any]:
    found: dict[str, Any] = plistlib.loads(launchd.plist(service).encode())
    return found


# The gateway


@pytest.mark.parametrize(
    ("variables", "variable", "message", "help"),
    [
        ({"gateway_server": "nginx"}, "gateway_server", "nginx", "caddy"),
        ({"gateway_port": 443}, "gateway_port", "port 443 on 127.0.0.1", "gateway_port: 8443"),
        ({"gateway_port": 443, "gateway_bind": ["0.0.0.0", "192.0.2.1"]}, "gateway_port", "on 192.0.2.1", "8443"),
        (
            {"gateway_tls": "acme", "gateway_bind": ["0.0.0.0"], "gateway_port": 443},
            "gateway_bind",
            "IPv6",
            "dns-cloudflare",
        ),
        (
            {"gateway_tls": "acme", "gateway_acme_challenge": "http", "gateway_bind": ["192.0.2.1"]},
            "gateway_acme_challenge",
            "port 80 on 192.0.2.1",
            "gateway_bind: [0.0.0.0, '::']",
        ),
    ],
)
def test_what_a_mac_cannot_open_is_refused(variables: dict[str, Any], variable: str, message: str, help: str) -> None:
    (problem,) = refused(**variables)
    assert (problem.code, problem.variable) == ("BW027", variable)
    assert message in problem.message
    assert help in (problem.help or "")
    # All of it is fine on Linux.
    assert a_box("linux", **variables)


@pytest.mark.parametrize("bind", [["0.0.0.0"], ["0.0.0.0", "::"], ["::"]])
def test_a_low_port_on_all_addresses_is_anybodys(bind: list[str]) -> None:
    assert a_box(gateway_bind=bind, gateway_port=443).gateway.port == 443


def test_the_gateway_as_a_daemon() -> None:
    box = a_box()
    found = definition(caddy.service(box))
    assert found["Label"] == "boxwright.caddy"
    words = " ".join(found["ProgramArguments"])
    assert "--user _caddy --group _caddy" in words
    for folder in ("/var/lib/boxwright/caddy", "/var/run/caddy", "/var/log/caddy"):
        assert f"--folder {folder} " in words
    text = caddy.caddyfile(box)
    assert "admin unix//var/run/caddy/admin.sock\n" in text
    assert "storage file_system /var/lib/boxwright/caddy\n" in text
    assert "output file /var/log/caddy/access.log" in text
    assert box.gateway.own_authority(box) == "/var/lib/boxwright/caddy/pki/authorities/local/root.crt"
    # On Linux nothing of it has moved.
    text = caddy.caddyfile(a_box("linux"))
    assert "admin unix//run/caddy/admin.sock\n" in text
    assert "storage file_system /var/lib/caddy\n" in text


@pytest.mark.parametrize(("system", "group"), [("darwin", "wheel"), ("linux", "root")])
def test_the_custom_program_belongs_to_a_group_that_there_is(
    monkeypatch: pytest.MonkeyPatch, system: str, group: str
) -> None:
    put: dict[str, Any] = {}
    monkeypatch.setattr(caddy.pyinfra_files, "put", lambda **arguments: put.update(arguments))
    monkeypatch.setattr(caddy.users, "system_user", lambda *arguments, **more: None)
    monkeypatch.setattr(platforms, "system", lambda: system)
    caddy.install(a_box(system, gateway_requests=60), MAC if system == "darwin" else DEBIAN)
    assert (put["user"], put["group"], put["mode"]) == ("root", group, "755")


def test_the_custom_program_is_one_for_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caddy_build, "available", lambda arch: False)
    (problem,) = caddy.fits(a_box(gateway_requests=10), MAC)
    assert "boxwright caddy build --arch macos-arm64" in (problem.help or "")
    assert list(caddy.fits(a_box(), MAC)) == []


# Open WebUI


def test_it_runs_in_a_container_on_linux_and_without_on_a_mac() -> None:
    linux, mac = a_box("linux"), a_box()
    assert (linux.openwebui.in_container(linux), linux.openwebui.native(linux)) == (True, False)
    assert (mac.openwebui.in_container(mac), mac.openwebui.native(mac)) == (False, True)
    off = a_box(openwebui_enabled=False)
    assert (off.openwebui.in_container(off), off.openwebui.native(off)) == (False, False)


@pytest.mark.parametrize(
    ("system", "variables", "code", "variable"),
    [
        ("darwin", {"openwebui_version": "0.12.3"}, "BW022", "openwebui_version"),
        ("linux", {"openwebui_run": "native", "openwebui_version": "0.12.3"}, "BW022", "openwebui_version"),
        ("darwin", {"openwebui_port": 8443}, "BW024", "openwebui_port"),
    ],
)
def test_what_cannot_run_is_refused(system: str, variables: dict[str, Any], code: str, variable: str) -> None:
    assert [(problem.code, problem.variable) for problem in refused(system, **variables)] == [(code, variable)]


def test_what_is_fine_without_a_container() -> None:
    other = f"open-webui==0.12.3 --hash=sha256:{'0' * 64}\n"
    box = a_box("linux", openwebui_run="native", openwebui_version="0.12.3", openwebui_requirements=other)
    assert native.requirements(box) == other
    assert a_box("linux", openwebui_run="native", docker_enabled=False).openwebui.enabled
    # The port is nobody's while it runs in a container.
    assert a_box("linux", openwebui_port=8443).openwebui.port == 8443


def test_it_has_one_door_to_the_engine_and_the_gateway_one_to_it() -> None:
    box = a_box(openwebui_port=8100, gateway_internal_port=8101)
    told = native.variables(box)
    assert told["OPENAI_API_BASE_URL"] == "http://127.0.0.1:8101/v1"
    assert told["FORWARDED_ALLOW_IPS"] == "127.0.0.1"
    assert told["RAG_EMBEDDING_ENGINE"] == "openai"
    # The rest is what a container is told.
    assert environment(box).items() <= told.items()
    text = caddy.caddyfile(box)
    assert "reverse_proxy http://127.0.0.1:8100 {" in text
    internal = text.partition("http://127.0.0.1:8101 {")[2].partition("\n}\n")[0]
    assert "bind 127.0.0.1\n" in internal
    assert "remote_ip 127.0.0.1/32" in internal
    assert 'header Authorization "Bearer {file./etc/boxwright/caddy/openwebui.key}"' in internal
    assert box.openwebui.engine_key.get_secret_value() not in text


def test_the_user_has_the_last_word_on_its_environment() -> None:
    assert native.variables(a_box(openwebui_environment={"RAG_EMBEDDING_ENGINE": "ollama"}))[
        "RAG_EMBEDDING_ENGINE"
    ] == ("ollama")


def test_it_is_in_a_sandbox_on_linux_and_has_an_account_of_its_own_on_a_mac() -> None:
    box = a_box("linux", openwebui_run="native")
    unit = systemd_unit(native.service(box))
    assert "User=openwebui\n" in unit
    assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in unit
    assert "ReadWritePaths=/var/lib/boxwright/openwebui\n" in unit
    secret = box.openwebui.secret_key.get_secret_value()
    assert secret not in unit
    mac = native.service(a_box())
    found = definition(mac)
    assert "--user _openwebui" in " ".join(found["ProgramArguments"])
    assert "--environment /etc/boxwright/openwebui/openwebui.env" in " ".join(found["ProgramArguments"])
    assert re.search(r"--host 127\.0\.0\.1 --port 8087 --forwarded-allow-ips 127\.0\.0\.1", " ".join(mac.command))


@pytest.mark.parametrize(
    ("machine", "variables", "fits"),
    [
        (DEBIAN, {}, True),
        (replace(DEBIAN, release="13"), {}, False),
        (replace(DEBIAN, release="13"), {"openwebui_python": "/opt/python/bin/python3.12"}, True),
        (replace(DEBIAN, distribution="ubuntu", release="22.04"), {}, False),
        (replace(DEBIAN, distribution="ubuntu", release="24.04"), {}, True),
    ],
)
def test_a_python_that_it_does_not_work_with_is_refused(
    machine: Machine, variables: dict[str, Any], fits: bool
) -> None:
    box = a_box("linux", openwebui_run="native", **variables)
    problems = [problem for condition in openwebui.need(box).conditions for problem in condition(machine)]
    assert [problem.code for problem in problems] == ([] if fits else ["BW114"])
    if not fits:
        assert "openwebui_run: container" in (problems[0].help or "")
    # In a container it has a Python of its own.
    assert openwebui.need(a_box("linux")).conditions == ()


def test_its_packages_are_pinned_for_the_release() -> None:
    text = native.REQUIREMENTS.read_text(encoding="utf-8")
    assert f"open-webui=={a_box().openwebui.version} " in text


# Tailscale


def test_a_second_daemon_is_refused_by_its_name() -> None:
    need = tailscale.need(a_box(tailscale_enabled=True))
    (fits,) = need.conditions
    assert list(fits(MAC)) == []
    for path, word in (
        ("/Applications/Tailscale.app", "app"),
        ("/Library/LaunchDaemons/com.tailscale.tailscaled.plist", "uninstall-system-daemon"),
        ("/Library/LaunchDaemons/homebrew.mxcl.tailscale.plist", "brew services stop tailscale"),
        ("/Library/LaunchDaemons/sh.brew.tailscale.plist", "brew services stop tailscale"),
    ):
        assert path in need.files
        (problem,) = fits(replace(MAC, files=frozenset({path})))
        assert (problem.code, problem.variable) == ("BW155", "tailscale_enabled")
        assert word in (problem.help or "")
        assert path in problem.message
    assert tailscale.need(a_box()).files == ()
    assert tailscale.need(a_box("linux", tailscale_enabled=True)).files == ()


def test_tailscaled_as_a_daemon_stays_the_machine_that_it_was() -> None:
    box = a_box(
        gateway_names=["llm.tail1234.ts.net"], tailscale_enabled=True, tailscale_hostname="llm", gateway_tls="tailscale"
    )
    found = definition(tailscale.service(box))
    words = " ".join(found["ProgramArguments"])
    assert words.endswith(
        "/opt/boxwright/tailscale/tailscaled --state=/Library/Tailscale/tailscaled.state "
        "--socket=/var/run/tailscaled.socket"
    )
    assert "--user root --group wheel" in words
    assert found["EnvironmentVariables"]["TS_PERMIT_CERT_UID"] == "_caddy"
    assert found["EnvironmentVariables"]["TS_NO_LOGS_NO_SUPPORT"] == "true"
    assert tailscale.service(a_box("linux", tailscale_enabled=True)).name == "tailscaled"


# cloudflared


def test_the_tunnel_reads_what_it_is_shown_and_nothing_of_others() -> None:
    """On a Mac nobody but Caddy may look into its folder, where the root certificate is."""
    box = a_box(cloudflared_enabled=True, cloudflared_credentials=CREDENTIALS)
    found = definition(cloudflared.service(box))
    words = " ".join(found["ProgramArguments"])
    assert "/opt/boxwright/cloudflared/cloudflared --config /etc/boxwright/cloudflared/config.yml" in words
    assert "--user _cloudflared" in words
    shown = "/var/run/boxwright-credentials/boxwright-cloudflared"
    assert found["EnvironmentVariables"]["CREDENTIALS_DIRECTORY"] == shown
    assert "--credential credentials.json:/etc/boxwright/cloudflared/credentials.json" in words
    assert "--credential gateway.pem:/var/lib/boxwright/caddy/pki/authorities/local/root.crt" in words
    rules = cloudflared.configuration(box)
    assert f"credentials-file: {shown}/credentials.json\n" in rules
    assert f"caPool: {shown}/gateway.pem\n" in rules
    linux = a_box("linux", cloudflared_enabled=True, cloudflared_credentials=CREDENTIALS)
    unit = systemd_unit(cloudflared.service(linux))
    assert "LoadCredential=credentials.json:/etc/boxwright/cloudflared/credentials.json\n" in unit
    assert "LoadCredential=gateway.pem:/var/lib/caddy/pki/authorities/local/root.crt\n" in unit
    assert "DynamicUser=yes\n" in unit
