"""Where SVD's weights come from: a local folder or the model hub; and one clear sentence for each way they can lack."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import IncompleteSnapshotError, RevisionNotFoundError
from safetensors import SafetensorError

from utils.devices import choose_device
from utils.errors import InputError
from utils.files import sha256_bytes
from utils.hub import explain_hub_error, explain_partial_cache, find_cause, first_line, is_hub_id

_KEY = "diffusion_model"
_HALF = ("float16", "bfloat16")
_BLOCK_BYTES, _NUM_BLOCKS = 2**16, 16  # of each file of weights, for the fingerprint
_LOAD_ERRORS = (OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, SafetensorError)


def load_pipeline(diffusion_model: str, device: str, dtype: str, *, revision: str | None = None):
    """Load a `StableVideoDiffusionPipeline` to the CPU, from a local folder or the hub. No foreign code is run.

    Args:
        diffusion_model: a folder in diffusers' format, or a hub id.
        device: where it will run, `auto`, `cpu`, `cuda[:n]` or `mps`; decides what dtype `auto` is.
        dtype: `auto`, `float16`, `bfloat16` or `float32`.
        revision: the hub's branch, tag or commit.

    Returns:
        the pipeline; its attribute `weights_commit` is the hub's commit, None for a local folder.

    Raises:
        InputError: the weights cannot be had, with what to do.
    """
    from diffusers import StableVideoDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    is_cpu = choose_device(device, one_each=True).type == "cpu"
    dtype = ("float32" if is_cpu else "float16") if dtype == "auto" else dtype
    is_local = Path(diffusion_model).is_dir()
    if not is_local and not is_hub_id(diffusion_model):
        raise InputError(
            f"diffusion_model: {diffusion_model!r} is neither a folder nor a hub id (owner/name); correct it"
        )
    folder = Path(diffusion_model) if is_local else _fetch(diffusion_model, revision, dtype)
    try:
        pipeline = StableVideoDiffusionPipeline.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, variant=_variant(folder, dtype)
        )
    except _LOAD_ERRORS as error:
        raise InputError(_explain_load_error(diffusion_model, is_local, error)) from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.weights_commit = None if is_local else folder.name
    return pipeline


def weights_fingerprint(diffusion_model: str) -> str | None:
    """What tells one local checkpoint from another without reading gigabytes: its configs, and samples of its weights.

    The same checkpoint in another folder has the same fingerprint; one that was trained further, with all sizes as they
    were, has another. None for what is no folder; the hub's weights are told by their revision.
    """
    folder = Path(diffusion_model)
    if not folder.is_dir():
        return None
    files = sorted([*folder.glob("*.json"), *folder.glob("[!.]*/*.json"), *_weight_files(folder)])
    parts = [f"{path.relative_to(folder).as_posix()} {_sampled_sha256(path)}" for path in files]
    return sha256_bytes("\n".join(parts).encode())


def _weight_files(folder: Path) -> list[Path]:
    return [path for suffix in ("safetensors", "bin") for path in folder.glob(f"[!.]*/*.{suffix}")]


def _sampled_sha256(path: Path) -> str:
    """Of a file's size and of blocks at equal distances, first and last included; of all of a small file."""
    size = path.stat().st_size
    last = max(0, size - _BLOCK_BYTES)
    with path.open("rb") as file:
        blocks = [_read_at(file, last * number // (_NUM_BLOCKS - 1)) for number in range(_NUM_BLOCKS)]
    return sha256_bytes(b"".join([str(size).encode(), *blocks]))


def _read_at(file: BinaryIO, offset: int) -> bytes:
    file.seek(offset)
    return file.read(_BLOCK_BYTES)


def _fetch(model_id: str, revision: str | None, dtype: str) -> Path:
    """The folder of the hub's files in the local cache: the weights of the type's precision, or else the other ones."""
    common = ["model_index.json", "*/*.json"]
    half = {"allow_patterns": [*common, "*/*.fp16.safetensors"]}
    # One level down: the checkpoint of other tools at the top of the repository is 9 GB that nobody reads.
    full = {"allow_patterns": [*common, "*/model.safetensors", "*/diffusion_pytorch_model*.safetensors"]}
    full["ignore_patterns"] = ["*.fp16.safetensors"]
    incomplete = None
    for is_half, patterns in ((True, half), (False, full)) if dtype in _HALF else ((False, full), (True, half)):
        try:
            folder = Path(snapshot_download(model_id, revision=revision, **patterns))
        except IncompleteSnapshotError as error:  # without network the cache may hold the other ones
            incomplete = incomplete or error
        except Exception as error:  # the hub's client raises its own, the network library's and the system's types
            raise InputError(_explain_hub_error(model_id, revision, error)) from error
        else:
            if _has_unet(folder, is_half=is_half):
                return folder
    if incomplete is not None:
        raise InputError(_explain_hub_error(model_id, revision, incomplete)) from incomplete
    detail = "unet/ has no weights; if the hub has none either, this is no SVD checkpoint in diffusers' format"
    raise InputError(explain_partial_cache(_KEY, model_id, detail))


def _variant(folder: Path, dtype: str) -> str | None:
    """`fp16` where the folder's half-precision files are to be taken: asked for, or all there is."""
    has_half, has_full = _has_unet(folder, is_half=True), _has_unet(folder, is_half=False)
    return "fp16" if has_half and (dtype in _HALF or not has_full) else None


def _has_unet(folder: Path, *, is_half: bool) -> bool:
    return any((".fp16" in path.name) == is_half for path in folder.glob("unet/*.safetensors"))


def _explain_load_error(diffusion_model: str, is_local: bool, error: Exception) -> str:
    if is_local:
        return (
            f"{_KEY}: {diffusion_model} is not a complete SVD checkpoint in diffusers' format ({first_line(error)}); "
            "fetch or copy it again"
        )
    return explain_partial_cache(_KEY, diffusion_model, first_line(error))


def _explain_hub_error(model_id: str, revision: str | None, error: Exception) -> str:
    if find_cause(error, RevisionNotFoundError):
        return f"model_revision: {model_id} has no revision {revision!r}; use a branch, tag or commit that exists"
    return explain_hub_error(_KEY, model_id, error, size="about 5 GB in half precision, 9 GB in float32")
