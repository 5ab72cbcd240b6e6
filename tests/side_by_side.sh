#!/usr/bin/env bash
# side_by_side.sh PYTEST: all tests, in three runs at the same time. Most of them wait for something, so that takes a
# third as long as one after the other. The reports of the first two come when all are done. The last line is a run's own
# summary, that of a run that has failed if there is one.
set -u
# The third has all that the first two have not.
parts=(
    "tests/uploader tests/protocol"
    "tests/collector --ignore-glob=tests/collector/test_[a-e]*"
    "--ignore=tests/uploader --ignore=tests/protocol --ignore-glob=tests/collector/test_[f-z]*"
)
set -f # the patterns are pytest's
reports=$(mktemp -d)
pids=()
trap 'rm -rf "$reports"' EXIT
trap 'kill -TERM "${pids[@]}"; wait "${pids[@]}"; exit 130' INT TERM
for part in 0 1; do
    # shellcheck disable=SC2086 # words of their own
    "$1" -p no:cacheprovider ${parts[part]} >"$reports/$part" 2>&1 &
    pids+=($!)
done
set -o pipefail
# shellcheck disable=SC2086
"$1" ${parts[2]} 2>&1 | tee "$reports/2"
codes=("" "" $?)
for part in 0 1; do
    wait "${pids[part]}"
    codes[part]=$?
    cat "$reports/$part"
done
for part in 0 1 2; do
    if [ "${codes[part]}" -ne 0 ]; then
        tail -n 1 "$reports/$part"
        exit "${codes[part]}"
    fi
done
