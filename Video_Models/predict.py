"""Name the classes of videos with a trained network.

python -m Video_Models.predict --checkpoint runs/video/model_best.safetensors VIDEO_OR_FOLDER... [--format csv ...]

The checkpoint says which frames the network sees, at which size, and which classes there are. There is no YAML, because
there is no experiment to describe. Exit codes: 0 done, 1 some videos failed (the output says which and why) or some
overlays (the log does), 2 bad input.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from Data_Sourcing.video_set import VIDEO_SUFFIXES, find_videos
from utils.errors import InputError, run_script
from utils.files import partial_path, write_text

if TYPE_CHECKING:
    from Video_Models.predictor import Prediction

EXIT_SOME_FAILED = 1
FORMATS = ("table", "csv", "json")
_DEVICE = r"auto|cpu|cuda(:\d{1,2})?|mps"
_ENDINGS = ", ".join(sorted(VIDEO_SUFFIXES))
log = logging.getLogger(__name__)


def main() -> None:
    """Find the videos, predict, write; the imports of torch wait until the arguments are known to be good."""
    arguments = _parse_arguments()
    videos = collect_videos(arguments.videos, arguments.list)
    inputs = [path for path in (*videos, arguments.list, arguments.checkpoint) if path is not None]
    overlays = plan_overlays(videos, arguments.overlay) if arguments.overlay else {}
    require_no_input("--output", [arguments.output] if arguments.output else [], inputs)
    require_no_input("--overlay", list(overlays.values()), inputs)
    from utils.runs import configure_logging
    from Video_Models.prediction_output import format_predictions
    from Video_Models.predictor import Predictor

    configure_logging()
    options = {name: getattr(arguments, name) for name in ("device", "precision", "batch_size")}
    predictions = Predictor(arguments.checkpoint, **options).predict(videos)
    _write(format_predictions(predictions, _choose_format(arguments), arguments.top), arguments.output)
    num_without_overlay = _write_overlays(predictions, overlays)
    if num_failed := len({one.path for one in predictions if one.status != "ok"}):
        log.warning("%d of %d videos failed; the output says why", num_failed, len(videos))
    if num_failed or num_without_overlay:
        sys.exit(EXIT_SOME_FAILED)


def predict_video(
    path: str | Path, checkpoint: str | Path | None = None, *, task: str | None = None
) -> tuple[int, float]:
    """As `Video_Models.predictor.predict_video`: (label, confidence) of one video."""
    from Video_Models import predictor

    return predictor.predict_video(path, checkpoint, task=task)


def collect_videos(given: Sequence[Path], list_path: Path | None) -> list[Path]:
    """The videos of files, folders and a list, each once, in this order; those of a folder sorted.

    Args:
        list_path: a text file with a file or folder a line, as they would stand on the command line; blank lines and
            those that begin with `#` do not count.

    Raises:
        InputError: a path that does not exist, a folder without videos, or no video at all.
    """
    places = [(path, "") for path in given]
    if list_path is not None:
        places += _read_list(list_path)
    videos = list(dict.fromkeys(video for path, where in places for video in _videos_at(path, where)))
    if not videos and list_path is not None:
        raise InputError(f"--list: {list_path} names no video; write a file or folder a line")
    if not videos:
        raise InputError("no video is given; name files or folders, or a text file with --list")
    return videos


def plan_overlays(videos: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the overlays go: `<name>_predicted.mp4`, of the second video of a name `<name>_2_predicted.mp4`."""
    planned: dict[Path, Path] = {}
    taken: set[Path] = set()
    for video in videos:
        target, number = folder / f"{video.stem}_predicted.mp4", 1
        while target in taken:
            number += 1
            target = folder / f"{video.stem}_{number}_predicted.mp4"
        taken.add(target)
        planned[video] = target
    return planned


def require_no_input(option: str, targets: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuse to write over what is read; links are followed.

    Raises:
        InputError: naming the option and the file.
    """
    sources = {os.path.realpath(path) for path in inputs}  # Path.resolve raises where links form a loop
    for target in targets:
        for written in (target, partial_path(target)):
            if os.path.realpath(written) in sources:
                raise InputError(f"{option}: {written} is one of the files to be read; choose another place")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m Video_Models.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("videos", nargs="*", type=Path, help=f"files, or folders that are searched for {_ENDINGS}")
    parser.add_argument("--checkpoint", type=Path, required=True, help="model_best.safetensors of a network of clips")
    parser.add_argument("--list", type=Path, metavar="FILE", help="text file with a video or folder a line")
    parser.add_argument("--format", choices=FORMATS, help="default: what --output ends in, else table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--top", type=_count, metavar="N", help="most probable classes; default: 1, in JSON all")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="also write MP4s with the answer on every frame")
    parser.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--batch-size", type=_count, default=8, metavar="N", help="videos at a time (default: 8)")
    arguments = parser.parse_intermixed_args()
    _check_paths(arguments.checkpoint, arguments.output, arguments.overlay)
    return arguments


def _check_paths(checkpoint: Path, output: Path | None, overlay: Path | None) -> None:
    """Before anything expensive; `--output a.mp4 b.mp4` must not write text over a video."""
    if checkpoint.is_dir():
        raise InputError(f"--checkpoint: {checkpoint} is a folder; name the file in it, e.g. model_best.safetensors")
    if not checkpoint.is_file():
        raise InputError(f"--checkpoint: there is no checkpoint {checkpoint}; train the model, or correct the path")
    if output is not None and output.suffix.lower() in {*VIDEO_SUFFIXES, ".safetensors"}:
        raise InputError(f"--output: {output} would be text under the name of another kind of file; choose another")
    if output is not None and output.is_dir():
        raise InputError(f"--output: {output} is a folder; name a file")
    if output is not None:
        _require_folder("--output", output.parent)
    if overlay is not None:
        _require_folder("--overlay", overlay)


def _require_folder(option: str, folder: Path) -> None:
    """That it is one, or can be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists() or path == path.parent)
    if not there.is_dir():
        raise InputError(f"{option}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option}: the folder {there} may not be written to; choose another")


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _device(text: str) -> str:
    if not re.fullmatch(_DEVICE, text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N and mps")
    return text


def _choose_format(arguments: argparse.Namespace) -> str:
    named = arguments.output.suffix.lower()[1:] if arguments.output else ""
    return arguments.format or (named if named in FORMATS else "table")


def _read_list(path: Path) -> list[tuple[Path, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"--list: there is no file {path}; correct the path") from None
    except UnicodeDecodeError:
        raise InputError(
            f"--list: {path} is not UTF-8 text; give a list of paths, a video goes without --list"
        ) from None
    numbered = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    return [(Path(line), f"{path} line {number}: ") for number, line in numbered if line and not line.startswith("#")]


def _videos_at(path: Path, where: str) -> list[Path]:
    """A file as it is, whatever its ending; a folder's videos at any depth."""
    if path.is_dir():
        if found := [path / name for name in find_videos(path, path)]:
            return found
        raise InputError(f"{where}{path} has no video; known endings: {_ENDINGS}")
    if not path.exists():
        raise InputError(f"{where}there is no video or folder {path}; correct the path")
    return [path]


def _write(text: str, output: Path | None) -> None:
    if output is None:
        print(text, end="", flush=True)
        return
    write_text(output, text)
    log.info("predictions: %s", output)


def _write_overlays(predictions: Sequence[Prediction], overlays: dict[Path, Path]) -> int:
    """One a video that did not fail, with a line a task; how many could not be written."""
    if not overlays:
        return 0
    from av import FFmpegError

    from Video_Models.overlay import write_overlay
    from Video_Models.prediction_output import caption

    lines: dict[Path, list[str]] = {}
    for one in predictions:
        if one.status == "ok":
            lines.setdefault(one.path, []).append(caption(one))
    num_failed = 0
    for video, of_video in lines.items():
        try:
            write_overlay(video, overlays[video], of_video)
        except (FFmpegError, InputError, OSError, ValueError) as error:  # ValueError: how PyAV refuses a size or a time
            num_failed += 1
            log.error("no overlay %s: %s", overlays[video], getattr(error, "strerror", None) or error)
        else:
            log.info("overlay: %s", overlays[video])
    return num_failed


if __name__ == "__main__":
    run_script(main)
