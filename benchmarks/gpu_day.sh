#!/usr/bin/env bash
# Everything to be run the day a CUDA GPU is at hand, in order of worth, in about 25 minutes:
#
#   benchmarks/gpu_day.sh [FOLDER]        results go to FOLDER (default: benchmarks/results/gpu-DATE)
#
# Each part has its time, what it says goes to FOLDER/NN-NAME.txt while it runs, and a part that fails does not stop the
# others; FOLDER/summary.txt has a line for each. PYTHON is the interpreter (default: .venv/bin/python, else python3).
# GPU_DAY=quick: small sizes, to try every command, also on the emulated device. ONLY="parity bench": these parts alone.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-benchmarks/results/gpu-$(date +%Y-%m-%d)}
[ -x .venv/bin/python ] && here=.venv/bin/python || here=python3
python=${PYTHON:-$here}
quick=()
[ "${GPU_DAY:-}" = quick ] && quick=(--quick)
mkdir -p "$folder" || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # the package need not be installed
: >"$folder/summary.txt"
number=0

# part SECONDS NAME COMMAND...
part() {
  local seconds=$1 name=$2 status=0 began=$SECONDS file
  shift 2
  number=$((number + 1))
  [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $name "* ]] || return 0
  file=$folder/$(printf %02d $number)-$name.txt
  echo "==== $name: $*" | tee "$file"
  timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$file"
  status=${PIPESTATUS[0]}
  local word="failed ($status)"
  [ "$status" = 0 ] && word=ok
  [ "$status" = 124 ] && word="ended after $seconds s"
  echo "$name: $word, $((SECONDS - began)) s" | tee -a "$file" "$folder/summary.txt"
}
# without NAME WHY: a part that cannot run here.
without() {
  number=$((number + 1))
  echo "$1: not run, $2" | tee -a "$folder/summary.txt"
}
beside=() # tests run beside each other where pytest-xdist is installed
[ ${#quick[@]} = 0 ] && "$python" -c "import xdist" 2>/dev/null || beside=(-o addopts=)

# 1. Whether it is right.
part 30 info "$python" -m bptt_array info
part 90 parity "$python" -m bptt_array parity --device cuda
which=()
[ ${#quick[@]} = 0 ] || which=(tests/test_benchmarks.py -k sets_tf32)
part 300 tests "$python" -m pytest "${beside[@]}" -q -m gpu --maxfail=20 -rfE --durations=5 "${which[@]}"
part 90 kernels "$python" benchmarks/kernels.py --out "$folder" "${quick[@]}"

# 2. How fast.
turns=(--repetitions 3 --seconds 0.05 --threads "$(nproc)") # of the CPU, which gradients are compared with
for tf32 in "" --tf32; do
  for cell in tanh lstm gru; do
    part 75 "bench-$cell${tf32#-}" "$python" benchmarks/gpu.py --cell $cell $tf32 --out "$folder" "${turns[@]}" "${quick[@]}"
  done
done

# 3. What no emulation shows: races of a real memory, reads outside of arrays, barriers that not all threads come to.
for tool in racecheck memcheck synccheck; do
  if command -v compute-sanitizer >/dev/null; then
    part 75 $tool compute-sanitizer --tool $tool --error-exitcode 9 --kernel-regex 'kns=ward' \
      "$python" benchmarks/kernels.py --out "$folder/sanitized" "${quick[@]}"
  else
    without $tool "compute-sanitizer is not installed"
  fi
done

# 4. The number that the planner of kernels guesses.
part 45 exchange "$python" benchmarks/exchange.py --out "$folder" "${quick[@]}"

# 5. A whole run, and what its heaviest kernels wait for.
short=()
[ ${#quick[@]} = 0 ] || short=(--steps 2 --hidden 16 --batch 2 --seq-len 4 --eval-every 2 --validation 0.001)
part 90 train "$python" -m bptt_array train --device cuda --out "$folder/run" "${short[@]}"
if command -v ncu >/dev/null; then
  part 90 ncu ncu --set full --kernel-name 'regex:^(forward|backward)$' --launch-count 4 --force-overwrite \
    --export "$folder/heavy" "$python" benchmarks/kernels.py --list heavy --out "$folder/profiled" "${quick[@]}"
else
  without ncu "ncu is not installed"
fi

echo
cat "$folder/summary.txt"
! grep -qE ': (failed|ended)' "$folder/summary.txt"
