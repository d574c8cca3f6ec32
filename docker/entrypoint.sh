#!/bin/sh
# Every file of /run/secrets becomes a variable of its name: neither the image nor `docker inspect` shows a secret.
set -eu
for file in "${SECRETS:-/run/secrets}"/*; do
    if [ -f "$file" ]; then
        export "$(basename "$file")=$(cat "$file")"
    fi
done
exec "$@"
