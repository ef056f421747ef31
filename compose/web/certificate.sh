#!/bin/sh
# One key and certificate for all replicas: what is measured is the handshake, not a chain of trust.
set -eu
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=meshdns \
    -addext "subjectAltName=DNS:*.shop.svc.cluster.local" -keyout /tls/key/tls.key -out /tls/certificate/tls.crt 2>/dev/null
chmod 0644 /tls/key/tls.key   # read by the servers' user; this container may not give files away
