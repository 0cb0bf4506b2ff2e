"""A checkpoint survives kills, full disks and signals at every write, and no other file is ever taken for it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KILLED, run_in_child
from samples import description_of

from utils.checkpoints import read_description, read_weights
from utils.errors import InputError
from utils.indices import ClassInfo
from utils.tensor_files import read_training_state, write_training_state
from utils.training_state import load_checkpoint, save_checkpoint

STATE, BEST, SIDECAR = "last.pt", "model_best.safetensors", "checkpoint.json"
DESCRIPTION = description_of(
    "baseline", {"classifier_width": 8}, [ClassInfo(0, "zero", "c0")], {"kind": "image", "image_size": 32}
)


def weights_of(number: int) -> dict[str, torch.Tensor]:
    return {f"layer{i}.weight": torch.full((40, 3), 100.0 * number + i) for i in range(6)}


def state_of(number: int) -> dict:
    """Stands for all that resume needs; every tensor and value tells which save it belongs to."""
    return {
        "model": weights_of(number),
        "optimizer": {"state": {i: {"momentum": torch.full((9,), -float(number))} for i in range(6)}, "lr": 0.1},
        "scaler": {},
        "epoch": number,
        "history": [{"epoch": n, "loss": 0.1, "top3": None} for n in range(number)],
    }


def save(run_dir: Path, number: int, *, is_best: bool = True) -> None:
    best = (weights_of(number), replace(DESCRIPTION, epoch=number)) if is_best else None
    save_checkpoint(run_dir, state_of(number), best)


def same(one: object, other: object) -> bool:
    """Equal to the last bit, tensors included."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def require_one_of(run_dir: Path, *numbers: int) -> None:
    """What stands is one of these checkpoints, whole, its best weights as new as its state; and work goes on."""
    state = load_checkpoint(run_dir)
    assert state["epoch"] in numbers
    assert same(state, state_of(state["epoch"]))
    tensors, described = read_weights(run_dir / BEST)
    assert described.epoch in numbers
    assert described.epoch >= state["epoch"], "a state without its best weights would lose them"
    assert same(tensors, weights_of(described.epoch))
    save(run_dir, 3)
    assert same(load_checkpoint(run_dir), state_of(3))
    assert read_weights(run_dir / BEST)[1].epoch == 3
    assert {path.name for path in run_dir.iterdir()} == {STATE, BEST, SIDECAR}


@pytest.fixture
def run_dir(tmp_path) -> Path:
    save(tmp_path / "run", 1)
    return tmp_path / "run"


# ---------------------------------------------------------------------------------------------------------------------
# Kills, full disks, signals


@contextmanager
def interfering(interfere: Callable[[int, Callable, tuple], object]) -> Iterator[None]:
    """Let `interfere(number, original, arguments)` stand for every call that writes, syncs or renames."""
    places = ((os, "write"), (os, "fsync"), (Path, "write_bytes"), (Path, "replace"))
    originals = [getattr(owner, name) for owner, name in places]
    calls = 0

    def wrap(original: Callable) -> Callable:
        def wrapper(*arguments):
            nonlocal calls
            calls += 1
            return interfere(calls, original, arguments)

        return wrapper

    for (owner, name), original in zip(places, originals, strict=True):
        setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def count_points(folder: Path) -> int:
    """Calls that write, sync or rename in the second save over a first."""
    seen = []
    save(folder, 1)
    with interfering(lambda number, original, arguments: seen.append(number) or original(*arguments)):
        save(folder, 2)
    return len(seen)


def sample_of(points: int, is_exhaustive: bool, count: int) -> list[int]:
    """All points, or some: evenly spread, and the last ones, where files take their names."""
    if is_exhaustive:
        return list(range(1, points + 1))
    spread = np.linspace(1, points - 10, count).round().astype(int).tolist()
    return sorted({*spread, *range(points - 9, points + 1)})


def tear(original: Callable, arguments: tuple) -> None:
    """A write that gets half of its bytes to the disk; nothing of a sync or a rename."""
    if original.__name__ in ("write", "write_bytes"):
        target, content = arguments
        original(target, bytes(content)[: len(content) // 2])


def save_and_die(run_dir: Path, number: int, point: int, torn: bool) -> None:
    def interfere(call: int, original: Callable, arguments: tuple) -> object:
        if call == point:
            if torn:
                tear(original, arguments)
            else:
                original(*arguments)
            os._exit(KILLED)
        return original(*arguments)

    with interfering(interfere):
        save(run_dir, number)


def test_a_kill_at_any_write_leaves_a_checkpoint(tmp_path, is_exhaustive):
    points = count_points(tmp_path / "count")
    assert points >= 50
    for point in sample_of(points, is_exhaustive, 12):
        folder = tmp_path / f"run{point}"
        save(folder, 1)
        assert run_in_child(save_and_die, folder, 2, point, point % 2 == 0) == KILLED
        require_one_of(folder, 1, 2)


def test_a_run_may_be_killed_again_and_again(run_dir, tmp_path, is_exhaustive):
    points = count_points(tmp_path / "count")
    for point in sample_of(points, is_exhaustive, 2):
        assert run_in_child(save_and_die, run_dir, 2, point, False) == KILLED
        assert same(load_checkpoint(run_dir), state_of(load_checkpoint(run_dir)["epoch"]))
    require_one_of(run_dir, 1, 2)


def test_a_kill_in_the_first_save_leaves_none_or_all(tmp_path, is_exhaustive):
    points = count_points(tmp_path / "count")
    for point in sample_of(points, is_exhaustive, 2):
        folder = tmp_path / f"run{point}"
        folder.mkdir()
        assert run_in_child(save_and_die, folder, 1, point, point % 2 == 0) == KILLED
        state = load_checkpoint(folder)
        assert state is None or same(state, state_of(1))
        save(folder, 3)
        assert same(load_checkpoint(folder), state_of(3))


def test_the_last_kill_points_are_those_of_the_names(tmp_path):
    """The protocol, by what a kill right after each of the last ten calls leaves."""
    points = count_points(tmp_path / "count")
    found = []
    for point in range(points - 9, points + 1):
        folder = tmp_path / f"run{point}"
        save(folder, 1)
        run_in_child(save_and_die, folder, 2, point, False)
        listed = {name: len(known) for name, known in json.loads((folder / SIDECAR).read_text())["files"].items()}
        assert listed[STATE] == listed[BEST]
        found.append((load_checkpoint(folder)["epoch"], read_description(folder / BEST).epoch, listed[STATE]))
    # Two syncs and a rename end each sidecar; between them are the two renames, their sync, and a write.
    assert found == [(1, 1, 1), (1, 1, 2), (1, 1, 2), (1, 2, 2), *[(2, 2, 2)] * 4, (2, 2, 1), (2, 2, 1)]


def test_a_full_disk_at_any_write_leaves_a_checkpoint(tmp_path, is_exhaustive):
    points = count_points(tmp_path / "count")
    save(tmp_path / "first", 1)
    for point in sample_of(points, is_exhaustive, 40):
        folder = tmp_path / f"run{point}"
        shutil.copytree(tmp_path / "first", folder)

        def interfere(call: int, original: Callable, arguments: tuple, point: int = point) -> object:
            if call < point:
                return original(*arguments)
            if call == point:
                tear(original, arguments)  # a disk is full in the middle of a write
            named = [str(arguments[0])] if original.__name__ == "replace" else []
            raise OSError(errno.ENOSPC, "No space left on device", *named)

        with pytest.raises(OSError, match="No space left") as caught, interfering(interfere):
            save(folder, 2)
        assert caught.value.errno == errno.ENOSPC
        assert Path(caught.value.filename).name.removesuffix(".partial") in (STATE, BEST, SIDECAR)
        assert Path(caught.value.filename).parent == folder
        assert {path.name for path in folder.iterdir()} == {STATE, BEST, SIDECAR}
        require_one_of(folder, 1, 2)


def test_a_signal_in_any_write_comes_through_as_itself(run_dir, tmp_path):
    """Without help, torch turns what interrupts its writing into an error of its own."""
    points = count_points(tmp_path / "count")
    for point in range(1, points, 7):

        def interfere(call: int, original: Callable, arguments: tuple, point: int = point) -> object:
            if call == point:
                raise KeyboardInterrupt
            return original(*arguments)

        with pytest.raises(KeyboardInterrupt), interfering(interfere):
            save(run_dir, 2)
        assert not list(run_dir.glob("*.partial"))
        assert load_checkpoint(run_dir)["epoch"] in (1, 2)


def test_a_short_write_is_completed(run_dir):
    def interfere(_: int, original: Callable, arguments: tuple) -> object:
        if original.__name__ == "write":
            return original(arguments[0], bytes(arguments[1])[:1000])  # the system may take less than it is given
        return original(*arguments)

    with interfering(interfere):
        save(run_dir, 2)
    require_one_of(run_dir, 2)


def test_what_killed_runs_left_is_removed_by_the_next_save(run_dir):
    for name in (STATE, BEST, SIDECAR, "history.csv"):
        (run_dir / f"{name}.partial").write_text("half")
    assert load_checkpoint(run_dir)["epoch"] == 1
    save(run_dir, 2, is_best=False)
    assert {path.name for path in run_dir.iterdir()} == {STATE, BEST, SIDECAR}


# ---------------------------------------------------------------------------------------------------------------------
# What is saved


def test_no_run_has_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "not there") is None


def test_best_weights_stay_until_there_are_better(run_dir):
    before = (run_dir / BEST).read_bytes()
    save(run_dir, 2, is_best=False)
    assert (run_dir / BEST).read_bytes() == before
    assert same(load_checkpoint(run_dir), state_of(2))


def test_a_run_may_have_no_best_weights_yet(tmp_path):
    save(tmp_path, 1, is_best=False)
    assert same(load_checkpoint(tmp_path), state_of(1))
    assert not (tmp_path / BEST).exists()


def test_the_sidecar_holds_the_hashes_of_both(run_dir):
    files = json.loads((run_dir / SIDECAR).read_text())["files"]
    assert files == {name: [hashlib.sha256((run_dir / name).read_bytes()).hexdigest()] for name in (STATE, BEST)}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.float64(0.5), r"state\['history'\]\[0\] is a numpy.float64"),
        ({1, 2}, r"state\['history'\]\[0\] is a builtins.set"),
        (Path("x"), "PosixPath"),
    ],
    ids=["numpy", "set", "path"],
)
def test_what_could_not_be_read_again_is_not_written(run_dir, value, says):
    with pytest.raises(TypeError, match=says):
        save_checkpoint(run_dir, {"history": [value]}, None)
    assert same(load_checkpoint(run_dir), state_of(1))


def test_the_states_of_real_optimizers_are_plain(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    for optimizer in (torch.optim.SGD(model.parameters(), 0.1, 0.9), torch.optim.AdamW(model.parameters())):
        model(torch.ones(2, 1, 4, 4)).sum().backward()
        optimizer.step()
        save_checkpoint(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, None)
        state = load_checkpoint(tmp_path)
        optimizer.load_state_dict(state["optimizer"])
        assert same(dict(state["model"]), dict(model.state_dict()))


def save_large_state(folder: Path) -> None:
    tensors = {"weight": torch.ones(32 * 1024 * 1024)}  # 128 MiB
    save(folder, 1)  # what the first use of every library takes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save_checkpoint(folder, {"model": tensors}, (tensors, DESCRIPTION))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 32 * 1024, f"{grown_kib} KiB"


def test_a_large_state_is_not_copied_in_memory(tmp_path):
    assert run_in_child(save_large_state, tmp_path) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", [STATE, BEST, SIDECAR])
def test_a_flipped_bit_is_named_and_nothing_is_loaded(run_dir, name):
    path = run_dir / name
    content = path.read_bytes()
    for bit in np.linspace(0, 8 * len(content) - 1, 50).astype(int).tolist():
        flip(path, bit)
        with pytest.raises(InputError, match=f"{name}: (is damaged|was swapped or edited)") as caught:
            load_checkpoint(run_dir)
        assert str(caught.value).endswith("restore it, or pass overwrite=true to train again")
        if name != STATE:
            with pytest.raises(InputError, match=f"{name}: (is damaged|was swapped or edited)"):
                read_weights(run_dir / BEST)
        path.write_bytes(content)
    assert same(load_checkpoint(run_dir), state_of(1))


@pytest.mark.parametrize("name", [STATE, BEST, SIDECAR])
def test_a_cut_file_is_named_and_nothing_is_loaded(run_dir, name):
    content = (run_dir / name).read_bytes()
    for length in np.linspace(0, len(content) - 1, 20).astype(int).tolist():
        (run_dir / name).write_bytes(content[:length])
        with pytest.raises(InputError, match=f"{name}: is damaged"):
            load_checkpoint(run_dir)


@pytest.mark.parametrize("name", [STATE, BEST, SIDECAR])
def test_a_foreign_file_is_named(run_dir, name):
    for content in (b"", b"weights\n", b"{}", b'{"files": 3}', b'["files"]', b"[" * 100_000, b"\xff\xfe", b"PK\3\4"):
        (run_dir / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: is damaged"):
            load_checkpoint(run_dir)


@pytest.mark.parametrize("name", [STATE, BEST])
def test_another_runs_file_is_named_as_swapped(run_dir, tmp_path, name):
    save(tmp_path / "other", 2)
    shutil.copy(tmp_path / "other" / name, run_dir / name)
    with pytest.raises(InputError, match=rf"{name}: was swapped or edited \(it can be read, but checkpoint.json"):
        load_checkpoint(run_dir)


def test_another_runs_best_weights_are_refused_by_those_who_only_read_weights(run_dir, tmp_path):
    save(tmp_path / "other", 2)
    shutil.copy(tmp_path / "other" / BEST, run_dir / BEST)
    with pytest.raises(InputError, match="was swapped or edited"):
        read_weights(run_dir / BEST)
    shutil.copy(run_dir / BEST, tmp_path / "copy.safetensors")
    assert read_weights(tmp_path / "copy.safetensors")[1].epoch == 2, "under another name it is nobody's but its own"


def test_an_older_state_of_the_same_run_is_named_as_swapped(run_dir, tmp_path):
    shutil.copy(run_dir / STATE, tmp_path / "backup")
    save(run_dir, 2)
    shutil.copy(tmp_path / "backup", run_dir / STATE)
    with pytest.raises(InputError, match=r"last\.pt: was swapped or edited"):
        load_checkpoint(run_dir)


def test_another_runs_sidecar_is_refused(run_dir, tmp_path):
    save(tmp_path / "other", 2)
    shutil.copy(tmp_path / "other" / SIDECAR, run_dir / SIDECAR)
    with pytest.raises(InputError, match=r"last\.pt: was swapped or edited"):
        load_checkpoint(run_dir)


def test_best_weights_where_the_run_has_none_yet_are_refused(run_dir, tmp_path):
    save(tmp_path / "new", 1, is_best=False)
    shutil.copy(run_dir / BEST, tmp_path / "new" / BEST)
    with pytest.raises(InputError, match=r"model_best\.safetensors: was swapped"):
        load_checkpoint(tmp_path / "new")


@pytest.mark.parametrize("name", [STATE, BEST])
def test_a_removed_file_is_named(run_dir, name):
    (run_dir / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: was removed, but checkpoint.json records it; restore it, or pass"):
        load_checkpoint(run_dir)


def test_removed_best_weights_are_named_by_those_who_only_read_weights(run_dir):
    (run_dir / BEST).unlink()
    with pytest.raises(InputError, match=r"model_best\.safetensors: was removed"):
        read_weights(run_dir / BEST)


@pytest.mark.parametrize("kept", [STATE, BEST])
def test_a_missing_sidecar_is_named(run_dir, kept):
    for name in {STATE, BEST, SIDECAR} - {kept}:
        (run_dir / name).unlink()
    with pytest.raises(InputError, match=rf"checkpoint\.json: is missing beside {kept}; restore it, or pass"):
        load_checkpoint(run_dir)


def test_a_damaged_sidecar_stops_a_save_before_anything_is_replaced(run_dir):
    before = (run_dir / STATE).read_bytes()
    flip(run_dir / SIDECAR, 400)
    with pytest.raises(InputError, match=r"checkpoint\.json: is damaged"):
        save(run_dir, 2)
    assert (run_dir / STATE).read_bytes() == before
    assert not list(run_dir.glob("*.partial"))


# ---------------------------------------------------------------------------------------------------------------------
# States of one file


def test_a_state_of_one_file_is_whole_or_named(tmp_path):
    path = tmp_path / "state.pt"
    write_training_state(path, state_of(1))
    assert same(read_training_state(path), state_of(1))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"state\.pt: is truncated or not a checkpoint"):
        read_training_state(path)
    write_training_state(path, {"epoch": 1})
    with pytest.raises(InputError, match="is not a training state of this project"):
        read_training_state(path)


def test_weights_that_contain_the_end_of_a_zip_archive_are_weights(tmp_path):
    end = torch.tensor(list(b"PK\5\6" + bytes(18)), dtype=torch.uint8)
    save_checkpoint(tmp_path, state_of(1), ({"layer.weight": end}, DESCRIPTION))
    assert zipfile.is_zipfile(tmp_path / BEST), "the library takes it for an archive"
    assert same(read_weights(tmp_path / BEST)[0], {"layer.weight": end})
