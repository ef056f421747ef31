"""Whoever has the authority's certificate trusts the API server under its name, and nobody else."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import yaml

from meshdns.lab import keys, newkeys


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(there, here, server_hostname=name)
    answers = server.wrap_bio(here, there, server_side=True)
    for side in (asks, answers, asks, answers):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


def contexts(made: dict[str, str], authority: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    for name in (keys.CERTIFICATE, keys.KEY):
        (folder / name).write_text(made[name])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / keys.CERTIFICATE, folder / keys.KEY)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=authority)
    return server, client


def test_its_certificate_holds_under_its_name_alone(tmp_path: Path) -> None:
    made, other = newkeys.made(), newkeys.made()
    handshake(*contexts(made, made[keys.AUTHORITY], tmp_path), keys.API_SERVER)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(*contexts(made, made[keys.AUTHORITY], tmp_path), "other.svc")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(*contexts(made, other[keys.AUTHORITY], tmp_path), keys.API_SERVER)


def test_every_start_has_others() -> None:
    made, other = newkeys.made(), newkeys.made()
    assert not [name for name in made if made[name] == other[name]]


def test_who_speaks_to_it_expects_that_name() -> None:
    made = newkeys.made()
    config = yaml.safe_load(keys.kubeconfig(made, "https://198.19.128.11:6443"))
    [cluster], [user] = config["clusters"], config["users"]
    assert cluster["cluster"]["tls-server-name"] == keys.API_SERVER
    assert f"{user['user']['token']}," in made[keys.TOKENS]
