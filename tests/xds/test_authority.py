"""Certificates: who they say one is, how long, kept how, and replaced when."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store

from meshdns.core import errors
from meshdns.xds import authority
from meshdns.xds.authority import Certificates
from meshdns.xds.encoding import SDS, encode

NOW_S = 1_800_000_000.0
WEB = "spiffe://cluster.local/ns/shop/sa/web"


def test_a_certificate_says_who_one_is_and_the_root_vouches_for_it() -> None:
    signer = authority.make(NOW_S)
    made = signer.issue(WEB, 3600, NOW_S)
    leaf, root = (
        x509.load_pem_x509_certificate(made.chain.encode()),
        x509.load_pem_x509_certificate(signer.root.encode()),
    )
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [WEB]
    assert names.critical  # RFC 5280: the subject is empty
    assert not leaf.subject.rdns
    assert leaf.not_valid_after_utc.timestamp() == NOW_S + 3600
    assert leaf.not_valid_before_utc.timestamp() < NOW_S
    key = serialization.load_pem_private_key(made.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == leaf.public_key()
    assert isinstance(key.curve, ec.SECP256R1)
    other = x509.load_pem_x509_certificate(authority.make(NOW_S).root.encode())
    with pytest.raises(InvalidSignature):
        leaf.verify_directly_issued_by(other)


def test_a_chain_is_accepted_by_a_strict_verifier() -> None:
    signer = authority.make(NOW_S)
    leaf = x509.load_pem_x509_certificate(signer.issue(WEB, 3600, NOW_S).chain.encode())
    store = Store([x509.load_pem_x509_certificate(signer.root.encode())])
    when = datetime.datetime.fromtimestamp(NOW_S + 60, datetime.UTC)
    found = PolicyBuilder().store(store).time(when).build_client_verifier().verify(leaf, [])
    assert found.subjects == [x509.UniformResourceIdentifier(WEB)]


def test_the_authority_is_kept_for_its_owner_only_and_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first = authority.open_or_make(folder, NOW_S)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert authority.open_or_make(folder, NOW_S).pem() == first.pem()
    assert authority.open_or_make(None, NOW_S).pem() != first.pem()


def test_a_certificate_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(errors.StorageError) as caught:
        authority.open_or_make(tmp_path / "state" / "deep", NOW_S)
    assert "authority.pem" in str(caught.value)
    assert "give another state folder" in str(caught.value)


def test_a_full_disk_leaves_no_half_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.StorageError, match="cannot be written: No space left on device"):
        authority.open_or_make(tmp_path, NOW_S)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "other key", "text"])
def test_a_damaged_authority_is_refused_with_what_to_do(tmp_path: Path, damage: str) -> None:
    authority.open_or_make(tmp_path, NOW_S)
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    other = authority.make(NOW_S).pem()
    cut = data.index(b"-----BEGIN CERT")
    file.write_bytes({"cut": data[:-80], "other key": other[: other.index(b"-----BEGIN CERT")] + data[cut:],
                      "text": b"hello"}[damage])  # fmt: skip
    with pytest.raises(errors.DataError, match="restore it, or remove it"):
        authority.open_or_make(tmp_path, NOW_S)


def test_a_root_that_ran_out_is_refused(tmp_path: Path) -> None:
    authority.open_or_make(tmp_path, NOW_S)
    with pytest.raises(errors.DataError, match="the root ran out"):
        authority.open_or_make(tmp_path, NOW_S + 11 * 365 * 86_400)


def test_certificates_are_replaced_when_a_share_of_their_life_has_passed() -> None:
    held = Certificates(authority.make(NOW_S), life_s=100, rotate_at=0.5)
    first = held.of("shop/web-1", WEB, NOW_S)
    assert held.of("shop/web-1", WEB, NOW_S + 49) is first
    assert held.due_s() == NOW_S + 50
    second = held.of("shop/web-1", WEB, NOW_S + 50)
    assert second.chain != first.chain
    assert held.to_json()["shop/web-1"]["rotations"] == 1
    assert held.of("shop/web-1", f"{WEB}-2", NOW_S + 51).identity == f"{WEB}-2"  # another account: at once
    assert held.of("shop/web-2", WEB, NOW_S).key != second.key  # each sidecar has a key of its own
    held.keep({"shop/web-2"})
    assert set(held.to_json()) == {"shop/web-2"}


def test_the_secrets_are_what_envoy_reads_and_the_status_shows_no_key() -> None:
    signer = authority.make(NOW_S)
    held = Certificates(signer)
    secrets = held.secrets(held.of("shop/web-1", WEB, NOW_S))
    assert set(secrets) == {"default", "ROOTCA"}
    assert all(encode(SDS, name, body).value for name, body in secrets.items())
    assert "PRIVATE" not in str(held.to_json())
