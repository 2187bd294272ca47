"""The gateway as nginx, from settings alone: what its configuration means, and what is refused because it cannot."""

import re
from typing import Any

import pytest
from test_role_files import a_box

from boxwright.errors import Refused
from boxwright.preflight import Machine
from boxwright.systemd import systemd_unit
from roles.gateway import nginx, tasks
from roles.gateway.authority import alternative_names

TOKEN = "token.of+a/client~with-signs=="


def nginx_box(**variables: Any) -> Any:
    return a_box(gateway_server="nginx", **variables)


def servers(text: str) -> dict[str, str]:
    """The servers of a configuration by what they listen on and whether they are the default."""
    found = {}
    for body in re.findall(r"^\tserver \{\n(.*?)^\t\}", text, re.MULTILINE | re.DOTALL):
        listens = re.findall(r"^\t\tlisten ([^;]+);", body, re.MULTILINE)
        found[" | ".join(listens)] = body
    return found


def locations(server: str) -> dict[str, str]:
    """The locations of a server by what they match."""
    return dict(re.findall(r"^\t\tlocation ([^{]+) \{\n(.*?)^\t\t\}", server, re.MULTILINE | re.DOTALL))


def mapped(text: str, variable: str) -> list[tuple[str, str]]:
    """Sources and results of the map that sets `variable`, as nginx understands them."""
    (body,) = re.findall(rf"^\tmap [^{{]+ \${variable} \{{\n(.*?)^\t\}}", text, re.MULTILINE | re.DOTALL)
    rows = [line.strip().removesuffix(";").rpartition(" ")[::2] for line in body.splitlines()]
    # What a backslash before a quote or another backslash means in a quoted word.
    return [(re.sub(r'\\(["\\])', r"\1", source.strip('"')), result) for source, result in rows]


def accepts(text: str, variable: str, value: str) -> str:
    """What the map says to `value`: regular expressions only, and those with regard to case."""
    for source, result in mapped(text, variable):
        if source.startswith("~") and re.search(source[1:].replace(r"\z", r"\Z"), value):
            assert not source.startswith("~*")
            return result
    return ""


def door(text: str) -> str:
    """The server of the declared names."""
    return next(body for listens, body in servers(text).items() if listens.endswith(":443 ssl http2"))


def test_a_token_is_accepted_to_the_letter_and_nothing_else() -> None:
    text = nginx.configuration(nginx_box(gateway_tokens={"app": TOKEN, "other": "x" * 20}))
    for header in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
        assert accepts(text, "client", header) == "app"
    wrong = [TOKEN, f"Bearer {TOKEN}x", f"Bearer x{TOKEN}", f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN} {TOKEN}"]
    wrong += [f"Basic {TOKEN}", f"Bearer {TOKEN.replace('.', 'x')}", "Bearer ", ""]
    assert {accepts(text, "client", header) for header in wrong} == {""}
    # A plain string, which nginx would compare without regard to case, is none of them.
    assert [source for source, _ in mapped(text, "client") if not source.startswith("~")] == ["default"]


@pytest.mark.parametrize("auth", ["any", "basic", "bearer"])
def test_authentication_comes_before_the_places_and_the_engine(auth: str) -> None:
    found = locations(door(nginx.configuration(nginx_box(gateway_auth=auth))))
    entry, engine = found["~ ^/v1(?:/|$)"], found["@v1"]
    assert "try_files /nothing @v1;" in entry
    assert "proxy_pass" not in entry
    assert "limit_conn" not in entry
    assert ("auth_basic_user_file" in entry) == (auth != "bearer")
    assert ('if ($client = "")' in entry) == (auth == "bearer")
    assert "limit_conn v1_in_flight 10;" in engine
    assert "auth_basic" not in engine
    # Credentials of the door go no further.
    assert 'proxy_set_header Authorization "";' in engine
    # From outside nobody gets into it but through the entry.
    assert [body for name, body in found.items() if "proxy_pass http://v1;" in body] == [engine]


def test_the_password_is_kept_as_its_hash() -> None:
    box = nginx_box()
    assert box.gateway.password.get_secret_value() not in nginx.configuration(box) + str(nginx.secret_files(box))
    assert nginx.secret_files(box)[nginx.USERS] == f"boxwright:{box.gateway.password_hash.get_secret_value()}\n"


def test_only_declared_paths_are_offered() -> None:
    text = nginx.configuration(
        nginx_box(gateway_routes=[{"path": "/vllm", "upstreams": ["127.0.0.1:8000"], "allow": ["/v1/models", "/x/*"]}])
    )
    for path in ("/v1/models", "/v1/models/a/b", "/v1/chat/completions"):
        assert accepts(text, "v1_offered", path), path
    for path in ("/v1", "/v1/slots", "/v1/modelsx", "/v1/models\n", "/x/v1/models", "/v1xmodels"):
        assert not accepts(text, "v1_offered", path), path
    assert accepts(text, "route_vllm_offered", "/vllm/v1/models")
    assert accepts(text, "route_vllm_offered", "/vllm/x/y")
    assert not accepts(text, "route_vllm_offered", "/v1/models")
    assert "rewrite (?s)^/vllm/?(.*)$ /$1 break;" in door(text)
    # The engine gets the path that was looked at.
    assert "rewrite (?s)^(.*)$ $1 break;" in door(text)


def test_the_door_is_open_where_declared_and_nowhere_else() -> None:
    text = nginx.configuration(nginx_box(gateway_bind=["192.0.2.1", "2001:db8::1"], gateway_names=["a.example", "::1"]))
    both = "192.0.2.1:443 ssl http2", "[2001:db8::1]:443{} ssl http2"
    assert set(servers(text)) == {
        " | ".join(f"{listen} default_server" for listen in both).format(" ipv6only=on"),
        " | ".join(both).format(""),
        "127.0.0.1:9180",
        "172.30.77.1:8088",
    }
    assert "server_name a.example [::1];" in door(text)
    assert next(body for listens, body in servers(text).items() if "default_server" in listens).count("return 421;")


def test_an_origin_is_declared_to_the_letter() -> None:
    text = nginx.configuration(nginx_box(gateway_cors_origins=["https://app.example"]))
    assert accepts(text, "declared_origin", "https://app.example") == "$http_origin"
    for origin in ("https://appxexample", "https://app.example.evil", "http://app.example", "xhttps://app.example"):
        assert not accepts(text, "declared_origin", origin)
    found = locations(door(text))
    for name, body in found.items():
        assert body.count("add_header Access-Control-Allow-Origin") == (0 if name == "/" else 1), name
    assert "proxy_hide_header Access-Control-Allow-Origin;" in found["@v1"]
    # A preflight is answered before anybody is asked for credentials.
    assert found["~ ^/v1(?:/|$)"].index("return 204") < found["~ ^/v1(?:/|$)"].index("auth_basic")
    assert "Access-Control-Allow" not in nginx.configuration(nginx_box()).replace("proxy_hide_header Access", "")


def test_the_internal_listener_wants_the_key_and_the_subnet() -> None:
    box = nginx_box(openwebui_subnet="10.9.8.0/28", gateway_internal_port=9000)
    text = nginx.configuration(box)
    inner = locations(servers(text)["10.9.8.1:9000"])
    assert accepts(text, "from_open_webui", f"Bearer {box.openwebui.engine_key.get_secret_value()}") == "1"
    assert 'if ($from_open_webui = "")' in inner["~ ^/v1(?:/|$)"]
    assert "allow 10.9.8.0/28;\n\t\t\tdeny all;" in inner["~ ^/v1(?:/|$)"]
    assert "limit_conn v1_in_flight 10;" in inner["~ ^/v1(?:/|$)"]
    assert "return 401;" in inner["/"]
    assert nginx.service(box).wait_for_address == "10.9.8.1"
    alone = nginx_box(openwebui_enabled=False)
    assert "from_open_webui" not in nginx.configuration(alone)
    assert not nginx.service(alone).wait_for_address


def test_several_engines_have_places_of_their_own() -> None:
    text = nginx.configuration(nginx_box(gateway_engines=["192.0.2.11:8081", "[2001:db8::2]:80"], gateway_in_flight=4))
    for upstream in ("127.0.0.1:8081", "192.0.2.11:8081", "[2001:db8::2]:80"):
        assert f"server {upstream} max_conns=4 " in text
    assert "least_conn;" in text
    assert "limit_conn v1_in_flight 12;" in text


def test_only_declared_proxies_are_believed() -> None:
    assert "real_ip" not in nginx.configuration(nginx_box())
    text = nginx.configuration(nginx_box(gateway_trusted_proxies=["192.0.2.0/24"]))
    assert re.findall(r"set_real_ip_from ([^;]+);", text) == ["192.0.2.0/24"]
    assert "real_ip_recursive on;" in text


@pytest.mark.parametrize(
    ("uri", "logged"),
    [
        ("/v1/models?api_key=abc", "/v1/models?REDACTED"),
        ("/a?b=1&Token=abc&c=2", "/a?REDACTED"),
        ("/a?b=1&ap%69_key=abc", "/a?REDACTED"),
        ("/a?b=1;PASSWORD=abc", "/a?REDACTED"),
        ("/a?b=1?key=abc", "/a?REDACTED"),
        ("/a?keys=1&monkey=2", None),
        ("/a/key=1", None),
    ],
)
def test_a_query_with_a_secret_is_not_logged(uri: str, logged: str | None) -> None:
    found = None
    text = nginx.configuration(nginx_box())
    for source, _ in mapped(text, "logged_uri"):
        flags = re.IGNORECASE if source.startswith("~*") else 0
        pattern = source.lstrip("~*").replace("(?<", "(?P<")
        if found is None and source.startswith("~") and (match := re.search(pattern, uri, flags)):
            found = f"{next(iter(match.groupdict().values()))}?REDACTED"
    assert found == logged
    # Nothing else of a request that may be a secret is told.
    assert not re.search(
        r"\$(http_authorization|http_cookie|args|request\b|query_string)",
        re.findall(r"log_format(.*?);", text, re.DOTALL)[0],
    )


def test_the_log_is_rotated_as_declared() -> None:
    text = nginx.rotation(nginx_box(gateway_log_size="2MiB", gateway_log_keep=3))
    assert text.splitlines()[1] == "/var/log/gateway/access.log {"
    assert "size 2097152\n" in text
    assert "rotate 3\n" in text


def test_it_runs_in_the_sandbox_and_reloads() -> None:
    unit = systemd_unit(nginx.service(nginx_box()))
    assert "User=nginx\n" in unit
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n" in unit
    assert "CapabilityBoundingSet=\n" in systemd_unit(nginx.service(nginx_box(gateway_port=8443)))
    assert set(nginx.service(nginx_box()).reload_files) >= {nginx.CONFIGURATION, nginx.USERS, nginx.CERTIFICATE_KEY}


def test_a_given_certificate_and_its_key_are_one_file() -> None:
    """So that neither is ever there without the other, and a pair is examined before it takes the place of another."""
    given = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    key = "-----BEGIN PRIVATE KEY-----\nBBBB\n-----END PRIVATE KEY-----"
    box = nginx_box(gateway_tls="files", gateway_certificate=given, gateway_certificate_key=key)
    assert nginx.secret_files(box)[nginx.GIVEN] == f"{given}\n{key}\n"
    text = nginx.configuration(box)
    used = re.findall(r"ssl_certificate(?:_key)? ([^;]+);", text)
    assert used == [nginx.GIVEN] * 4
    assert nginx.GIVEN in nginx.service(box).reload_files


def test_certificates_have_names_and_addresses() -> None:
    assert alternative_names(["a.example", "192.0.2.1", "2001:db8::1"]) == "DNS:a.example,IP:192.0.2.1,IP:2001:db8::1"


@pytest.mark.parametrize(
    ("variables", "variable"),
    [
        ({"gateway_wait": 250}, "gateway_wait"),
        ({"gateway_tls": "tailscale", "gateway_names": ["box.some.ts.net"]}, "gateway_tls"),
        ({"gateway_tls": "acme", "gateway_bind": ["0.0.0.0"]}, "gateway_tls"),
        ({"gateway_hash": "argon2id"}, "gateway_hash"),
        ({"gateway_requests": 10}, "gateway_requests"),
        ({"gateway_requests_of_all": 10}, "gateway_requests_of_all"),
        ({"gateway_health": {"body": "ok"}}, "gateway_health"),
        ({"gateway_engines": ["engine.example:80"]}, "gateway_engines"),
        (
            {"gateway_routes": [{"path": "/a", "upstreams": ["127.0.0.1:1"], "health": {"body": "ok"}}]},
            "gateway_routes",
        ),
    ],
)
def test_what_nginx_cannot_do_is_refused_by_name(variables: dict[str, Any], variable: str) -> None:
    with pytest.raises(Refused) as refused:
        nginx_box(**variables)
    (problem,) = refused.value.problems
    assert (problem.code, problem.variable) == ("BW025", variable)
    assert "caddy" in (problem.help or "")
    assert a_box(**variables).gateway.server == "caddy"


def test_waiting_is_the_default_only_where_it_is_possible() -> None:
    assert a_box().gateway.patience == 250
    assert nginx_box().gateway.patience == 0
    assert nginx_box(gateway_wait=0).gateway.patience == 0


def machine(files: frozenset[str], **listeners: int) -> Machine:
    ports = {port: (name,) for name, port in listeners.items()}
    return Machine("Linux", "x86_64", "debian", "13", True, 2**34, 2**36, ports, files)


def test_the_other_server_may_hold_the_port_and_a_strangers_nginx_is_left_alone() -> None:
    for server in ("caddy", "nginx"):
        need = tasks.need(a_box(gateway_server=server))
        assert need.ports[443][1] == ("caddy", "nginx")
        assert nginx.CONFIGURATION in need.files
    (problem,) = nginx.fits(nginx_box(), machine(frozenset(), nginx=80))
    assert problem.code == "BW113"
    assert not list(nginx.fits(nginx_box(), machine(frozenset({nginx.CONFIGURATION}), nginx=80)))
    assert not list(nginx.fits(nginx_box(), machine(frozenset(), caddy=443)))
