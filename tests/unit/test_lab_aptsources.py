"""Where Debian packages come from, read from the apt settings that people really have."""

from pathlib import Path

import pytest

from boxwright.lab.aptsources import (
    Archive,
    Source,
    archive,
    parse_deb822,
    parse_one_line,
    proxies,
    read_sources,
    sources_list,
)

DEB822 = """\
Types: deb deb-src
# a comment inside a stanza
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://mirror.example/switched-off
Suites: bookworm
Components: main
"""


def test_deb822_gives_one_source_per_address_and_suite() -> None:
    found = parse_deb822(DEB822)
    assert [(source.uri, source.suite) for source in found] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://mirror.example/debian-security", "bookworm-security"),
    ]
    assert found[0].components == ("main", "contrib")
    assert found[0].signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_deb822_with_a_key_inside_names_no_key_file() -> None:
    text = (
        "Types: deb\nURIs: http://m/debian\nSuites: trixie\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    assert parse_deb822(text) == [Source("http://m/debian", "trixie", ("main",), None)]


def test_one_line_format() -> None:
    text = (
        "# deb http://commented/out bookworm main\n"
        "deb [arch=amd64 signed-by=/etc/apt/keyrings/site.gpg] https://m/debian bookworm main # why\n"
        "deb-src https://m/debian bookworm main\n"
        "\n"
        "deb http://m/debian-security/ bookworm-security main contrib\n"
    )
    assert parse_one_line(text) == [
        Source("https://m/debian", "bookworm", ("main",), "/etc/apt/keyrings/site.gpg"),
        Source("http://m/debian-security", "bookworm-security", ("main", "contrib"), None),
    ]


def test_both_formats_are_read_from_where_apt_reads_them(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://one/debian trixie main\n")
    (tmp_path / "sources.list.d" / "b.sources").write_text(
        "Types: deb\nURIs: http://two/x\nSuites: y\nComponents: main\n"
    )
    (tmp_path / "sources.list.d" / "c.list.save").write_text("deb http://not/read trixie main\n")
    assert [source.uri for source in read_sources(tmp_path)] == ["http://one/debian", "http://two/x"]


def test_the_archive_is_that_of_the_release_not_a_vendors() -> None:
    sources = [
        Source("https://vendor.example/apt", "vendor-bookworm", ("main",)),
        Source("https://other.example/node", "nodistro", ("main",)),
        *parse_deb822(DEB822),
    ]
    found = archive(sources, "debian", "bookworm")
    assert found == Archive("http://mirror.example/debian", "http://mirror.example/debian-security", None)


def test_a_resigned_mirror_brings_its_key() -> None:
    found = archive([Source("http://m/debian", "trixie", ("main",), "/etc/apt/keyrings/site.gpg")], "debian", "trixie")
    assert found == Archive("http://m/debian", None, "/etc/apt/keyrings/site.gpg")
    assert sources_list(found, "bookworm").splitlines() == [
        "deb [signed-by=/etc/apt/keyrings/site.gpg] http://m/debian bookworm main",
        "deb [signed-by=/etc/apt/keyrings/site.gpg] http://m/debian bookworm-updates main",
    ]


@pytest.mark.parametrize(("distribution", "codename"), [("ubuntu", "noble"), ("debian", "forky")])
def test_elsewhere_the_archive_is_left_to_mmdebstrap(distribution: str, codename: str) -> None:
    found = archive([Source("http://archive.example/ubuntu", "noble", ("main",))], distribution, codename)
    assert found.uri is None
    assert sources_list(found, "trixie") == ""


def test_the_box_gets_security_updates_when_the_machine_has_them() -> None:
    text = sources_list(Archive("http://m/debian", "http://m/security"), "trixie")
    assert text.splitlines()[2] == "deb http://m/security trixie-security main"


def test_proxies_that_a_box_cannot_reach_are_left_out() -> None:
    dump = (
        'Acquire::http "";\nAcquire::http::Proxy "http://127.0.0.1:3142";\n'
        'Acquire::https::Proxy "http://proxy.example:3128";\nAcquire::http::Proxy-Auto-Detect "x";\n'
    )
    assert proxies(dump) == ['Acquire::https::Proxy "http://proxy.example:3128";']
