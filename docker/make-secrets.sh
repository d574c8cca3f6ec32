#!/bin/sh
# Draw every secret that compose.yaml names into docker/secrets, once; what is there stays. Keep a copy of the folder:
# without hash_key the suppression list is blind.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder" # the files have to be readable by the containers' user: the folder keeps others out
draw() { [ -s "$folder/$1" ] || head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$folder/$1"; }
for name in postgres_password s3_access_key s3_secret_key hash_key mlflow_password mlflow_session_key; do
    draw "$name"
done
server="deciduous:$(cat "$folder/postgres_password")@postgres"
printf %s "postgresql+psycopg://$server/deciduous" > "$folder/catalog_url"
printf %s "postgresql+psycopg://$server/mlflow" > "$folder/mlflow_url"
printf %s "postgresql+asyncpg://$server/prefect" > "$folder/prefect_url"
chmod 644 "$folder"/*
