#!/usr/bin/env bash
# Builds, checks and times the CUDA backend on a machine with a Hopper GPU, and prints one table last:
#
#     scripts/gpu/run.sh [PART...]        build test sanitize kernels steps prefill start traffic deterministic logits; all where none is named
#
# Needs CUDA 13, CMake and a C++ compiler; for all from `steps` on Python with torch, safetensors and transformers, which write
# checkpoints of published shapes with random weights into a folder in memory (BUILD and MODELS name others). No network, no Node.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${BUILD:-engine/build/gpu} models=${MODELS:-/dev/shm/millrace} out=${OUT:-engine/build/gpu-results}
parts=("$@")
if [ ${#parts[@]} -eq 0 ]; then parts=(build test sanitize kernels steps prefill start traffic deterministic logits); fi
mkdir -p "$out" "$models"
table=$out/table.txt
: >"$table"
blas=$(find / -path /proc -prune -o -name libcublasLt.so.13 -print -quit 2>/dev/null || true)
if [ -n "$blas" ]; then export LD_LIBRARY_PATH=$(dirname "$blas")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}; fi

tell() { tee -a "$table"; }
# Runs one program within a minute or more; its failure is told in the table and ends nothing.
try() {
  local seconds=$1 name=$2
  shift 2
  if ! timeout "$seconds" "$@" >"$out/$name.log" 2>&1; then echo "$name: FAILED ($?): $(tail -3 "$out/$name.log" | tr '\n' ' ')" | tell; fi
}
model() { # writes the checkpoint of a shape unless it is there
  if [ ! -f "$models/$1/model.safetensors" ]; then python3 scripts/gpu/make-model.py "$1" "$models/$1" >"$out/make-$1.log" 2>&1; fi
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader | tell
for part in "${parts[@]}"; do
  case $part in
    build)
      cmake -S engine -B "$build" -G Ninja -DMILLRACE_CUDA=ON >"$out/build.log" 2>&1
      cmake --build "$build" --target engine_tests bench_cuda_engine bench_cuda_traffic bench_cuda_deterministic bench_cuda_matmul_stream bench_cuda_layers bench_cuda_attend bench_cuda_sample >>"$out/build.log" 2>&1
      ;;
    test)
      for test in pages vectors heads kv_scales matmul_stream matmul_wide layers q4 attend sample golden; do
        try 180 "test_$test" "$build/test/test_cuda_$test"
        echo "test_cuda_$test: $(tail -1 "$out/test_$test.log")" | tell
      done
      # What holds of the engine on a CPU holds of it here.
      for test in engine continued crowd; do
        MILLRACE_TEST_KERNELS=hopper try 240 "test_$test" "$build/test/test_$test"
        echo "test_$test on the GPU: $(tail -1 "$out/test_$test.log")" | tell
      done
      ;;
    sanitize)
      for tool in memcheck racecheck; do
        for test in "vectors" "heads" "kv_scales" "q4" "matmul_stream:small matrices are right for any number of tokens, stored and added, with and without bias" \
          "matmul_wide:small matrices are right for any number of tokens, stored and added, with and without bias" \
          "layers:windows, caps, sinks, biases and norms of heads are the same in one kernel" \
          "golden:features switched off show on the GPU too"; do
          name=${test%%:*} title=${test#*:}
          # It does not follow counters in device memory, by which that kernel's blocks wait.
          if [ "$tool-$name" = racecheck-layers ]; then continue; fi
          arguments=()
          if [ "$name" != "$title" ]; then arguments=("$title"); fi
          try 120 "$tool-$name" compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/test/test_cuda_$name" "${arguments[@]}"
          echo "$tool of test_cuda_$name: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$tool-$name.log" | tail -1)" | tell
        done
      done
      ;;
    kernels)
      for bench in "layers" "matmul_stream layers" "matmul_stream matrices" "attend 512" "attend 512 table" "sample"; do
        read -ra words <<<"$bench"
        try 120 "bench_${bench// /_}" "$build/bench_cuda_${words[0]}" "${words[@]:1}"
        tell <"$out/bench_${bench// /_}.log"
      done
      ;;
    steps | prefill)
      for shape in llama-3.2-1b llama-3.1-8b; do
        model "$shape"
        for precision in stored fp8 fp8-kv8 deterministic; do
          if [ "$precision" = deterministic ] && [ "$part $shape" != "steps llama-3.1-8b" ]; then continue; fi
          try 240 "$part-$shape-$precision" "$build/bench_cuda_engine" "$models/$shape" "$part" "$precision"
          sed -n "s/^$part:/$shape $precision:/p" "$out/$part-$shape-$precision.log" | tell
        done
      done
      if [ ! -f "$models/8b-q4_0.gguf" ]; then python3 scripts/gpu/make-gguf.py llama-3.1-8b q4_0 "$models/8b-q4_0.gguf" >"$out/make-8b-q4_0.log" 2>&1; fi
      try 240 "$part-8b-q4_0" "$build/bench_cuda_engine" "$models/8b-q4_0.gguf" "$part" stored
      sed -n "s/^$part:/llama-3.1-8b Q4_0:/p" "$out/$part-8b-q4_0.log" | tell
      ;;
    start)
      # Twice: the first run may read the checkpoint from a disk, the second has it in memory.
      model llama-3.1-8b
      for time in first second; do
        try 120 "start-$time" "$build/bench_cuda_engine" "$models/llama-3.1-8b" start stored
        sed -nE "s/^(start:|# (weights: .* read|loaded in))/llama-3.1-8b, $time start: \2/p" "$out/start-$time.log" | tell
      done
      ;;
    traffic)
      model llama-3.1-8b
      for load in "interference fp8" "crowd fp8-kv8" "prefixes fp8-kv8"; do
        read -r what precision <<<"$load"
        try 240 "$what" "$build/bench_cuda_traffic" "$models/llama-3.1-8b" "$what" "$precision"
        sed -n "s/^$what:/$what, llama-3.1-8b $precision:/p" "$out/$what.log" | tell
      done
      ;;
    deterministic)
      model llama-3.1-8b
      for precision in deterministic deterministic-kv8; do
        try 480 "$precision" "$build/bench_cuda_deterministic" "$models/llama-3.1-8b" "$precision"
        sed -n "s/^deterministic:/bits, llama-3.1-8b $precision:/p" "$out/$precision.log" | tell
      done
      ;;
    logits)
      model llama-3.1-8b-4-layers
      for precision in stored fp8; do
        try 120 "logits-$precision" "$build/bench_cuda_engine" "$models/llama-3.1-8b-4-layers" logits "$precision" 512 "$out/logits.bin"
        try 120 "compare-$precision" python3 scripts/gpu/compare-logits.py "$models/llama-3.1-8b-4-layers" "$out/logits.bin"
        sed "s/^/8B's shape, 4 layers, $precision: /" "$out/compare-$precision.log" | grep relative | tell
      done
      rm -f "$out/logits.bin"
      ;;
    *)
      echo "no part is called $part: build test sanitize kernels steps prefill start traffic deterministic logits" >&2
      exit 2
      ;;
  esac
done
echo
cat "$table"
