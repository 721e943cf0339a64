#!/bin/sh
# Runs everything that needs a GPU, in one command of 10 or 25 minutes. benchmarks/gpu_suite.py holds the steps, their
# order and their limits; `benchmarks/gpu_suite.sh --help` shows them.
#
#     benchmarks/gpu_suite.sh --output DIR [--minutes 10|25]    on a machine with a CUDA device
#     benchmarks/gpu_suite.sh --rehearse [--minutes 10|25]      the same commands at tiny sizes on the CPU
#
# PYTHON names the interpreter (default: .venv/bin/python if it exists, else python3). BUILD=0 uses the extension as it
# is built already. BENCH_COMMIT names the commit if there is no .git (see benchmarks/commit.py).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON-}" ]; then
  PYTHON=python3
  [ -x "$root/.venv/bin/python" ] && PYTHON=$root/.venv/bin/python
fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m benchmarks.gpu_suite "$@"
