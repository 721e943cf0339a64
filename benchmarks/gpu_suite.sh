#!/bin/sh
# Everything that needs a GPU, in one command of at most 10 minutes: build, the tests marked gpu, compute-sanitizer where it
# is installed, and the benchmarks, whose JSON lines go to benchmarks/results/local.
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

# What fails does not keep the rest from running; the exit status tells.
failed=
check() { # seconds on a device, name, command
  limit=$1 what=$2
  [ -z "$rehearse" ] || limit=600 # a CPU may be slow
  shift 2
  step "$what"
  timeout -k 5 "$limit" "$@" && return
  status=$?
  case $status in 124 | 137) echo "$what: stopped after $limit s" >&2 ;; esac
  failed="$failed, $what"
}

if [ "${BUILD-1}" = 1 ]; then
  step "build"
  cuda=ON
  limit=90
  [ -n "$rehearse" ] && cuda=AUTO && limit=600
  # Where the build's own requirements are installed, nothing is downloaded; some stand beside the interpreter alone.
  PATH="$PATH:$("$PYTHON" -c "import os, sys; print(os.path.dirname(sys.executable))")"
  export PATH
  isolation=--no-build-isolation
  "$PYTHON" -c "import pybind11, setuptools, wheel" 2>/dev/null || isolation=
  MMN_FAST_CUDA=$cuda timeout -k 5 $limit "$PYTHON" -m pip install --quiet --no-deps $isolation --editable .
fi

if [ -n "$rehearse" ]; then
  check 120 "tests" "$PYTHON" -m pytest -q tests/test_gpu_graphs.py
else
  # Processes of their own, where pytest-xdist is installed, compile side by side, and none spoils another's device.
  workers=
  "$PYTHON" -c "import xdist" 2>/dev/null && workers="-n 8"
  check 90 "tests" "$PYTHON" -m pytest -q $workers -m "gpu and not long" --continue-on-collection-errors \
    -o faulthandler_timeout=60 tests/kernels tests/test_*gpu*.py tests/test_features.py
fi

# Slowed down a hundredfold: every kernel of ours once, at small sizes. Not finishing is no finding.
once="(not triton and (fp16 or pair_moments or temporal_nms) and not tacos and not 2548)"
once="$once or (matches_the_reference and k4 and fp16)"
if [ -n "$rehearse" ]; then
  step "compute-sanitizer"
  echo "needs a device: not rehearsed"
elif command -v compute-sanitizer >/dev/null; then
  # Each tensor its own allocation: in PyTorch's cache the neighbour's bytes would be in bounds. A call that CUDA refuses
  # is an exception, or an answer that a library asked for.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in "memcheck --report-api-errors no" racecheck; do
    step "compute-sanitizer $tool"
    status=0
    timeout -k 5 55 compute-sanitizer --tool $tool --error-exitcode 99 "$PYTHON" -m pytest -q -x -m gpu -k "$once" \
      tests/kernels/test_gpu_fourier_ops.py tests/kernels/test_gpu_ops.py \
      tests/kernels/test_triton_conv.py tests/kernels/test_triton_fourier.py || status=$?
    case $status in
      0) ;;
      124 | 137) echo "$tool ran out of time: no finding so far, not finished" ;;
      *) failed="$failed, compute-sanitizer $tool" ;;
    esac
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  step "compute-sanitizer"
  echo "not installed: memory and races were not checked"
fi

check 105 "benchmark" "$PYTHON" -m benchmarks.bench_gpu $rehearse
check 105 "benchmark of the proposal convolution" "$PYTHON" -m benchmarks.bench_gather $rehearse

if [ -n "$failed" ]; then
  echo "gpu_suite.sh: failed: ${failed#, }" >&2
  exit 1
fi
step "done"
