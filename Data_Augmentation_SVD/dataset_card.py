"""The page that lies beside generated clips: what they are, how they were made, and what their index says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from Data_Augmentation_SVD.split_files import iterate_index_rows
from utils.artifacts import STATUS_OK
from utils.config import dump_yaml, read_yaml
from utils.files import write_text
from utils.runs import read_environment

CARD_FILE = "README.md"
_MARKER = "<!-- dataset card of Data_Augmentation_SVD: rewritten by the stage -->"
# Also the text of the page in the repository, which a first run replaces; a test compares them.
SCHEMA = """**Index schema** (CSV, UTF-8, one header row). The published index has the first two columns; both are read.

| column | meaning |
|---|---|
| `video_path` | file name, relative to the split's folder (`train/` or `val/`); sub-folders above 10,000 clips |
| `label` | class, 0 to n-1 |
| `class_name`, `wnid` | the class's name and WordNet id (or folder name) |
| `source_path`, `source_sha256` | the still image, relative to its own index; its SHA-256, which pairs all results |
| `sha256` | of the clip; checked before training and evaluation |
| `generator`, `seed` | what made it, and from which seed |
| `num_frames`, `height`, `width` | of the saved clip, in frames and pixels |
| `kept_frames` | positions of the saved frames among the generated ones, from 0 |
| `visible_fraction` | share of the source's area that the frames show; the rest was cropped away |
| `clip_number`, `attempt` | which of the image's clips, from 0; how many of it were rejected before |
| `status` | `ok`; `failed` (its image cannot be read); `quarantined` (a bad clip, kept in `quarantine/`) |
| `reason` | why it is not `ok`; only `ok` rows are loaded |

While clips are being made, finished rows stand in `train.journal.csv`; the index replaces it when all are made.
"""


def write_dataset_card(output_dir: Path) -> None:
    """Write the card, from the files of the run alone: the same data set gives the same page, which is left as it is.

    A page of someone else's is left alone.
    """
    card_path = output_dir / CARD_FILE
    if card_path.exists() and not card_path.read_text(encoding="utf-8", errors="replace").startswith(_MARKER):
        card_path = output_dir / "DATASET_CARD.md"
    card = format_card(output_dir)
    if not card_path.exists() or card_path.read_bytes() != card.encode():
        write_text(card_path, card)


def format_card(output_dir: Path) -> str:
    """The card's text."""
    settings = read_yaml(output_dir / "config.yaml")
    environment = read_environment(output_dir / "environment.json")
    parts = [
        _MARKER,
        "# Pseudo-video clips\n",
        _describe(settings, environment),
        "## Clips\n",
        _format_counts(output_dir),
        SCHEMA,
        "## How they were made\n",
        "Rates, memory and the codec's round trip are in `generation_stats.json`; versions and input hashes in "
        "`environment.json`.\n",
        f"```yaml\n{dump_yaml(_relevant(settings))}```",
    ]
    return "\n".join(parts) + "\n"


def _describe(settings: dict[str, Any], environment: dict[str, Any]) -> str:
    frames, size = settings["num_frames"], settings["frame_size"]
    native, geometry = settings["native_frames"] or frames, settings["geometry"]
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    device = environment.get("device", {})
    lines = [
        f"{frames} frames of {size} x {size} pixels a clip, {settings['codec']} at {settings['output_fps']} fps, "
        f"{settings['clips_per_image']} an image, made by `{settings['generator']}` at "
        f"{geometry['height']} x {geometry['width']} (fit: {geometry['fit']}, output: {geometry['output']}); "
        f"{frames} of {native} generated frames kept; first frame {settings['first_frame']}; seed {settings['seed']}."
    ]
    if settings["generator"] == "svd":
        commit = device.get("model_commit") or settings["model_revision"] or "a local folder"
        lines.append(
            f"Weights: {settings['diffusion_model']} ({commit}), {device.get('dtype', 'unknown type')}. Clips of SVD's "
            "published weights are subject to their licence."
        )
    lines.append(f"Device: {device.get('name', 'CPU')}. Versions: {versions or 'unknown'}.\n")
    return "\n\n".join(lines)


def _format_counts(output_dir: Path) -> str:
    lines = ["| split | class | ok | not ok |", "|---|---|---|---|"]
    reasons: Counter[str] = Counter()
    for split in ("train", "val"):
        names: dict[int, str] = {}
        good, bad = Counter(), Counter()
        for row in iterate_index_rows(output_dir / f"{split}.csv"):
            names[row["label"]] = row["class_name"]
            is_good = row["status"] == STATUS_OK
            (good if is_good else bad)[row["label"]] += 1
            if not is_good:
                reasons[_kind_of(row["reason"])] += 1
        lines += [f"| {split} | {name} | {good[k]} | {bad[k]} |" for k, name in sorted(names.items())]
        lines += [f"| {split} | all | {good.total()} | {bad.total()} |"] if names else []
    lines += ["", *(f"- {count} not ok: {reason}" for reason, count in reasons.most_common(10))]
    return "\n".join(lines) + "\n"


def _kind_of(reason: str) -> str:
    """A reason without its figures, so that equal faults count together."""
    return reason.partition(":")[0]


def _relevant(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what says only where files lie."""
    where = ("data_root", "wnids_file", "output_dir", "splits", "shard", "retry_failed", "max_failed_fraction")
    other = {"svd": "svd", "camera_motion": "camera_motion"}
    unused = tuple(name for kind, name in other.items() if kind != settings["generator"])
    return {name: value for name, value in settings.items() if name not in where + unused}
