#!/usr/bin/env bash
# Build the image and run a command that needs a Docker engine: the one that is there, else one that the workplace can
# bring up and take down (LOCAL_DOCKER, with a base image of its own). BASE names the base image, DOCKER_HOST the engine.
set -euo pipefail
cd "$(dirname "$0")/../.."
local_docker=${LOCAL_DOCKER:-../shared/tools/local-docker.sh}

if ! docker info >/dev/null 2>&1; then
  if [ ! -r "$local_docker" ] || [ "$(id -u)" != 0 ]; then
    echo "make test-docker: no Docker engine answers (docker info); start one, or name it in DOCKER_HOST" >&2
    exit 2
  fi
  trap 'bash "$local_docker" down' EXIT
  started=$(bash "$local_docker" up)
  eval "$started"
  # Its engine copies the whole image for each container: what a package manager leaves behind is not worth the copies.
  if [ -z "${BASE:-}" ]; then
    BASE=sentinel-test-base-slim
    printf 'FROM sentinel-test-base\nRUN rm -rf /var/cache/apt /var/lib/apt/lists /usr/share/doc /usr/share/locale /usr/share/man\n' |
      DOCKER_BUILDKIT=0 docker build --quiet --tag "$BASE" - >/dev/null
  fi
fi
docker compose version >/dev/null 2>&1 || { echo "make test-docker: needs docker compose v2" >&2; exit 2; }
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0

docker build --quiet ${BASE:+--build-arg "BASE=$BASE"} --tag sentinel-stream . >/dev/null
"$@"
