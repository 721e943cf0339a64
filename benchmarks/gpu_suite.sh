#!/bin/sh
# Everything that needs a GPU, in one command of at most 10 minutes: build, the tests marked gpu, compute-sanitizer where it
# is installed, and the benchmarks, whose JSON lines go to benchmarks/results.
#
#     benchmarks/gpu_suite.sh              on a machine with a CUDA device
#     benchmarks/gpu_suite.sh --rehearse   the same steps at tiny sizes on the CPU, to see that they run; writes no results
#
# PYTHON names the interpreter (default: .venv/bin/python where that is, else python3). BUILD=0 takes the extension that
# is built.
set -eu
cd "$(dirname "$0")/.."

rehearse=
case "${1-}" in
  "") ;;
  --rehearse) rehearse=--rehearse ;;
  *)
    echo "gpu_suite.sh: expected no argument or --rehearse, got '$1'" >&2
    exit 2
    ;;
esac
if [ -z "${PYTHON-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
step() { echo; echo "== $(date -u +%H:%M:%S) $*"; }

if [ "${BUILD-1}" = 1 ]; then
  step "build"
  cuda=ON
  limit=120
  [ -n "$rehearse" ] && cuda=AUTO && limit=600
  # Where the build's own requirements are installed, nothing is downloaded.
  isolation=--no-build-isolation
  "$PYTHON" -c "import pybind11, setuptools, wheel" 2>/dev/null || isolation=
  MMN_FAST_CUDA=$cuda timeout $limit "$PYTHON" -m pip install --quiet --no-deps $isolation --editable .
fi

step "tests"
if [ -n "$rehearse" ]; then
  timeout 120 "$PYTHON" -m pytest -q tests/test_gpu_graphs.py
else
  timeout 150 "$PYTHON" -m pytest -q -m gpu tests
fi

# What the sanitizer slows down a hundredfold is run on the operators alone.
step "compute-sanitizer"
if [ -n "$rehearse" ]; then
  echo "needs a device: not rehearsed"
elif command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    timeout 45 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$PYTHON" -m pytest -q -m gpu -k "fp16 or pair_moments or temporal_nms" tests/kernels/test_gpu_ops.py
  done
else
  echo "compute-sanitizer is not installed: memory and races were not checked"
fi

step "benchmark"
timeout 160 "$PYTHON" -m benchmarks.bench_gpu $rehearse

step "benchmark of the proposal convolution"
timeout 80 "$PYTHON" -m benchmarks.bench_gather $rehearse
step "done"
