"""Keys of a live plane, as files: an authority, what the API server shows and signs with, the token of who tells it."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping

import yaml

API_SERVER = "kubernetes.default.svc"  # by which its certificate knows it, wherever it is
AUTHORITY, CERTIFICATE, KEY, TOKENS, ADMIN = "ca.crt", "api.crt", "api.key", "tokens.csv", "admin"
ACCOUNTS, ACCOUNTS_PUBLIC = "accounts.key", "accounts.pub"  # what tokens of service accounts are signed with
LIFE = datetime.timedelta(days=30)  # of a testbed that somebody leaves up
CONTEXT = "meshdns"  # of a kubeconfig: server, user, and both together


def kubeconfig(files: Mapping[str, str], url: str) -> str:
    """What a program in the testbed needs to speak to the API server."""
    authority = base64.b64encode(files[AUTHORITY].encode()).decode()
    server = {"server": url, "tls-server-name": API_SERVER, "certificate-authority-data": authority}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": CONTEXT, "cluster": server}],
            "users": [{"name": CONTEXT, "user": {"token": files[ADMIN]}}],
            "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT}}],
            "current-context": CONTEXT,
        }
    )
