#!/bin/sh
# The replica's name, then nginx in the foreground.
set -eu
printf 'add_header X-Replica %s always;\n' "$REPLICA" > /tmp/replica.conf
exec nginx -g 'daemon off;'
