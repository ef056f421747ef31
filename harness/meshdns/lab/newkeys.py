"""Makes the keys of a live plane."""

from __future__ import annotations

import datetime
import secrets

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshdns.lab.keys import ACCOUNTS, ACCOUNTS_PUBLIC, ADMIN, API_SERVER, AUTHORITY, CERTIFICATE, KEY, LIFE, TOKENS

_SKEW = datetime.timedelta(minutes=5)  # of clocks


def made() -> dict[str, str]:
    """New ones: file -> content."""
    authority, server, accounts = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    signer = _name("meshdns")
    token = secrets.token_urlsafe(24)
    public = accounts.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {
        AUTHORITY: _certificate(authority, authority, signer, signer),
        CERTIFICATE: _certificate(server, authority, _name(API_SERVER), signer),
        KEY: _pem(server),
        ACCOUNTS: _pem(accounts),
        ACCOUNTS_PUBLIC: public.decode(),
        TOKENS: f"{token},meshdns,meshdns,system:masters\n",
        ADMIN: token,
    }


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _certificate(
    owner: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name
) -> str:
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(owner.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=owner is by, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(owner.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    if owner is not by:
        built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(API_SERVER)]), critical=False)
    return built.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()
