"""The fail2ban role from settings alone: the jail it writes, what its filter counts, and what is refused."""

import configparser
import re
from typing import Any
from urllib.parse import unquote

import pytest

from boxwright.errors import Refused
from boxwright.settings import parse_box
from boxwright.templates import render
from roles.fail2ban import tasks as fail2ban
from roles.registry import Box

MODEL = {"name": "local-llm", "url": "https://models.example/a/b/tiny.gguf", "sha256": "ab" * 32, "size": 1000}


def a_box(**variables: Any) -> Box:
    defaults = {
        "gateway_names": ["llm.example"],
        "gateway_bind": ["0.0.0.0"],
        "inference_models": [MODEL],
        "fail2ban_enabled": True,
    }
    return parse_box(Box, "box", (), {**defaults, **variables}, None, None)


def parsed(text: str) -> configparser.ConfigParser:
    """A file of Fail2Ban's as Python's own parser, on which Fail2Ban's is built, reads it."""
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser


def jail(**variables: Any) -> configparser.SectionProxy:
    return parsed(fail2ban.jail(a_box(**variables)))["boxwright-gateway"]


def test_numbers_are_the_declared_ones() -> None:
    found = jail(fail2ban_attempts=3, fail2ban_window=60, fail2ban_ban=86400)
    assert (found["maxretry"], found["findtime"], found["bantime"]) == ("3", "60", "86400")


def test_the_ban_is_at_the_gateways_ports_only() -> None:
    assert jail(gateway_port=8443)["port"] == "8443"
    acme = {"gateway_tls": "acme", "gateway_acme_challenge": "http"}
    assert jail(**acme)["port"] == "443,80"


def test_the_log_is_that_of_the_server() -> None:
    assert jail()["logpath"] == a_box().gateway.access_log(a_box()) == "/var/log/caddy/access.log"


def test_who_is_never_banned() -> None:
    ignored = jail(fail2ban_never=["192.0.2.0/24", "2001:db8::7"], openwebui_subnet="10.9.8.0/28")["ignoreip"].split()
    assert ignored == [
        "127.0.0.0/8",
        "::1/128",
        "100.64.0.0/10",
        "fd7a:115c:a1e0::/48",
        "10.9.8.0/28",
        "192.0.2.0/24",
        "2001:db8::7/128",
    ]


def patterns() -> list[re.Pattern[str]]:
    """The regular expressions of the filter, with the address as Fail2Ban would find it."""
    raw = parsed(fail2ban.filter_text())["Definition"]["failregex"]
    return [re.compile(line.replace("<ADDR>", r"(?P<address>[0-9a-f.:]+)")) for line in raw.splitlines()]


def counted(line: str) -> str | None:
    """The address that `line` counts against; None when it is no attempt."""
    matches = [match for pattern in patterns() if (match := pattern.search(line))]
    return matches[0]["address"] if matches else None


def line(status: int, first_byte: str = "null", uri: str = "/v1/models", address: str = "192.0.2.7") -> str:
    """A line as Caddy 2.11 writes it."""
    return (
        '{"level":"info","ts":1795269062.7166224,"logger":"http.log.access.log0","msg":"handled request","request":'
        f'{{"remote_ip":"{address}","remote_port":"33402","client_ip":"{address}","proto":"HTTP/2.0","method":"GET",'
        f'"host":"llm.example","uri":"{uri}","headers":{{"User-Agent":["curl/7.88.1"],"Accept":["*/*"]}}}},'
        f'"bytes_read":0,"user_id":"","duration":0.000179407,"size":130,"status":{status},"resp_headers":{{"Server":'
        f'["Caddy"]}},"first_byte_ms":{first_byte},"client":""}}'
    )


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_a_401_of_the_gateway_counts(address: str) -> None:
    assert counted(line(401, address=address)) == address


@pytest.mark.parametrize("status", [200, 204, 400, 403, 404, 413, 421, 429, 502])
def test_other_answers_do_not_count(status: int) -> None:
    assert counted(line(status)) is None


def test_what_an_upstream_refuses_does_not_count() -> None:
    assert counted(line(401, first_byte="0.77")) is None


@pytest.mark.parametrize(
    "uri",
    [
        "/api/v1/auths/signin",
        "/api/v1/auths/signin?x=1",
        "/api/v1/auths/s%69gn%69n",
        "%2fapi%2Fv1/%61uths/signin",
        "https://llm.example/api/v1/auths/signin",
    ],
)
def test_a_wrong_password_at_the_login_page_counts_however_its_path_is_written(uri: str) -> None:
    assert unquote(uri).removeprefix("https://llm.example").startswith("/api/v1/auths/signin")
    assert counted(line(400, first_byte="80.1", uri=uri)) == "192.0.2.7"
    assert counted(line(200, first_byte="80.1", uri=uri)) is None


def test_another_bad_request_does_not_count() -> None:
    assert counted(line(400, first_byte="80.1", uri="/api/chat/completions")) is None
    assert counted(line(400, first_byte="80.1", uri="/api/v1/auths/signin-other")) is None


def test_ssh_is_left_as_it_is_but_for_where_its_messages_are() -> None:
    text = render("fail2ban/sshd.conf.j2", spared=["127.0.0.0/8"])
    assert dict(parsed(text)["sshd"]) == {"backend": "systemd", "ignoreip": "127.0.0.0/8"}
    # Fail2Ban reads *.conf before *.local, each in the order of their names: everybody else has the last word.
    assert sorted(["boxwright-sshd.conf", "defaults-debian.conf"])[0] == fail2ban.SSHD.rpartition("/")[2]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"gateway_trusted_proxies": ["192.0.2.0/24"]}, "gateway_trusted_proxies"),
        ({"gateway_bind": ["127.0.0.1", "::1"]}, "gateway_bind"),
    ],
)
def test_a_protection_that_would_be_none_is_refused(variables: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refused:
        a_box(**variables)
    [problem] = refused.value.problems
    assert (problem.code, problem.variable) == ("BW022", "fail2ban_enabled")
    assert words in problem.message
    # Where nothing is banned, there is nothing to refuse.
    assert not a_box(**variables, fail2ban_enabled=False).fail2ban.enabled
