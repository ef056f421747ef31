"""Where the API server keeps things: in memory, on the loopback of its pod."""

from meshdns.lab.parts.component import LOOPBACK, NOBODY, Alike, Container

CLIENTS, _PEERS = f"{LOOPBACK}:2379", f"{LOOPBACK}:2380"
_COMMAND = (
    "--data-dir=/tmp/etcd",
    "--unsafe-no-fsync",
    f"--listen-client-urls={CLIENTS}",
    f"--advertise-client-urls={CLIENTS}",
    f"--listen-peer-urls={_PEERS}",
    f"--initial-advertise-peer-urls={_PEERS}",
    f"--initial-cluster=default={_PEERS}",
    "--log-level=warn",
)
PART = Alike("etcd", Container(_COMMAND, user=NOBODY, abrupt=True), carries=False)
