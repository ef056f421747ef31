#!/bin/sh
# The replica's name, whether it is the one that fails and whether it begins as ready, then nginx in the foreground.
set -eu
faulty=0
[ "$REPLICA" = shop-1 ] && faulty=1
printf 'add_header X-Replica %s always;\nmap "" $faulty { default %s; }\n' "$REPLICA" "$faulty" > /tmp/replica.conf
[ "${READY:-yes}" = yes ] || touch /tmp/unready
exec nginx -g 'daemon off;'
