#!/usr/bin/env bash
# Do everything that needs a machine with a GPU, in at most 8 minutes: run the tests marked gpu, measure updates per second and
# environment steps per second of learn(), and profile an update.
#
#     benchmarks/device.sh [OUT] [--dry-run]
#
# OUT, by default $OUT or build/device, receives a JSON file from each benchmark, summary.json (which steps passed), and
# device.log. Each step has a time limit. If a step fails, the others still run. The script fails if any step failed, or if
# there is no GPU. --dry-run does the same steps on a CPU with small networks, in about a minute. Its numbers mean nothing, and
# tests marked gpu are skipped. PYTHON names the Python.
#
# The machine needs PyTorch and pytest. All other packages travel as wheels in .whl, so the machine needs no package registry.
# Git ignores .whl. Prepare once:
#
#     PYTHON=.venv/bin/python benchmarks/device_wheels.sh
#     benchmarks/device.sh --dry-run
#
# Then run this on the machine, as one command with a limit of 10 minutes, in a copy of the repository that contains .whl. If a
# tool lends the machine, this is the command of its run, with carry [".whl"] and timeout_s 540:
#
#     bash benchmarks/device.sh "$OUT"
#
# Copy the JSON files to benchmarks/results/speed/CARD, such as h200, and replace those of the run before.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

out=${OUT:-$root/build/device}
dry_run=false
for argument in "$@"; do
    case $argument in
        --dry-run) dry_run=true ;;
        -*) echo "$0: unknown option $argument; the options are [OUT] [--dry-run]." >&2; exit 2 ;;
        *) out=$argument ;;
    esac
done
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
cd "$root" || exit 2
PYTHON=${PYTHON:-python3}
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
# The checkout is used without installation. Nothing is rendered, so MuJoCo needs no display
export PYTHONPATH=$PWD:$packages${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 MUJOCO_GL=disable

if $dry_run; then
    device=cpu
    patience=5  # longer limits, for few cores with other work on them
    size=(--quick)
    flowrl=("FlowRL float32")
    updates=()
    learning=(--rounds 1 --seconds 0.01)
    profiling=()
else
    device=cuda
    patience=1
    size=()
    flowrl=("FlowRL float32" "FlowRL float32 compiled")
    updates=(--rounds 5 --seconds 0.3)
    learning=(--rounds 3 --seconds 1.5)
    profiling=(--rounds 3 --updates 60)
fi

steps=()
lines=()
failed=0

# run_step NAME LIMIT COMMAND...: run a step for at most LIMIT seconds
run_step() {
    local name=$1 limit=$(($2 * patience)) start=$SECONDS code=0 verdict
    shift 2
    printf '\n=== %s, at most %s s: %s\n' "$name" "$limit" "$*"
    # timeout makes a process group, so that the limit also ends processes that the command has started
    timeout --kill-after=3 "$limit" "$@" || code=$?
    case $code in
        0) verdict=passed ;;
        124 | 137) verdict="failed: not done within $limit s" ;;
        *) verdict="failed: exit code $code" ;;
    esac
    test $code -eq 0 || failed=1
    steps+=("{\"name\": \"$name\", \"exit_code\": $code, \"seconds\": $((SECONDS - start)), \"limit\": $limit}")
    lines+=("$(printf '%-10s %4d s  %s' "$name" $((SECONDS - start)) "$verdict")")
    write_summary
}

# Called after each step, so that the file exists even if the machine goes away in the middle
write_summary() {
    local IFS=, commit
    commit=$(git describe --always --dirty --exclude '*' 2> /dev/null || echo unknown)
    printf '{"dry_run": %s, "device": "%s", "commit": "%s", "date": "%s", "steps": [%s]}\n' \
        $dry_run $device "$commit" "$(date -u +%FT%TZ)" "${steps[*]}" > "$out/summary.json"
}

# List the wheels in .whl that are not installed in the same version
list_missing_wheels() {
    test -d .whl && "$PYTHON" - .whl/*.whl << 'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for path in sys.argv[1:]:
    name, wanted = Path(path).name.split("-")[:2]
    try:
        installed = version(name)
    except PackageNotFoundError:
        installed = "none"
    if installed != wanted:
        print(path)
PYTHON
}

# The limits add up to less than 8 minutes, except in a dry run
main() {
    local wheels tests workers=()

    run_step machine 15 "$PYTHON" - $device << 'PYTHON'
import os
import subprocess
import sys

import torch

print(f"Python {sys.version.split()[0]}, PyTorch {torch.__version__}, {os.cpu_count()} cores")
if torch.cuda.is_available():
    subprocess.run(["nvidia-smi"])
    print(torch.cuda.get_device_properties(0))
elif sys.argv[1] == "cuda":
    sys.exit("PyTorch sees no GPU here. With --dry-run the steps run on a CPU.")
PYTHON

    mapfile -t wheels < <(list_missing_wheels)
    if test ${#wheels[@]} -gt 0; then
        run_step packages 25 "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
            --target "$packages" "${wheels[@]}"
    fi

    mapfile -t tests < <(grep -l "pytest.mark.gpu" -r tests --include="test_*.py")
    # Several at a time, because most of their time goes to compilers
    "$PYTHON" -c "import xdist" 2> /dev/null && workers=(-n 6)
    run_step tests 100 "$PYTHON" -m pytest -m gpu -v --durations 10 -p no:cacheprovider "${workers[@]}" "${tests[@]}"

    run_step update 175 "$PYTHON" benchmarks/bench_update.py "${size[@]}" --output "$out/bench_update.json" --device $device \
        --threads 1 --no-cold-start --architectures defaults paper --gradient-steps 1 8 --contenders "${flowrl[@]}" SAC \
        "${updates[@]}"

    run_step learn 105 "$PYTHON" benchmarks/bench_learn.py "${size[@]}" --output "$out/bench_learn.json" --device $device \
        --envs HalfCheetah-v4 --n-envs 1 16 --architecture defaults --contenders "${flowrl[-1]}" SAC TD3 "${learning[@]}"

    run_step profile 50 "$PYTHON" benchmarks/bench_profile.py "${size[@]}" --output "$out/bench_profile.json" --device $device \
        --architectures defaults --contenders "${flowrl[-1]}" "${profiling[@]}"

    printf '\n=== summary\n'
    printf '%s\n' "${lines[@]}"
    return $failed
}

main 2>&1 | tee "$out/device.log"
exit "${PIPESTATUS[0]}"
