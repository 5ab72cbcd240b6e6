#!/usr/bin/env bash
# every_interpreter.sh MAKE: all tests with each CPython that this machine has (3.11 and later), one environment each.
# The newest of a minor version is taken, from PATH or from pyenv.
set -u
declare -A found=()
for python in "$HOME"/.pyenv/versions/3.*/bin/python python3.1{1..9}; do
    minor=$("$python" -c 'import sys; print("3.%d" % sys.version_info[1] if sys.version_info >= (3, 11) else "")' 2>/dev/null)
    [ -n "$minor" ] && found[$minor]=$python
done
failed=()
for minor in $(printf '%s\n' "${!found[@]}" | sort -V); do
    echo "== Python $minor (${found[$minor]})"
    "$1" VENV=".venv-$minor" PYTHON="${found[$minor]}" test || failed+=("$minor")
done
[ "${#found[@]}" -gt 0 ] || { echo "no Python 3.11 or later was found" >&2; exit 1; }
[ "${#failed[@]}" -eq 0 ] || { echo "failed with Python ${failed[*]}" >&2; exit 1; }
echo "passed with Python $(printf '%s\n' "${!found[@]}" | sort -V | tr '\n' ' ')"
