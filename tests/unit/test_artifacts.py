"""Addresses of the mirror, and requirements that pip takes by digest."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from boxwright.artifacts import AptRepository, MirrorSettings, Wheel, full_reference, pinned, requirements
from boxwright.operations.apt_repositories import sources_text

MODEL = "https://models.example/org/repo/resolve/main/a%20model.gguf"


def test_without_a_mirror_everything_comes_from_its_publisher():
    mirror = MirrorSettings()
    assert mirror.file_url(MODEL) == MODEL
    assert mirror.image("ghcr.io/a/b:1") == "ghcr.io/a/b:1"
    assert mirror.pip_arguments() == ()
    assert mirror.insecure_registries == ()


@pytest.mark.parametrize(
    ("published", "mirrored"),
    [
        (MODEL, "http://10.0.0.2:8000/models.example/org/repo/resolve/main/a%20model.gguf"),
        ("http://h.example:8080/x", "http://10.0.0.2:8000/h.example:8080/x"),
        ("https://user:password@h.example/x", "http://10.0.0.2:8000/h.example/x"),
        ("https://h.example/x?token=secret#part", "http://10.0.0.2:8000/h.example/x"),
    ],
)
def test_a_file_of_the_mirror(published, mirrored):
    assert MirrorSettings(url="http://10.0.0.2:8000/").file_url(published) == mirrored


@pytest.mark.parametrize("url", ["ftp://h.example/x", "/etc/passwd", "h.example/x"])
def test_what_is_no_address_of_a_file(url):
    with pytest.raises(ValueError, match="not the address of a file"):
        MirrorSettings(url="http://10.0.0.2:8000").file_url(url)


@pytest.mark.parametrize(
    ("reference", "full"),
    [
        ("redis", "docker.io/library/redis:latest"),
        ("redis:7", "docker.io/library/redis:7"),
        ("org/name:1", "docker.io/org/name:1"),
        ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
        ("localhost/x", "localhost/x:latest"),
        ("registry:5000/x", "registry:5000/x:latest"),
        ("ghcr.io/a/b@sha256:" + "0" * 64, "ghcr.io/a/b@sha256:" + "0" * 64),
    ],
)
def test_an_image_of_the_mirror(reference, full):
    assert full_reference(reference) == full
    assert MirrorSettings(registry="https://mirror.example/").image(reference) == f"mirror.example/{full}"


def test_a_registry_without_tls_is_told_to_docker():
    assert MirrorSettings(registry="http://10.0.0.2:5000").insecure_registries == ("10.0.0.2:5000",)
    assert MirrorSettings(registry="https://mirror.example").insecure_registries == ()


def test_pip_asks_the_mirror_alone():
    assert MirrorSettings(url="http://10.0.0.2:8000").pip_arguments() == (
        "--no-index",
        "--find-links",
        "http://10.0.0.2:8000/wheels/",
        "--trusted-host",
        "10.0.0.2:8000",
    )
    assert "--trusted-host" not in MirrorSettings(url="https://mirror.example/sub").pip_arguments()


@pytest.mark.parametrize("url", ["10.0.0.2:8000", "file:///srv", "http://", "http://host/x?y", "http://ho st/"])
def test_what_is_no_mirror(url):
    with pytest.raises(ValidationError):
        MirrorSettings(url=url)


def test_requirements_are_what_pip_reads(tmp_path):
    wheels = [
        Wheel(name="b", version="2.0", sha256={"x86_64": "1" * 64, "aarch64": "2" * 64}, licence="MIT"),
        Wheel(name="a", version="1.0", sha256={"any": "3" * 64}, licence="MIT"),
    ]
    text = requirements(wheels)
    assert text == (f"b==2.0 --hash=sha256:{'2' * 64} --hash=sha256:{'1' * 64}\na==1.0 --hash=sha256:{'3' * 64}\n")
    # pip itself says what it misses: both packages were read, and their digests with them.
    (tmp_path / "requirements.txt").write_text(text)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(tmp_path), "--require-hashes"]
    said = subprocess.run([*command, "-r", tmp_path / "requirements.txt"], capture_output=True, text=True, check=False)
    assert "Could not find a version that satisfies the requirement b==2.0" in said.stderr


def test_a_pinned_file_is_read_as_uv_and_pip_compile_write_it():
    one, two = "1" * 64, "2" * 64
    text = f"""# made by a program
mlx==0.32.4 \\
    --hash=sha256:{one} \\
    --hash=sha256:{two}
    # via mlx-lm
coverage[toml]==7.1 --hash=sha256:{one}
"""
    mlx, coverage = pinned(text)
    assert (mlx.name, mlx.version, set(mlx.sha256.values())) == ("mlx", "0.32.4", {one, two})
    assert (coverage.name, coverage.version) == ("coverage", "7.1")
    assert requirements([mlx]) == f"mlx==0.32.4 --hash=sha256:{one} --hash=sha256:{two}\n"


@pytest.mark.parametrize(
    "line",
    [
        "mlx",
        "mlx==0.32.4",
        "mlx>=0.32 --hash=sha256:" + "1" * 64,
        "mlx==0.32.4 --hash=md5:" + "1" * 32,
        "mlx==0.32.4 ; sys_platform == 'linux' --hash=sha256:" + "1" * 64,
        "--index-url https://index.example/",
        "mlx @ https://index.example/mlx.whl",
    ],
)
def test_what_pins_nothing_is_refused(line):
    with pytest.raises(ValueError, match="not a version with its SHA-256 digests"):
        pinned(line)


TOOLS = {
    "name": "tools",
    "url": "https://packages.example/linux/{distribution}",
    "key_url": "https://packages.example/linux/{distribution}/{codename}.gpg",
    "key_fingerprint": "0123456789ABCDEF0123456789ABCDEF01234567",
    "licence": "MIT",
}


def test_a_package_repository_of_a_box():
    found = AptRepository(**TOOLS).on(distribution="ubuntu", release="24.04", codename="noble")
    assert (found.url, found.suite) == ("https://packages.example/linux/ubuntu", "noble")
    assert found.key_url == "https://packages.example/linux/ubuntu/noble.gpg"
    assert sources_text(found, MirrorSettings(url="http://10.0.0.2:8000"), "arm64").splitlines()[1:] == [
        "Types: deb",
        "URIs: http://10.0.0.2:8000/packages.example/linux/ubuntu",
        "Suites: noble",
        "Components: main",
        "Architectures: arm64",
        "Signed-By: /etc/apt/keyrings/boxwright-tools.gpg",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_fingerprint": "0123 4567 89AB CDEF 0123  4567 89AB CDEF 0123 4567"},
        {"key_fingerprint": "89ABCDEF01234567"},
        {"url": "https://packages.example/linux debian"},
        {"url": "ftp://packages.example/"},
        {"name": "../tools"},
        {"suite": "./"},
        {"suite": "stable", "components": ()},
        {"components": ("main\nSigned-By: x",)},
    ],
)
def test_what_is_no_package_repository(wrong):
    with pytest.raises(ValueError, match=r"tools|package repository"):
        AptRepository(**TOOLS | wrong)
