#!/usr/bin/env bash
# Run all five stages on the embedded digits, offline, on the CPU: from images to tables and figures.
#
#   bash scripts/quickstart.sh [OUT]        (default: quickstart_out)
#
# After set-up 3 to 4 minutes on 2 CPU cores. Run it again after an interruption: finished stages are not redone.
set -euo pipefail
if [ $# -gt 1 ]; then
    echo "error: too many arguments; use: bash scripts/quickstart.sh [OUT]" >&2
    exit 2
fi
case "${1:-quickstart_out}" in
    -*) echo "error: unknown option '$1'; use: bash scripts/quickstart.sh [OUT]" >&2; exit 2 ;;
    /*) out=$1 ;;
    *) out=$PWD/${1:-quickstart_out} ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export HF_HUB_OFFLINE=1   # nothing here needs a network, and nothing may wait for one

started=$SECONDS
stage() {
    local title=$1
    shift
    printf '\n== %s\n$ python' "$title"
    printf ' %q' "$@"
    printf '\n'
    .venv/bin/python "$@"
}

stage "0/5 demo data: scikit-learn's digits in the raw Tiny ImageNet layout" \
    -m Data_Sourcing.demo_dataset --config Data_Sourcing/demo_dataset.yaml "output_dir=$out/raw"
stage "1/5 Data_Sourcing: train images of the chosen classes" \
    -m Data_Sourcing.filter --config Data_Sourcing/demo.yaml "raw_root=$out/raw" "output_dir=$out/images"
stage "1/5 Data_Sourcing: val images" \
    -m Data_Sourcing.val --config Data_Sourcing/demo.yaml "raw_root=$out/raw" "output_dir=$out/images"
stage "2/5 Data_Augmentation_SVD: a clip of every image" \
    -m Data_Augmentation_SVD.make_svd_videos --config Data_Augmentation_SVD/demo.yaml \
    "data_root=$out/images" "output_dir=$out/videos"
stage "3/5 Baseline_VGG: the 2-D network" \
    -m Baseline_VGG.train --config Baseline_VGG/demo.yaml "data_root=$out/images" "output_dir=$out/baseline"
stage "4/5 Inflated_3D_VGG: the 3-D network, from the 2-D one" \
    -m Inflated_3D_VGG.train3d --config Inflated_3D_VGG/demo.yaml "data_root=$out/videos" \
    "weights=$out/baseline/model_best.safetensors" "output_dir=$out/inflated"
stage "5/5 Model_Evaluation: each network on the input it was trained for, and the 2-D one on first frames" \
    -m Model_Evaluation.evaluate --config Model_Evaluation/demo.yaml \
    "models.0.checkpoint=$out/baseline/model_best.safetensors" \
    "models.1.checkpoint=$out/baseline/model_best.safetensors" \
    "models.2.checkpoint=$out/inflated/model_best.safetensors" \
    "data.root=$out/videos" "data.images_root=$out/images" "output_dir=$out/evaluation"
printf '\ndone in %d s\n' "$((SECONDS - started))"
