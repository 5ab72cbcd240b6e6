# Both commands in one small image: `docker build -t sentinel-stream .`
# BASE is any image with Python 3.11 or newer; both stages take the same one, so that the environment made in the first
# runs in the second. Everything that is installed is pinned by hash in the lock files.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
WORKDIR /build
COPY requirements-build.lock requirements.lock ./
RUN python3 -m venv /tools \
 && /tools/bin/pip install --require-hashes -r requirements-build.lock \
 && python3 -m venv /opt/sentinel-stream \
 && /opt/sentinel-stream/bin/pip install --require-hashes --only-binary=:all: -r requirements.lock
# Requests are signed with botocore, no client of a service is ever made: their descriptions are two thirds of it all.
RUN find /opt/sentinel-stream/lib/python3*/site-packages/boto*/data -mindepth 1 -maxdepth 1 -type d -exec rm -r {} +
COPY . .
# Modules are compiled here, since the running container cannot write. The directories are for volumes: a new one takes
# owner and mode from what it is mounted over.
RUN /tools/bin/python -m hatchling build -t wheel -d dist \
 && /opt/sentinel-stream/bin/pip install --no-index --no-deps dist/*.whl \
 && /opt/sentinel-stream/bin/pip uninstall --quiet --yes pip \
 && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/sentinel-stream/lib \
 && install -d -m 0700 /volumes/sentinel-stream /volumes/sentinel-stream/client-keys /volumes/sentinel-stream/collector \
      /volumes/sentinel-stream/keys /volumes/sentinel-stream/runs /volumes/sentinel-stream/spool

FROM ${BASE}
LABEL org.opencontainers.image.title="sentinel-stream" \
      org.opencontainers.image.description="Records what a job or a host uses and delivers it, whatever breaks on the way." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sentinel-stream /opt/sentinel-stream
COPY --from=build --chown=10001:10001 /volumes /var/lib
# Spool, local runs, keys and what collectors keep lie under /var/lib/sentinel-stream.
ENV PATH=/opt/sentinel-stream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/sentinel-stream \
    XDG_STATE_HOME=/var/lib \
    XDG_DATA_HOME=/var/lib \
    SENTINEL_SPOOL=/var/lib/sentinel-stream/spool
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["sentinel-uploader", "status"]
CMD ["sentinel-uploader"]
