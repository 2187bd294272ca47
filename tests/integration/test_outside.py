"""What a box is to somebody who is not on it: who is let in, what answers, and that it is the box that answers."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator

import pytest
import requests
from kit import Box

pytestmark = pytest.mark.lab

QUESTION = {"model": "local-llm", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
REQUESTS = [("GET", "v1/models", None), ("POST", "v1/chat/completions", QUESTION), ("POST", "v1/embeddings", QUESTION)]


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS, ids=[path for _, path, _ in REQUESTS])
def test_the_model_is_refused_without_the_right_credentials(
    full: Box, method: str, path: str, body: dict[str, object] | None
) -> None:
    user, password = full.credentials
    wrong = [None, (user, "wrong"), (user, ""), ("somebody", password), (user.upper(), password), (user, password[:-1])]
    for credentials in wrong:
        answer = full.http(method, path, auth=credentials, json=body)
        assert answer.status_code == 401, credentials
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert "local-llm" not in answer.text


@pytest.mark.parametrize(
    "path", ["V1/models", "v1//models", "/v1/models", "%76%31/models", "x/../v1/models", "v1%2Fmodels"]
)
def test_other_spellings_of_the_path_do_not_go_around_the_credentials(full: Box, path: str) -> None:
    request = requests.Request("GET", f"https://{full.address}/").prepare()
    request.url = f"https://{full.address}/{path}"  # as written: requests would tidy it
    with requests.Session() as session:
        session.trust_env = False
        answer = session.send(request, verify=str(full.ca), allow_redirects=False, timeout=30)
    assert "SmolLM2" not in answer.text
    assert '"owned_by":"llamacpp"' not in answer.text.replace(" ", "")


def test_a_key_for_open_webui_opens_nothing_from_outside(full: Box) -> None:
    """The key with which Open WebUI asks the gateway counts on the Compose network alone."""
    headers = {"Authorization": f"Bearer {full.secrets['openwebui_engine_key']}"}
    assert full.http("GET", "v1/models", headers=headers).status_code == 401


def test_the_model_answers_with_credentials(full: Box) -> None:
    models = full.http("GET", "v1/models", auth=full.credentials)
    assert models.status_code == 200
    assert [model["id"] for model in models.json()["data"]] == ["local-llm"]

    answer = full.http("POST", "v1/chat/completions", auth=full.credentials, json=QUESTION)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"].strip()
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_credentials_do_not_reach_the_engine(full: Box) -> None:
    """The gateway keeps what it asks for to itself: the engine's log and requests never see it."""
    token = base64.b64encode(":".join(full.credentials).encode()).decode()
    assert full.http("GET", "v1/models", auth=full.credentials).status_code == 200
    assert token not in full.sh("journalctl --no-pager --unit llamacpp --unit caddy")


def in_progress(box: Box) -> int:
    """Generations that the engine works on now, as its own metrics tell on the box."""
    metrics = box.sh("curl --silent --fail http://127.0.0.1:8081/metrics")
    found = re.search(r"^llamacpp:requests_processing (\d+)", metrics, re.MULTILINE)
    assert found, metrics
    return int(found.group(1))


def test_streams_one_after_the_other(full: Box) -> None:
    """None is sent on a connection that the engine is just closing, which would be answered 502."""
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(full.ca)
        body = {**QUESTION, "stream": True, "max_tokens": 8}
        url = f"https://{full.address}/v1/chat/completions"
        codes = [session.post(url, auth=full.credentials, json=body, timeout=120).status_code for _ in range(30)]
    assert codes == [200] * 30


def test_a_streamed_answer_arrives_while_it_is_made(full: Box) -> None:
    """The first piece is here while the engine still generates; pieces come one by one."""
    body = {**QUESTION, "stream": True, "max_tokens": 200, "ignore_eos": True}
    assert in_progress(full) == 0
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(
            f"https://{full.address}/v1/chat/completions",
            auth=full.credentials,
            verify=str(full.ca),
            json=body,
            stream=True,
            timeout=120,
        )
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        reads: Iterator[bytes] = answer.iter_content(chunk_size=None)
        first = next(reads)
        assert first.startswith(b"data: {")
        assert b"[DONE]" not in first
        assert in_progress(full) == 1
        rest = list(reads)
    assert rest[-1].endswith(b"data: [DONE]\n\n")
    # What was held back somewhere would come in a few large pieces.
    assert len(rest) > 50
    pieces = b"".join([first, *rest]).decode().split("\n\n")
    text = "".join(
        choice["delta"].get("content") or ""
        for piece in pieces
        if piece.startswith("data: {")
        for choice in json.loads(piece[6:])["choices"]
    )
    assert text.strip()


def test_the_login_page_of_open_webui_loads(full: Box) -> None:
    page = full.http("GET", "")
    assert page.status_code == 200
    assert "text/html" in page.headers["Content-Type"]
    assert "<title>Open WebUI</title>" in page.text
    scripts = re.findall(r'(?:src|href)="/?([^"]+\.(?:js|css))"', page.text)
    assert scripts
    for script in scripts[:5]:
        assert full.http("GET", script).status_code == 200, script
    assert full.http("GET", "api/config").json()["features"]["enable_signup"] is False


def test_open_webui_lets_only_the_administrator_in(full: Box) -> None:
    assert full.http("GET", "api/models").status_code == 401
    wrong = {"email": "admin@localhost", "password": full.secrets["gateway_password"]}
    assert full.http("POST", "api/v1/auths/signin", json=wrong).status_code == 400
    account = {"name": "x", "email": "x@example.org", "password": "an-uninvited-guest"}
    assert full.http("POST", "api/v1/auths/signup", json=account).status_code == 403
    assert full.http("GET", "api/models", headers=full.signed_in()).status_code == 200


def test_a_chat_through_open_webui_answers(full: Box) -> None:
    headers = full.signed_in()
    models = full.http("GET", "api/models", headers=headers).json()["data"]
    assert [model["id"] for model in models] == ["local-llm"]
    answer = full.http("POST", "api/chat/completions", headers=headers, json={**QUESTION, "stream": False})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].strip()


def test_a_chat_through_open_webui_answers_behind_the_firewall(full: Box) -> None:
    """Its container reaches the gateway by the box's inner address, which stays open to it and to nobody else."""
    full.settled = False
    walled = full.with_variables("walled", firewall_enabled=True)
    full.apply(inventory=walled).expect()
    assert full.changes(walled) == []
    full.run("boxwright", "verify", inventory=walled).expect()
    answer = full.http("POST", "api/chat/completions", headers=full.signed_in(), json={**QUESTION, "stream": False})
    assert answer.json()["choices"][0]["message"]["content"].strip()
    assert "firewall: " in "".join(full.changes())
    assert full.changes() == []


def test_the_model_is_preselected_in_open_webui(full: Box) -> None:
    assert full.http("GET", "api/config", headers=full.signed_in()).json()["default_models"] == "local-llm"


def upgrade(box: Box, origin: str) -> str:
    """The status line with which the box answers the wish for a WebSocket to Open WebUI."""
    context = ssl.create_default_context(cafile=str(box.ca))
    with (
        socket.create_connection((box.address, 443), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=box.address) as connection,
    ):
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            "GET /ws/socket.io/?EIO=4&transport=websocket HTTP/1.1",
            f"Host: {box.address}",
            f"Origin: {origin}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return connection.recv(4096).decode(errors="replace").splitlines()[0]


def test_websockets_of_open_webui_work_for_its_own_page_only(full: Box) -> None:
    assert upgrade(full, f"https://{full.address}").split()[1] == "101"
    assert upgrade(full, "https://somebody.else.example").split()[1] != "101"


def test_the_certificate_is_the_boxs_own(full: Box) -> None:
    """OpenSSL accepts the certificate for this address with the fetched root, and not without it."""

    def verify(*options: str) -> str:
        command = ["openssl", "s_client", "-connect", f"{full.address}:443", "-verify_ip", full.address, *options]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout

    assert "Verify return code: 0 (ok)" in verify("-CAfile", str(full.ca), "-no-CApath")
    assert "Verify return code: 0 (ok)" not in verify("-no-CAfile", "-no-CApath")
    # The root itself: what the box has, and nothing that could sign with it.
    assert full.ca.read_text() == full.sh("cat /var/lib/caddy/pki/authorities/local/root.crt")
    assert "PRIVATE KEY" not in full.ca.read_text()


def test_old_tls_and_plain_http_are_not_spoken(full: Box) -> None:
    for version in ("-tls1", "-tls1_1"):
        command = ["openssl", "s_client", "-connect", f"{full.address}:443", version, "-cipher", "ALL:@SECLEVEL=0"]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert "Cipher is (NONE)" in ended.stdout + ended.stderr, version
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(f"http://{full.address}:443/v1/models", auth=full.credentials, timeout=30)
        assert answer.status_code == 400
        assert "local-llm" not in answer.text


def test_a_name_that_was_not_declared_is_not_served(full: Box) -> None:
    answer = full.http("GET", "v1/models", auth=full.credentials, headers={"Host": "somebody.else.example"})
    assert answer.status_code == 421
