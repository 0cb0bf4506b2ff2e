"""Images in, drafts out, chunk by chunk: the next chunk is read while this one is generated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from Data_Augmentation_SVD.clip_writer import ClipTask, ClipWriter
from Data_Augmentation_SVD.generation_stats import SessionStats
from Data_Augmentation_SVD.generators import ClipError, ClipGenerator, is_fatal
from Data_Augmentation_SVD.tiny_imagenet_aug import TinyImageNetAug
from utils.errors import StopRequest
from utils.images import ImageError

log = logging.getLogger(__name__)
_Loaded = tuple[ClipTask, np.ndarray]


@dataclass(frozen=True)
class Chunk:
    """Some images on their way to a generator.

    Attributes:
        unreadable: with their reasons.
        loaded: tasks with their images.
        prepared: what the generator made of the loaded ones, or the error that it raised.
    """

    unreadable: list[tuple[ClipTask, str]]
    loaded: list[_Loaded]
    prepared: Any


def generate_chunks(
    todo: list[ClipTask],
    images: TinyImageNetAug,
    generator: ClipGenerator,
    writer: ClipWriter,
    chunk_size: int,
    stats: SessionStats,
    stop: StopRequest,
) -> Iterator[None]:
    """Generate all tasks and hand the drafts to the writer; yields once a clip. Asked to stop, it ends early."""
    chunks = [todo[start : start + chunk_size] for start in range(0, len(todo), chunk_size)]
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as loader:
        upcoming = [loader.submit(_load, tasks, images, generator) for tasks in chunks[:1]]
        for following in [*chunks[1:], None]:
            if stop.is_set or not upcoming:
                return
            chunk = upcoming.pop().result()
            if following is not None:
                upcoming.append(loader.submit(_load, following, images, generator))
            with stats.chunk() as count_clip:
                for _ in _generate_chunk(chunk, generator, writer, stop):
                    count_clip()
                    yield


def _generate_chunk(chunk: Chunk, generator: ClipGenerator, writer: ClipWriter, stop: StopRequest) -> Iterator[None]:
    for task, reason in chunk.unreadable:
        writer.put_failed(task, reason)
        yield
    for (task, image), draft in _drafts(generator, chunk, lambda: stop.is_set):
        writer.put(task, image, draft)
        yield


def _load(tasks: list[ClipTask], images: TinyImageNetAug, generator: ClipGenerator) -> Chunk:
    unreadable: list[tuple[ClipTask, str]] = []
    loaded: list[_Loaded] = []
    for task in tasks:
        try:
            loaded.append((task, images[task.position]))
        except (ImageError, FileNotFoundError) as error:  # damaged, or gone since the run began
            unreadable.append((task, str(error)))
    try:
        return Chunk(unreadable, loaded, _prepare(generator, loaded))
    except Exception as error:
        if is_fatal(error):
            raise
        return Chunk(unreadable, loaded, error)


def _prepare(generator: ClipGenerator, loaded: list[_Loaded]) -> Any:
    return generator.prepare([image for _, image in loaded], [task.seed for task, _ in loaded]) if loaded else None


def _drafts(generator: ClipGenerator, chunk: Chunk, should_stop: Callable[[], bool]) -> Iterator[tuple[_Loaded, Any]]:
    """A draft for every image; an error in a batch is laid at the door of the image that causes it."""
    if not chunk.loaded:
        return
    num_done = 0
    try:
        if isinstance(chunk.prepared, Exception):
            raise chunk.prepared
        for draft in generator.generate(chunk.prepared, should_stop):
            yield chunk.loaded[num_done], draft
            num_done += 1
        if num_done == len(chunk.loaded) or should_stop():
            return
        raise RuntimeError(f"{num_done} drafts for {len(chunk.loaded)} images")
    except Exception as error:
        if is_fatal(error):
            raise
        log.warning("a batch failed (%s: %s); its images are tried one by one", type(error).__name__, error)
    yield from _drafts_one_by_one(generator, chunk.loaded[num_done:], should_stop)


def _drafts_one_by_one(
    generator: ClipGenerator, items: list[_Loaded], should_stop: Callable[[], bool]
) -> Iterator[tuple[_Loaded, Any]]:
    failed_before: Exception | None = None
    for item in items:
        if should_stop():
            return
        try:
            draft = next(iter(generator.generate(_prepare(generator, [item]), lambda: False)))
            failed_before = None
        except ClipError as error:
            draft, failed_before = error, None
        except Exception as error:
            # Two in a row for the same reason: the images are not to blame.
            if is_fatal(error) or type(error) is type(failed_before):
                raise
            log.warning("%s failed", item[0].source.source_path, exc_info=True)
            draft, failed_before = ClipError(f"{type(error).__name__}: {error}"), error
        yield item, draft
