"""The mesh's certificate authority: one root, and for each sidecar a short-lived certificate that says who it is.

As in Istio: EC P-256, an empty subject, the identity as a critical URI name (SPIFFE X.509-SVID, section 2), valid for a
day, replaced when half of that has passed. The private key is made here and reaches the sidecar over its stream, so the
network between them must be the mesh's own; Istio keeps it in the pod.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshdns.core import errors
from meshdns.istio.resources import DOMAIN
from meshdns.xds.api import Json
from meshdns.xds.identity import CERTIFICATE, ROOT

LIFE_S = 86_400.0  # Istio's default
ROTATE_AT = 0.5  # of the life, Istio's default
_ROOT_LIFE = datetime.timedelta(days=3650)  # Istio's self-signed root
_SKEW = datetime.timedelta(minutes=2)  # a clock that is a little behind must not refuse a new certificate; Istio's
_FILE = "authority.pem"  # key and certificate together: one rename replaces both
_STEP = "make the folder readable and writable, or give another state folder"


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key, as PEM."""

    identity: str
    chain: str
    key: str
    made_s: float  # Unix time
    ends_s: float

    def due_s(self, rotate_at: float) -> float:
        """When to replace it, in Unix time."""
        return self.made_s + (self.ends_s - self.made_s) * rotate_at


class Authority:
    """Signs."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key, self._certificate = key, certificate

    @property
    def root(self) -> str:
        """The root certificate, as PEM."""
        return _pem(self._certificate)

    def issue(self, identity: str, life_s: float, now_s: float) -> Certificate:
        """A certificate for one SPIFFE name."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
        ends = now + datetime.timedelta(seconds=life_s)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(ends)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        chain = _pem(builder.sign(self._key, hashes.SHA256()))
        return Certificate(identity, chain, _key_pem(key), now_s, ends.timestamp())

    def pem(self) -> bytes:
        """Key and root certificate, to be kept."""
        return (_key_pem(self._key) + self.root).encode()


def make(now_s: float) -> Authority:
    """A new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, DOMAIN)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def open_or_make(folder: Path | None, now_s: float) -> Authority:
    """The authority of this folder, made and kept there (mode 0600) if there is none; without a folder in memory only.

    One that is kept lets sidecars trust each other across a restart. DataError if the file is damaged or has run out,
    StorageError if the disk refuses.
    """
    if folder is None:
        return make(now_s)
    path = folder / _FILE
    try:
        return _read(path.read_bytes(), path, now_s)
    except FileNotFoundError:
        made = make(now_s)
        _write(path, made.pem())
        return made
    except OSError as error:
        raise errors.StorageError(f"the authority's key cannot be read: {error.strerror}", place=str(path),
                                  step=_STEP) from error  # fmt: skip


def _read(data: bytes, path: Path, now_s: float) -> Authority:
    step = "restore it, or remove it: a new authority is made, and every sidecar gets a new certificate"
    try:
        key = serialization.load_pem_private_key(data, None)
        certificate = x509.load_pem_x509_certificate(data)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("key and certificate do not belong together")
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise errors.DataError(
            f"not an authority's key and certificate ({error})", place=str(path), step=step
        ) from error
    if certificate.not_valid_after_utc.timestamp() <= now_s:
        raise errors.DataError(f"the root ran out on {certificate.not_valid_after_utc:%Y-%m-%d}", place=str(path),
                               step=step)  # fmt: skip
    return Authority(key, certificate)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, readable by nobody else at any time."""
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  a descriptor, which Path cannot open
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise errors.StorageError(f"the authority's certificate cannot be written: {error.strerror}", place=str(path),
                                  step=_STEP) from error  # fmt: skip


class Certificates:
    """One certificate for each sidecar, replaced in time."""

    def __init__(self, authority: Authority, life_s: float = LIFE_S, rotate_at: float = ROTATE_AT) -> None:
        self._authority, self._life_s, self._rotate_at = authority, life_s, rotate_at
        self._held: dict[str, Certificate] = {}
        self._rotations: dict[str, int] = {}

    def of(self, node_id: str, identity: str, now_s: float) -> Certificate:
        """The sidecar's certificate: a new one if it has none, if its identity changed, or if it is due."""
        held = self._held.get(node_id)
        if held and held.identity == identity and now_s < held.due_s(self._rotate_at):
            return held
        fresh = self._held[node_id] = self._authority.issue(identity, self._life_s, now_s)
        self._rotations[node_id] = self._rotations.get(node_id, -1) + 1
        return fresh

    def due_s(self) -> float | None:
        """When the next one is due, in Unix time; None if there is none."""
        return min((one.due_s(self._rotate_at) for one in self._held.values()), default=None)

    def keep(self, node_ids: set[str]) -> None:
        """Forget the certificates of all others."""
        self._held = {name: one for name, one in self._held.items() if name in node_ids}

    def secrets(self, certificate: Certificate) -> dict[str, Json]:
        """What a sidecar asks for, in Envoy's words (Secret discovery)."""
        chain, key = {"inline_string": certificate.chain}, {"inline_string": certificate.key}
        return {
            CERTIFICATE: {"name": CERTIFICATE, "tls_certificate": {"certificate_chain": chain, "private_key": key}},
            ROOT: {"name": ROOT, "validation_context": {"trusted_ca": {"inline_string": self._authority.root}}},
        }

    def to_json(self) -> dict[str, Any]:
        """For people: no keys."""
        return {
            name: {"identity": one.identity, "made": round(one.made_s, 3), "ends": round(one.ends_s, 3),
                   "rotations": self._rotations.get(name, 0)}
            for name, one in sorted(self._held.items())
        }  # fmt: skip


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, plain).decode()
