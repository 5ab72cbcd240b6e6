#!/bin/sh
# Tracks examples/train.py with the embedded default: no uploader runs yet, no token, samples go to a directory.
# usage: demo.sh BIN_DIR DATA_DIR
set -eu
bin=$1
data=$2
rm -rf "$data"
mkdir -p "$data"
# A Unix socket's path is short: the runtime directory cannot be below a long working directory.
runtime=$(mktemp -d)
trap 'rm -rf "$runtime"' EXIT
# Nothing of the caller's configuration: the demo never sends anything beyond this machine.
unset SENTINEL_API_TOKEN SENTINEL_API_KEY SENTINEL_API_TOKEN_FILE SENTINEL_CONNECT SENTINEL_TARGET SENTINEL_BIND SENTINEL_SPOOL
export XDG_STATE_HOME="$data/state" XDG_DATA_HOME="$data" XDG_RUNTIME_DIR="$runtime"

echo "\$ sentinel-collector --no-cloud --job-name demo --tag kind=demo -- python examples/train.py 20"
"$bin/sentinel-collector" --no-cloud --job-name demo --tag kind=demo --summary-json "$data/summary.json" \
    -- "$bin/python" examples/train.py 20

echo
echo "\$ sentinel-uploader status"
"$bin/sentinel-uploader" status
echo
# The uploader that the collector started would leave by itself after ten idle seconds.
"$bin/sentinel-uploader" drain >/dev/null
"$bin/python" examples/show_run.py "$data/summary.json"
