#!/bin/sh
# A new, empty cluster in memory, then PostgreSQL in the foreground on port $PORT.
# It takes TLS from the first byte, as PostgreSQL does by default on Debian: only with it does the payload that asks a
# server who it is get an answer here. Connections broken off after that are not worth a line each (log_min_messages).
set -eu
bin=$(echo /usr/lib/postgresql/*/bin)
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=postgres.example.com \
    -keyout /tmp/tls.key -out /tmp/tls.crt 2>/dev/null
"$bin/initdb" --pgdata=/tmp/data --username=postgres --auth=trust --no-sync --wal-segsize=1 >/dev/null
echo 'host all all all trust' >>/tmp/data/pg_hba.conf
exec "$bin/postgres" -D /tmp/data -p "$PORT" -k /tmp -c listen_addresses='*' \
    -c ssl=on -c ssl_cert_file=/tmp/tls.crt -c ssl_key_file=/tmp/tls.key \
    -c fsync=off -c autovacuum=off -c shared_buffers=16MB -c log_min_messages=fatal
