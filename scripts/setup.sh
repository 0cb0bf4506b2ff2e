#!/usr/bin/env bash
# Make .venv from requirements.txt (with --dev: from requirements-dev.txt) and check that the packages fit together.
#
#   bash scripts/setup.sh [--dev]
#
# PYTHON chooses the interpreter (default: python3; 3.11 or newer). Does nothing when the environment is in place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

requirements=requirements.txt
case "${1:-}" in
    "") ;;
    --dev) requirements=requirements-dev.txt ;;
    *) echo "error: unknown option '$1'; use: bash scripts/setup.sh [--dev]" >&2; exit 2 ;;
esac

python=${PYTHON:-python3}
fingerprint=$(cat requirements.txt "$requirements" | cksum)
stamp=.venv/.requirements
# A development environment serves for everything: either stamp will do for the plain one.
if [ -x .venv/bin/python ] && { [ "$(cat "$stamp.$requirements" 2>/dev/null)" = "$fingerprint" ] ||
    { [ "$requirements" = requirements.txt ] && [ "$(cat "$stamp.requirements-dev.txt" 2>/dev/null)" = "$(cat requirements.txt requirements-dev.txt | cksum)" ]; }; }; then
    exit 0
fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is not Python 3.11 or newer; install one and name it: PYTHON=python3.12 bash scripts/setup.sh" >&2
    exit 2
fi
echo "setting up .venv from $requirements (about 6 GB with PyTorch's CUDA libraries; minutes, once)"
if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
    echo "error: '$python -m venv' failed; install the venv module of this Python (Debian: python3-venv)" >&2
    exit 2
fi
if ! .venv/bin/python -c 'import os, sys; sys.exit(os.path.realpath(sys.prefix) != os.path.realpath(".venv"))'; then
    echo "error: .venv is not a virtual environment of its own; remove it and run scripts/setup.sh again" >&2
    exit 2
fi
if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"; then
    echo "error: pip could not install $requirements; see its message above (network, disk space, Python version)" >&2
    exit 2
fi

# Import what breaks when a pair does not fit, and say so in one sentence.
smoke_import() {
    if ! message=$(HF_HUB_OFFLINE=1 .venv/bin/python -W ignore -c "$2" 2>&1); then
        echo "error: $1 cannot be imported ($(tail -n 1 <<<"$message")); remove .venv and run scripts/setup.sh again" >&2
        exit 2
    fi
}
smoke_import "torch" "import torch; torch.zeros(1)"
smoke_import "the pair torch and torchvision" "import torchvision; from torchvision.ops import nms"
smoke_import "av (PyAV)" "import av; av.codec.Codec('libx264', 'w')"
smoke_import "the SVD pipeline (diffusers and transformers)" "from diffusers import StableVideoDiffusionPipeline"
echo "$fingerprint" > "$stamp.$requirements"
echo "ready: .venv ($(.venv/bin/python --version))"
