#!/bin/sh
# The operator tests against a host build under AddressSanitizer and UndefinedBehaviorSanitizer.
# Usage: [PYTHON=...] csrc/sanitize.sh [pytest options]; exits non-zero on a finding or a failed test.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
build=build/sanitize
mkdir -p "$build/lib/rt"
SDRT_SANITIZE=1 "$python" setup.py -q build_ext --build-lib "$build/lib" --build-temp "$build/temp"
# A package of this build and the wrappers alone, so that what is tested is surely the build above.
cp python/rt/ops.py python/rt/ops_matrix.py "$build/lib/rt/"
: >"$build/lib/rt/__init__.py"
rm -f "$build"/report.*
status=0
# How accurate the flow is takes minutes there and says nothing of memory. The kernels that are
# emulated switch stacks, which AddressSanitizer does not follow; they are compiled with the other one.
# Python's own allocator hides overruns of arrays, and Python itself leaks at exit. Reports go to
# files, because a process that is stopped takes with it what pytest has captured.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_path="$PWD/$build/report" \
    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:log_path="$PWD/$build/report" \
    PYTHONMALLOC=malloc PYTHONPATH="$build/lib" \
    "$python" -m pytest --noconftest -p no:cacheprovider tests/csrc \
    --ignore tests/csrc/test_ops_emulated.py \
    -k "not every_class_of_motion and not ranks_motions" "$@" || status=$?
for report in "$build"/report.*; do
    [ ! -e "$report" ] || { cat "$report"; status=1; }
done
exit $status
