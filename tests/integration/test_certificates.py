"""Certificates come from where they are said to come from. Shown with real peers: an ACME server, and OpenSSL.

The ACME server is Pebble, Let's Encrypt's own; it and a name server run on this machine, and the box comes to them over
the lab's network. The name of the box is one that only that name server knows.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_box import this_machine
from kit import LIGHT, Box, Lab, eventually
from ports import open_ports
from scanner import expect_none, findings

from tests.doubles.acme import Pebble
from tests.doubles.authority import Authority
from tests.doubles.cloudflare import Cloudflare
from tests.doubles.dns_server import TXT, A, DnsServer
from tests.doubles.tailscaled import Tailscaled

pytestmark = pytest.mark.lab

ZONE = "boxwright.example"
NAME = f"door.{ZONE}"
# A form that the module for Cloudflare accepts; nobody's token.
TOKEN = "cloudflare-token-of-the-tests_0123456789"
SECRETS = "/etc/boxwright/caddy"


def free_ports(address: str, count: int) -> list[int]:
    """TCP ports of `address` on which nobody listens."""
    sockets = [socket.create_server((address, 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def box(lab: Lab) -> Box:
    """A box with nothing but the gateway."""
    return lab.up("certificates", {**LIGHT, "inference_engine": "none"})


@pytest.fixture(scope="module")
def here(box: Box) -> str:
    """The address by which the box reaches this machine."""
    return this_machine(box)


@pytest.fixture
def dns(box: Box, here: str) -> Iterator[DnsServer]:
    """A name server that knows where the box is."""
    with DnsServer(here, ZONE) as server:
        server.records[NAME, A] = [box.address]
        yield server


@pytest.fixture
def acme(here: str, dns: DnsServer, tmp_path: Path) -> Iterator[Pebble]:
    """An ACME server; each is an authority of its own."""
    first, second = free_ports(here, 2)
    with Pebble(tmp_path, here, f"{dns.address}:{dns.port}", (first, second)) as server:
        yield server


def with_acme(acme: Pebble, challenge: str, **more: Any) -> dict[str, Any]:
    """Variables for certificates from `acme`."""
    return {
        "gateway_tls": "acme",
        "gateway_acme_challenge": challenge,
        "gateway_acme_directory": acme.directory,
        "gateway_acme_root": acme.authority.root.read_text(encoding="utf-8"),
        "gateway_acme_email": f"somebody@{ZONE}",
        **more,
    }


def apply(box: Box, **variables: Any) -> list[str]:
    """Names of what a run changed, with these variables."""
    box.settled = False
    return box.changes(box.with_variables("certificates", **{"gateway_names": [NAME], **variables}))


def certificate(box: Box, root: Path | str, name: str = NAME) -> dict[str, Any]:
    """The certificate with which the box answers for `name`, once it is verified against `root` and nothing else.

    Raises ssl.SSLError when it is not.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if isinstance(root, Path):
        context.load_verify_locations(cafile=str(root))
    else:
        context.load_verify_locations(cadata=root)
    with (
        socket.create_connection((box.address, 443), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        found = connection.getpeercert()
        assert found
        return found


def has_certificate(box: Box, root: Path | str, name: str = NAME) -> bool:
    """Whether the box answers for `name` with a certificate of `root` by now."""
    try:
        return bool(certificate(box, root, name))
    except (ssl.SSLError, OSError):
        return False


def openssl(box: Box, *options: str) -> str:
    """What `openssl s_client` says of the door."""
    command = ["openssl", "s_client", "-connect", f"{box.address}:443", "-servername", NAME, *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def headers(box: Box, name: str = NAME) -> dict[str, str]:
    """Headers of an answer of the door, by lower-case name; whose certificate it is does not matter here."""
    script = f"curl --silent --insecure --head --resolve {name}:443:127.0.0.1 https://{name}/"
    lines = box.sh(script).splitlines()[1:]
    return {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def validated_by(acme: Pebble, dns: DnsServer) -> str:
    """The one kind of challenge by which the ACME server was convinced: by what it did for it."""
    assert acme.said("set VALID by completed challenge")
    if acme.said("Attempting to validate w/ HTTP"):
        return "http-01"
    return "dns-01" if (f"_acme-challenge.{NAME}", TXT) in dns.asked else "tls-alpn-01"


@pytest.mark.parametrize(
    ("challenge", "kind", "ports"), [("http", "http-01", {22, 80, 443}), ("tls-alpn", "tls-alpn-01", {22, 443})]
)
def test_a_certificate_from_an_authority(
    box: Box, acme: Pebble, dns: DnsServer, tmp_path: Path, challenge: str, kind: str, ports: set[int]
) -> None:
    """Got, verified from outside against the authority's root, and no port is open for it but the declared one."""
    variables = with_acme(acme, challenge)
    apply(box, **variables)
    eventually("a certificate of the authority", lambda: has_certificate(box, acme.root), 90)
    found = certificate(box, acme.root)
    assert ("DNS", NAME) in found["subjectAltName"]
    # Between it and the root is what the box itself sends.
    intermediate = tmp_path / "intermediate.pem"
    intermediate.write_text(acme.intermediate, encoding="utf-8")
    name = subprocess.check_output(["openssl", "x509", "-in", str(intermediate), "-noout", "-subject"], text=True)
    assert str(dict(part[0] for part in found["issuer"])["commonName"]) in name
    # By this way and no other.
    assert validated_by(acme, dns) == kind
    assert open_ports(box.address) == ports
    if 80 in ports:
        told = box.sh(f"curl --silent --head --resolve {NAME}:80:127.0.0.1 http://{NAME}/v1/models")
        assert f"location: https://{NAME}/v1/models" in told.lower()

    # It stays: a run changes nothing, and a restart asks for no other.
    assert apply(box, **variables) == []
    box.sh("systemctl restart caddy")
    eventually("the door answers", lambda: has_certificate(box, acme.root))
    assert certificate(box, acme.root)["serialNumber"] == found["serialNumber"]
    assert len(acme.said("Issued certificate")) == 1
    assert headers(box)["strict-transport-security"] == "max-age=31536000"


@pytest.fixture
def ipv6(box: Box) -> Iterator[str]:
    """An IPv6 address of the box, whose network has none."""
    address = "fd00:b0::1"
    on = "net.ipv6.conf.lo.disable_ipv6"
    before = box.sh(f"sysctl --values {on}").strip()
    box.sh(f"sysctl --quiet --write {on}=0 && ip -6 address replace {address}/128 dev lo nodad")
    yield address
    apply(box)
    box.sh(f"ip -6 address delete {address}/128 dev lo; sysctl --quiet --write {on}={before}")


@pytest.mark.parametrize("every", [True, False], ids=["all addresses", "one address"])
def test_a_door_that_is_open_to_both_families(box: Box, acme: Pebble, ipv6: str, every: bool) -> None:
    """Caddy's ACME client gets a certificate there too, and the box's own checks know the door for what it is."""
    variables = with_acme(acme, "tls-alpn", gateway_bind=["0.0.0.0", "::" if every else ipv6])
    apply(box, **variables)
    eventually("a certificate of the authority", lambda: has_certificate(box, acme.root), 90)
    for address in ("127.0.0.1", "[::1]" if every else f"[{ipv6}]"):
        assert box.succeeds(f"curl -sk -o /dev/null --resolve '{NAME}:443:{address}' https://{NAME}/"), address
    inventory = box.with_variables("certificates", gateway_names=[NAME], **variables)
    said = box.run("boxwright", "verify", "-k", "listens_where_declared", inventory=inventory).expect().text
    assert "1 check ok, 0 failed" in said


def pem(path: Path) -> str:
    """The text of a PEM file."""
    return path.read_text(encoding="utf-8")


def with_files(files: tuple[Path, Path]) -> dict[str, Any]:
    """Variables for a certificate and its key from files of this machine."""
    return {"gateway_tls": "files", "gateway_certificate": pem(files[0]), "gateway_certificate_key": pem(files[1])}


def test_a_certificate_that_is_given(box: Box, tmp_path: Path) -> None:
    """Served as it is; another one takes effect without a restart, and one that does not fit leaves the door open."""
    authority = Authority(tmp_path, "Somebody's own authority")
    first, second, other = (authority.issue(label, NAME) for label in ("first", "second", "other"))
    apply(box, **with_files(first))
    assert certificate(box, authority.root)["subject"] == ((("commonName", "first"),),)
    assert apply(box, **with_files(first)) == []
    process = box.pid("caddy")

    changed = apply(box, **with_files(second))
    assert changed == ["gateway: write certificate", "gateway: write key of the certificate", "gateway: running"]
    assert certificate(box, authority.root)["subject"] == ((("commonName", "second"),),)
    assert box.pid("caddy") == process

    # Only root and the gateway can read the key.
    assert box.sh(f"stat -c %U:%G:%a {SECRETS}/certificate.key").strip() == "root:caddy:640"
    assert not box.succeeds(f"su -s /bin/sh nobody -c 'cat {SECRETS}/certificate.key'")

    # A key of another certificate.
    done = box.apply(inventory=box.with_variables("wrong", gateway_names=[NAME], **with_files((second[0], other[1]))))
    assert done.code in (1, 2), done.text
    assert "PRIVATE KEY" not in done.text
    assert certificate(box, authority.root)["subject"] == ((("commonName", "second"),),)
    apply(box, **with_files(second))
    assert apply(box, **with_files(second)) == []

    # No longer declared, it is no longer there, nor any copy of it.
    apply(box)
    assert not box.succeeds(f"grep -rl 'PRIVATE KEY' {SECRETS}")


def test_what_is_spoken(box: Box, tmp_path: Path) -> None:
    """TLS 1.2 and 1.3, with ciphers of today; the header that browsers remember, for as long as declared."""
    authority = Authority(tmp_path, "Somebody's own authority")
    variables = with_files(authority.issue("door", NAME))
    apply(box, **variables)
    trusted = ("-CAfile", str(authority.root), "-verify_return_error", "-verify_hostname", NAME)
    for version, name in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
        assert f"New, {name}, Cipher is " in openssl(box, version, *trusted), version
    for version in ("-tls1", "-tls1_1"):
        assert "Cipher is (NONE)" in openssl(box, version, "-cipher", "ALL:@SECLEVEL=0"), version
    for weak in ("3DES", "RC4", "CAMELLIA", "aNULL", "kRSA", "PSK", "SEED", "AESCCM"):
        said = openssl(box, "-tls1_2", "-cipher", f"{weak}:@SECLEVEL=0")
        assert "Cipher is (NONE)" in said or "no cipher match" in said.lower() or "no ciphers" in said.lower(), weak
    said = openssl(box, "-tls1_2", *trusted)
    assert "Compression: NONE" in said
    assert "Secure Renegotiation IS supported" in said
    assert "Verify return code: 0 (ok)" in said
    # Whoever does not know the name is shown no certificate.
    assert "no peer certificate available" in openssl(box, "-servername", "somebody.else.example")

    assert headers(box)["strict-transport-security"] == "max-age=31536000"
    apply(box, **variables, gateway_hsts=600)
    assert headers(box)["strict-transport-security"] == "max-age=600"
    apply(box, **variables, gateway_hsts=0)
    assert "strict-transport-security" not in headers(box)


def test_the_boxs_own_authority(box: Box) -> None:
    """Its root stays, also when the certificates that it signs are made anew; nothing of it can sign elsewhere."""
    apply(box)
    root = box.ca
    first = certificate(box, root)
    kept = pem(root)
    assert "strict-transport-security" not in headers(box)
    # What Caddy does by itself in time: certificates of the box live for 12 hours.
    box.sh("systemctl stop caddy && rm -r /var/lib/caddy/certificates/local && systemctl start caddy")
    eventually("the door answers", lambda: has_certificate(box, root))
    assert certificate(box, root)["serialNumber"] != first["serialNumber"]
    assert apply(box) == []
    assert pem(root) == kept == box.sh("cat /var/lib/caddy/pki/authorities/local/root.crt")
    assert box.sh("find /var/lib/caddy/pki -name '*.key' -perm /077") == ""


def test_testssl_knows_no_weakness_of_the_door(box: Box, tmp_path: Path) -> None:
    """Protocols, ciphers, certificate and the attacks of which testssl.sh knows, with the settings that are default."""
    apply(box)
    # Certificates of the box's own authority live for 12 hours, and are made anew by Caddy itself.
    expect_none(findings(box, NAME, tmp_path), accepted=("cert_expirationStatus", "cert_notAfter"))


@pytest.fixture(scope="module")
def _cloudflare(box: Box, here: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloudflare]:
    authority = Authority(tmp_path_factory.mktemp("cloudflare"), "An authority that the box trusts")
    with Cloudflare(here, authority.issue("api", "api.cloudflare.com")) as server:
        box.put("/usr/local/share/ca-certificates/tests.crt", pem(authority.root))
        box.sh(f"update-ca-certificates >/dev/null 2>&1; echo '{here} api.cloudflare.com' >>/etc/hosts")
        yield server
        box.sh("rm /usr/local/share/ca-certificates/tests.crt; update-ca-certificates --fresh >/dev/null 2>&1")
        # A container's hosts file is a mount, which cannot be replaced.
        box.sh('kept=$(grep -v api.cloudflare.com /etc/hosts); echo "$kept" >/etc/hosts')


@pytest.fixture
def cloudflare(_cloudflare: Cloudflare, dns: DnsServer) -> Cloudflare:
    """A double of Cloudflare's API, which the box takes for it: by its name, and by an authority that it trusts."""
    _cloudflare.begin(dns, TOKEN)
    return _cloudflare


def test_a_certificate_by_a_record_at_cloudflare(
    box: Box, acme: Pebble, dns: DnsServer, cloudflare: Cloudflare
) -> None:
    """For a name whose box nobody can reach: by a record that is made for it, seen by the authority, and taken away."""
    resolver = f"{dns.address}:{dns.port}"
    variables = with_acme(acme, "dns-cloudflare", gateway_cloudflare_token=TOKEN, gateway_acme_resolvers=[resolver])
    apply(box, **variables)
    eventually("a certificate of the authority", lambda: has_certificate(box, acme.root), 90)
    assert validated_by(acme, dns) == "dns-01"
    assert cloudflare.made
    assert {kind for kind, _ in cloudflare.made} == {"TXT"}
    eventually("the record is gone", lambda: not cloudflare.records)
    assert {authorization for _, _, authorization in cloudflare.asked} == {f"Bearer {TOKEN}"}
    assert open_ports(box.address) == {22, 443}
    assert apply(box, **variables) == []

    # The token is in one file, which root and the gateway can read; in no log, argument or environment.
    place = f"{SECRETS}/cloudflare.token"
    assert box.sh(f"stat -c %U:%G:%a {place}").strip() == "root:caddy:640"
    found = box.sh(
        f"grep -rlsF {TOKEN} /etc /opt /usr/local /var/lib /var/log /run /tmp /root /home --exclude-dir=docker",
        check=False,
    )
    assert found.split() == [place]
    assert TOKEN not in box.sh("journalctl --no-pager; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null")
    apply(box)
    assert not box.succeeds(f"ls {place}")


def test_a_wrong_token_for_cloudflare_is_told_and_nothing_is_open(
    box: Box, acme: Pebble, dns: DnsServer, cloudflare: Cloudflare
) -> None:
    cloudflare.token = "another-token-of-the-tests_0123456789012"
    resolver = f"{dns.address}:{dns.port}"
    apply(box, **with_acme(acme, "dns-cloudflare", gateway_cloudflare_token=TOKEN, gateway_acme_resolvers=[resolver]))
    eventually("Cloudflare was asked", lambda: cloudflare.asked)
    log = "journalctl --no-pager --unit caddy --since=-2min"
    eventually("the log says why", lambda: "Authentication error" in box.sh(log))
    assert TOKEN not in box.sh(log)
    assert not has_certificate(box, acme.root)
    apply(box)


TAILNET_NAME = "door.example-tailnet.ts.net"
IN_A_TAILNET = {"gateway_tls": "tailscale", "gateway_names": [TAILNET_NAME]}


@pytest.fixture
def tailscaled(box: Box, tmp_path: Path) -> Iterator[Tailscaled]:
    """A double of tailscaled on the box, which has a certificate for it; it does not run yet."""
    double = Tailscaled(box, Authority(tmp_path, "An authority that all know"), TAILNET_NAME)
    double.renew("first")
    yield double
    double.close()
    apply(box)


def subject(box: Box, tailscaled: Tailscaled) -> str:
    """Whose certificate the door shows for its name in the tailnet."""
    found = certificate(box, tailscaled.authority.root, TAILNET_NAME)
    return str(dict(part[0] for part in found["subject"])["commonName"])


def test_a_certificate_from_the_boxs_tailscaled(box: Box, tailscaled: Tailscaled) -> None:
    """Asked for by the gateway's account from within its sandbox; a renewed one takes effect without a restart."""
    tailscaled.start(permitted="caddy")
    apply(box, **IN_A_TAILNET)
    assert subject(box, tailscaled) == "first"
    assert set(tailscaled.asked()) == {
        ("caddy", "/localapi/v0/status", 200),
        ("caddy", f"/localapi/v0/cert/{TAILNET_NAME}?type=pair", 200),
    }
    assert apply(box, **IN_A_TAILNET) == []
    assert headers(box, TAILNET_NAME)["strict-transport-security"] == "max-age=31536000"
    assert open_ports(box.address) == {22, 443}

    process = box.pid("caddy")
    tailscaled.renew("second")
    assert subject(box, tailscaled) == "second"
    assert box.pid("caddy") == process
    # tailscaled is a service of its own, which is updated and restarted when it likes.
    tailscaled.stop()
    assert not has_certificate(box, tailscaled.authority.root, TAILNET_NAME)
    tailscaled.start(permitted="caddy")
    assert subject(box, tailscaled) == "second"
    assert box.pid("caddy") == process


def test_what_tailscaled_does_not_give_is_asked_of_nobody_else(box: Box, tailscaled: Tailscaled) -> None:
    """Whether the gateway may not ask, or the tailnet has no certificates: no authority in the internet is tried."""
    since = box.sh("date +%s").strip()
    journal = f"journalctl --no-pager --output=cat --unit caddy --since=@{since}"
    tailscaled.start()
    apply(box, **IN_A_TAILNET)
    assert not has_certificate(box, tailscaled.authority.root, TAILNET_NAME)
    assert ("caddy", f"/localapi/v0/cert/{TAILNET_NAME}?type=pair", 403) in tailscaled.asked()
    assert "cert access denied" in box.sh(journal)

    tailscaled.start(permitted="caddy", domains=[])
    assert not has_certificate(box, tailscaled.authority.root, TAILNET_NAME)
    # As soon as the tailnet has them, so has the door.
    tailscaled.start(permitted="caddy")
    assert subject(box, tailscaled) == "first"
    said = box.sh(journal)
    assert not [line for line in said.splitlines() if "acme" in line.lower() or "tls.obtain" in line]
