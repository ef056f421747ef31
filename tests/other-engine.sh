#!/bin/sh
# Runs a command against the Docker Engine of another Debian suite, on cgroup version 2: as root, in this folder's project,
#   tests/other-engine.sh sid .venv/bin/python -m pytest -m testbed tests/testbed/test_paths.py
# The engine is a private one, with its own network, mounts and images (copies of those that are there); it ends with the
# command. Controllers that the machine holds in version 1 hierarchies are not in version 2: then CPU sets are ignored, no
# memory is recorded, and what is measured is no measurement. Tests that reach a container from the host do not work.
set -eu
suite=$1
shift
project=$(cd "$(dirname "$0")/.." && pwd)
root=$(mktemp -d /var/tmp/meshdns-engine-XXXXXX)
socket=/run/meshdns-engine.sock

finish() {
    if [ -s "$root/run/meshdns-engine.pid" ]; then
        kill "$(cat "$root/run/meshdns-engine.pid")" || true
        while [ -e "$root/run/meshdns-engine.pid" ]; do sleep 0.2; done
    fi
    rm -rf --one-file-system "$root"
}
trap finish EXIT
trap 'exit 130' INT TERM

# A snapshot of a mirror may be older than its own promise.
mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
    --include=docker.io,iptables,ca-certificates,fuse-overlayfs "$suite" "$root"
mkdir -p "$root$project" "$root/old"

only_version_2='umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup'
# pivot_root, not chroot: runc's own would leave the root of the machine behind.
unshare --mount --net sh -ec "
    ip link set lo up
    $only_version_2
    mount --bind '$root' '$root'
    for shared in /proc /sys /dev /tmp '$project'; do mount --rbind \$shared '$root'\$shared; done
    cd '$root'
    pivot_root . old
    umount --lazy /old
    exec dockerd --host 'unix://$socket' --pidfile /run/meshdns-engine.pid --data-root /var/lib/meshdns-engine \
        --exec-root /run/meshdns-engine --storage-driver fuse-overlayfs --exec-opt native.cgroupdriver=cgroupfs \
        --bridge none
" >"$root/engine.log" 2>&1 &

other=unix://$root$socket
for _ in $(seq 150); do
    if docker --host "$other" version --format '{{.Server.Version}}' 2>/dev/null; then ready=yes && break; fi
    sleep 0.2
done
if [ -z "${ready:-}" ]; then
    tail -5 "$root/engine.log" >&2
    exit 3
fi
tags=$("$project/.venv/bin/meshdns" engine)
# shellcheck disable=SC2086  # several tags
docker save meshdns/base:trixie $tags | docker --host "$other" load --quiet >/dev/null

cd "$project"
DOCKER_HOST=$other unshare --mount sh -ec "$only_version_2; exec \"\$@\"" sh "$@"
