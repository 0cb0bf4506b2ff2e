"""Weights that torchvision publishes: fetched once into torch's hub folder, and known to be the file that was meant."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError

import torch

from utils.checkpoints import read_weights
from utils.errors import InputError
from utils.files import sha256_file
from utils.tensor_files import StateDict


def read_published_weights(url: str, setting: str) -> StateDict:
    """The state dict behind one of torchvision's URLs, from torch's hub folder or fetched into it.

    Args:
        url: ends in the file's name, which holds the first digits of its SHA-256, e.g. `.../vgg11_bn-6002323d.pth`.
        setting: what asked for it, e.g. `weights: imagenet`.

    Raises:
        InputError: it cannot be fetched, with where to put it by hand; or its SHA-256 differs.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=sys.stderr.isatty())
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(
                f"{setting} cannot be fetched ({error}); download {url} on a machine with network and "
                f"save it as {target}, or set weights: none"
            ) from None
    if not sha256_file(target).startswith(target.stem.rsplit("-", 1)[-1]):
        raise InputError(f"{target}: is not the file that {url} names (SHA-256 differs); remove it and fetch it again")
    return read_weights(target)[0]
