"""A certificate authority of the test's own, made with the `openssl` command."""

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple


class Authority(NamedTuple):
    """`certificate` is what clients are to trust."""

    certificate: Path
    key: Path


def make_authority(directory: Path) -> Authority:
    """Make an authority in the directory."""
    authority = Authority(directory / "ca.pem", directory / "ca.key")
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=test authority", "-keyout", str(authority.key), "-out", str(authority.certificate),
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    return authority


def server_context(authority: Authority, *names: str) -> ssl.SSLContext:
    """Return a server's context with a certificate for the names (`DNS:…`, `IP:…`)."""
    directory = authority.certificate.parent
    key, request, certificate = (directory / f"server.{suffix}" for suffix in ("key", "csr", "pem"))
    extensions = directory / "server.ext"
    extensions.write_text(
        f"subjectAltName={','.join(names)}\nbasicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    _openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=stand-in",
        "-keyout", str(key), "-out", str(request),
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", str(request), "-CA", str(authority.certificate), "-CAkey", str(authority.key),
        "-set_serial", "2", "-days", "2", "-extfile", str(extensions), "-out", str(certificate),
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)
