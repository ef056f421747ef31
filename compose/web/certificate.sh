#!/bin/sh
# DOMAIN NAMESPACE ACCOUNT...: one key and certificate for all servers (what is measured is the handshake, not a chain of
# trust), and for each service account what its sidecar would get from istiod's CA: the same SPIFFE name, by a CA of our own.
set -eu
domain=$1 namespace=$2
shift 2
elliptic="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30"
openssl req -x509 $elliptic -subj /CN=meshdns \
    -addext "subjectAltName=DNS:*.$namespace.svc.$domain" -keyout /tls/key/tls.key -out /tls/certificate/tls.crt 2>/dev/null
chmod 0644 /tls/key/tls.key   # read by the servers' user; this container may not give files away

openssl req -x509 $elliptic -subj "/O=$domain" -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
    -keyout /tmp/ca.key -out /tmp/root-cert.pem 2>/dev/null
for account; do
    folder=/identity/$account
    openssl req $elliptic -subj "/O=$domain" -keyout "$folder/key.pem" -out /tmp/request 2>/dev/null
    printf 'subjectAltName=critical,URI:spiffe://%s/ns/%s/sa/%s\nkeyUsage=critical,digitalSignature,keyEncipherment\n%s\n' \
        "$domain" "$namespace" "$account" extendedKeyUsage=serverAuth,clientAuth > /tmp/extensions
    openssl x509 -req -in /tmp/request -CA /tmp/root-cert.pem -CAkey /tmp/ca.key -CAcreateserial -days 30 \
        -extfile /tmp/extensions -out "$folder/cert-chain.pem" 2>/dev/null
    cp /tmp/root-cert.pem "$folder/root-cert.pem"
    chmod 0644 "$folder/key.pem"
done
