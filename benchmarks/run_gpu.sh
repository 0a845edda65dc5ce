#!/usr/bin/env bash
# Builds, tests and measures everything on a machine with a GPU, in under 9 minutes, into one folder:
#   benchmarks/run_gpu.sh [FOLDER]          [benchmarks/results/gpu-<name>-<date>]
# Runs with the torch and triton that are there and never replaces them. Every step has its own time limit, a failing one
# does not stop the others, and the status is non-zero when any failed.
#   PYTHON        the interpreter [python3]
#   WHEELS        a folder of wheels to install first, without dependencies and without an index
#   LAVIT_COMMIT  the commit, where the files came without their history
set -uo pipefail
if [ $# -gt 1 ]; then
    echo "usage: benchmarks/run_gpu.sh [FOLDER]" >&2
    exit 2
fi
out=${1:-}
[ -z "$out" ] || out=$(realpath -m "$out")
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
total=520
started=$SECONDS
failed=()
results=()

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr -cs '[:alnum:]\n' '-' | sed 's/-$//')
out=${out:-$PWD/benchmarks/results/gpu-${gpu:-none}-$(date +%Y%m%d-%H%M)}
mkdir -p "$out" || exit 2
log=$out/log.txt
: >"$log"

# say TEXT: to the terminal and the log.
say() { echo "$*" | tee -a "$log"; }

# step NAME LIMIT COMMAND...: run it for at most LIMIT seconds, or what is left; its output goes to the log, its end to
# the terminal. Interrupted rather than ended: pytest then still writes what it has.
step() {
    local name=$1 limit=$2 begun=$SECONDS left status verdict
    shift 2
    left=$((total - (SECONDS - started)))
    if [ "$left" -lt 10 ]; then
        say "=== $name: FAILED, no time left"
        failed+=("$name")
        results+=("$name: FAILED, no time left")
        return
    fi
    [ "$limit" -le "$left" ] || limit=$left
    say "=== $name (at most $limit s): $*"
    timeout --signal=INT --kill-after=15 "$limit" "$@" >>"$log" 2>&1
    status=$?
    case $status in
        0) verdict="passed in $((SECONDS - begun)) s" ;;
        124 | 137) verdict="FAILED, cut off after $((SECONDS - begun)) s" ;;
        *) verdict="FAILED with status $status after $((SECONDS - begun)) s" ;;
    esac
    if [ "$status" -ne 0 ]; then
        failed+=("$name")
        tail -n 15 "$log"
    fi
    results+=("$name: $verdict")
    say "=== $name: $verdict"
}

versions() {
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$python" - <<'END'
import sys, torch
print("python", sys.version.split()[0], "torch", torch.__version__, "CUDA", torch.version.cuda)
try:
    import triton
    print("triton", triton.__version__)
except ImportError as error:
    print("triton:", error)
if not torch.cuda.is_available():
    sys.exit("torch sees no CUDA device")
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
END
}

# Wheels beside what is installed; torch and triton stay as they are.
wheels() {
    local file chosen=()
    for file in "$WHEELS"/*.whl; do
        case ${file##*/} in
            torch-* | triton-* | pytorch_triton-* | \*.whl) ;;
            *) chosen+=("$file") ;;
        esac
    done
    if [ ${#chosen[@]} -eq 0 ]; then
        echo "no wheels to install in $WHEELS"
        return 1
    fi
    "$python" -m pip install --no-deps --no-index --no-cache-dir "${chosen[@]}"
}

quickstart() {
    local folder
    folder=$(mktemp -d)
    "$python" -m lavit quickstart --output "$folder/quickstart" --device cuda
    local status=$?
    [ ! -e "$folder/quickstart/results.json" ] || cp "$folder/quickstart/results.json" "$out/quickstart.json"
    rm -rf "$folder"
    return $status
}
export -f versions wheels quickstart
export python out

# Not strict: pytest-timeout, whose setting and mark the tests have, may be missing here.
pytest=("$python" -m pytest -q -p no:cacheprovider -o addopts=-ra)

step "device and versions" 60 bash -c versions
[ -z "${WHEELS:-}" ] || step "wheels" 60 bash -c wheels
step "build" 150 "$python" -m pip install -e . --no-deps --no-build-isolation
step "tests on the GPU" 150 "${pytest[@]}" -m gpu tests --maxfail=20 --durations=10 --continue-on-collection-errors
# Every access of the C++ extension's kernels to memory, each tensor in an allocation of its own.
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
if command -v compute-sanitizer >/dev/null; then
    step "ragged kernels under compute-sanitizer" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool memcheck --error-exitcode 9 --kernel-regex kns=lavit \
        "${pytest[@]}" -m gpu tests/kernels/test_{partition,pack,pad,assemble_sequences}.py -k "gpu_equals or touch_nothing"
else
    results+=("ragged kernels under compute-sanitizer: left out, no compute-sanitizer here")
fi
step "benchmarks" 200 "${pytest[@]}" benchmarks --benchmark-only --benchmark-json "$out/benchmarks.json"
if [ -s "$out/benchmarks.json" ]; then
    "$python" -m benchmarks.table "$out/benchmarks.json" >"$out/table.md" 2>>"$log" || failed+=("table")
fi
step "configurations of nearest_code" 100 "$python" -m benchmarks.sweep --json "$out/sweep.json"
step "audit" 120 "$python" -m benchmarks.audit --json "$out/audit.json" --jobs "$(env -u OMP_NUM_THREADS nproc)"
# What is left of the time, if it can be enough.
if [ $((total - (SECONDS - started))) -ge 60 ]; then
    step "quickstart" "$total" bash -c quickstart
else
    results+=("quickstart: left out, no time")
fi

{
    echo "GPU: ${gpu:-none}"
    grep -m 2 -E '^(python|triton) [0-9]' "$log"
    echo "commit: $(git rev-parse HEAD 2>/dev/null || echo "${LAVIT_COMMIT:-unknown}")"
    printf '%s\n' "${results[@]}"
    grep -E '^[0-9]+ (passed|failed|skipped|error)|^[0-9]+ passed| (passed|failed).* in [0-9.]+s' "$log"
    grep -E '  best$' "$log" | sort -u
    echo "$((SECONDS - started)) s in all; ${#failed[@]} failed${failed[*]:+: ${failed[*]}}; everything is in $out"
} | tee "$out/summary.txt"
[ ${#failed[@]} -eq 0 ]
