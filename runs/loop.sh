#!/usr/bin/env bash
# The loop on real data: calls of any agent, from its logs, on a machine with a GPU (or many cores).
#
#     runs/loop.sh FOLDER LOG...        LOG: what `smallfirst import` reads; gzipped or not
#
# FOLDER keeps the records, the artifacts and what was measured. Run again, it goes on where it was.
#   MINUTES   of training a task (default: to convergence)     BASE      the model to train on (smollm2-135m)
#   MOST      tasks a pass (default: all that are worth it)    SPREAD    as `smallfirst loop --spread`: 4, local, HOST:PORT
set -euo pipefail
folder=${1:?"usage: runs/loop.sh FOLDER LOG..."}
shift
bin=${BIN:-.venv/bin}
[ -x "$bin/smallfirst" ] || { echo "No $bin/smallfirst: run \`make .venv/demo\`, or set BIN." >&2; exit 1; }
mkdir -p "$folder"
bin=$(cd "$bin" && pwd)
logs=()
for log in "$@"; do logs+=("$(realpath "$log")"); done
cd "$folder"
[ -e smallfirst.toml ] || "$bin/smallfirst" init --json > /dev/null

if [ ${#logs[@]} -gt 0 ]; then "$bin/smallfirst" import "${logs[@]}"; fi
"$bin/smallfirst" loop --once --base "${BASE:-smollm2-135m}" \
  ${MINUTES:+--minutes "$MINUTES"} ${MOST:+--most "$MOST"} ${SPREAD:+--spread "$SPREAD"} --json | tee pass.json
"$bin/smallfirst" tasks list
"$bin/smallfirst" releases
echo "Live traffic decides the rest: $bin/smallfirst serve, in $folder."
