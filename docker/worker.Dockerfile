# The pipeline: a Prefect worker, and every verb of the command line.
# CPU:  docker build -f docker/worker.Dockerfile -t deciduous-cpu-worker .
# GPU:  docker build -f docker/worker.Dockerfile --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#           --build-arg TORCH_BACKEND=cu128 --build-arg POOL=gpu -t deciduous-gpu-worker .
ARG BASE=debian:12.12-slim
ARG UV=0.13.8
FROM ghcr.io/astral-sh/uv:${UV} AS uv

FROM ${BASE}
ARG TORCH_BACKEND=cpu
ARG POOL=cpu
COPY --from=uv /uv /usr/local/bin/uv
# Python comes from uv, so that any base will do, with CUDA or without; its user may not write beside the code, so what
# is not compiled here would be compiled at every start: 12 s of CPU for a flow run
ENV UV_COMPILE_BYTECODE=1 \
    UV_PYTHON_INSTALL_DIR=/opt/python \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH
# certificates alone, the newest there are: a pinned one would be gone from the archive next month
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home deciduous \
    && install -d -o deciduous -g deciduous /data \
    && uv venv --python 3.11 /opt/venv
WORKDIR /app
# dependencies first: a change of the code builds no layer of gigabytes
COPY pyproject.toml constraints.txt ./
RUN uv pip install --no-cache --torch-backend "${TORCH_BACKEND}" -c constraints.txt -r pyproject.toml
COPY alembic.ini ./
COPY flows ./flows
COPY tasks ./tasks
COPY registry ./registry
COPY kernels ./kernels
COPY infra ./infra
COPY benchmarks ./benchmarks
RUN stdlib=$(python -c 'import os; print(os.path.dirname(os.__file__))') \
    && python -m compileall -q -x '/(test|tests|lib2to3|site-packages)/' "$stdlib" /app
COPY --chmod=755 docker/deciduous.sh /usr/local/bin/deciduous
COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/entrypoint
USER 10001:10001
# the rooms are packages of /app: entrypoints are dotted (flows.learn.learn), nothing is installed as a wheel
ENV PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    DECIDUOUS_HOME=/data \
    DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    POOL=${POOL}
VOLUME /data
ENTRYPOINT ["entrypoint"]
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
CMD ["sh", "-c", "exec prefect worker start --pool \"$POOL\" --type process --install-policy never --with-healthcheck"]
