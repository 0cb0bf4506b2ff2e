#!/usr/bin/env bash
# The GPU rows of the generation benchmark: full-size architecture, random weights (time and equality, not pictures).
#
#   bash scripts/benchmark_generation_gpu.sh [FOLDER]       rows go to FOLDER (benchmark_results_gpu)
#   DRY_RUN=1 bash scripts/benchmark_generation_gpu.sh      the same calls in miniature on the CPU: figures mean nothing
#
# What the CSV has is skipped: run it again to go on after an interruption. PYTHON names another interpreter.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
target=(--device cuda model=published output_dir="${1:-benchmark_results_gpu}")
[ -z "${DRY_RUN:-}" ] || target=(--device cpu output_dir="${1:-benchmark_results_dry_run}")
failed=0

bench() {
    local keys=("$@")
    if [ -n "${DRY_RUN:-}" ]; then
        mapfile -t keys < <(printf '%s\n' "$@" | grep -vE '^(height|width|num_images|baseline_images|compile|profile)=')
        keys+=(num_images=2 baseline_images=1 num_inference_steps=1 measure_memory=false)
    fi
    "$python" -m scripts.benchmark_generation "${target[@]}" skip_done=true "${keys[@]}" || failed=$((failed + 1))
}

small=(height=256 width=256 num_images=32 baseline_images=8)
large=(height=576 width=1024 num_images=8 baseline_images=2)
square=(height=320 width=320 min_guidance_scale=2.0 max_guidance_scale=2.0 num_images=32 batch_size=8 decode_chunk_size=8)

for compile in max default none; do bench "${small[@]}" batch_size=16 compile=$compile profile=true; done
bench "${large[@]}" batch_size=4 compile=max profile=true
bench "${large[@]}" batch_size=4 compile=max baseline=compiled
bench "${square[@]}" compile=max baseline=paper baseline_images=2
for batch_size in 1 4 8 32; do bench "${small[@]}" batch_size=$batch_size compile=max; done
for batch_size in 1 2 8; do bench "${large[@]}" batch_size=$batch_size; done
bench "${large[@]}" batch_size=1 offload=phases
bench "${small[@]}" batch_size=16 compile=max dtype=bfloat16
bench "${small[@]}" batch_size=16 compile=max dtype=float32
[ "$failed" = 0 ] || { echo "$failed calls failed; their sentences are above" >&2; exit 1; }
