#!/usr/bin/env bash
# side_by_side.sh PYTEST: all tests, in two runs at the same time. Most of them wait for something, so that takes half
# as long as one after the other. The first half's report comes when both are done; the last line is a run's own summary,
# that of a run that has failed if there is one.
set -u
report=$(mktemp) seen=$(mktemp)
"$1" -p no:cacheprovider tests/uploader tests/protocol >"$report" 2>&1 &
first=$!
trap 'rm -f "$report" "$seen"' EXIT
trap 'kill -TERM "$first"; wait "$first"; exit 130' INT TERM
set -o pipefail
"$1" --ignore=tests/uploader --ignore=tests/protocol 2>&1 | tee "$seen"
second_code=$?
wait "$first"
first_code=$?
cat "$report"
if [ "$second_code" -ne 0 ]; then
    tail -n 1 "$seen"
    exit "$second_code"
fi
exit "$first_code"
