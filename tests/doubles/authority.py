"""A certificate authority for tests, made with OpenSSL: a root, and certificates for names and addresses."""

from __future__ import annotations

import ipaddress
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


class Authority:
    """Its files are in `folder`; `root` is its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.root, self._key = folder / "root.pem", folder / "root.key"
        usage = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        _openssl(
            *("req", "-x509", *_KEY, "-keyout", str(self._key), "-out", str(self.root)),
            *("-days", "2", "-subj", f"/CN={name}", *usage),
        )

    def issue(self, label: str, *names: str, begins: datetime | None = None) -> tuple[Path, Path]:
        """A certificate for `names` and its key, for the day after `begins`, or after now; `label` names the files."""
        certificate, key = self.folder / f"{label}.pem", self.folder / f"{label}.key"
        alternatives = ",".join(f"IP:{name}" if _is_address(name) else f"DNS:{name}" for name in names)
        _openssl(
            *("req", "-x509", "-CA", str(self.root), "-CAkey", str(self._key), *_KEY, "-keyout", str(key)),
            *("-out", str(certificate), "-days", "1", "-subj", f"/CN={label}"),
            *("-addext", f"subjectAltName={alternatives}", "-addext", "basicConstraints=critical,CA:FALSE"),
        )
        if begins is not None:
            self._move(certificate, begins)
        return certificate, key

    def _move(self, certificate: Path, begins: datetime) -> None:
        """The same certificate, for another day: the OpenSSL of Debian 12 gives no other beginning than now."""
        made = x509.load_pem_x509_certificate(certificate.read_bytes())
        signer = serialization.load_pem_private_key(self._key.read_bytes(), None)
        assert isinstance(signer, EllipticCurvePrivateKey)
        builder = x509.CertificateBuilder(made.issuer, made.subject, made.public_key(), made.serial_number)
        builder = builder.not_valid_before(begins).not_valid_after(begins + timedelta(days=1))
        for extension in made.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        certificate.write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
