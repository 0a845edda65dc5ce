#!/usr/bin/env bash
# What a few minutes with a GPU are used for, into one folder of results:
#   benchmarks/run_gpu.sh tests [FOLDER]    build, all tests that need a GPU, compute-sanitizer
#   benchmarks/run_gpu.sh speed [FOLDER]    build if need be, all benchmarks beside their peers, tile configurations
# Each ends within six minutes; --dry tries all steps without a GPU. Runs with the torch and triton that are there and
# never replaces them. A step that fails, crashes or hangs does not stop the others; the status is 1 when any did.
#   PYTHON        the interpreter [python3]
#   WHEELS        a folder of wheels to install first, without dependencies and without an index
#   LAVIT_COMMIT  the commit, where the files came without their history
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-python3}
exec "$PYTHON" -m benchmarks.gpu "$@"
