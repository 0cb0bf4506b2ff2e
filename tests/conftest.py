"""Fixtures and rules of the whole suite: no network, one place for real data, kills that are real kills."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
_OFFLINE = PROJECT / "tests" / "offline"
sys.path.insert(0, str(PROJECT))
sys.path.insert(0, str(_OFFLINE))
import sitecustomize  # noqa: E402  (this process; children get it through PYTHONPATH)

os.environ["PYTHONPATH"] = os.pathsep.join([str(_OFFLINE), str(PROJECT)])
os.environ["HF_HUB_OFFLINE"] = "1"

KILLED = 137


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-exhaustive", action="store_true", help="also run the tests marked exhaustive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-exhaustive"):
        return
    kept = [item for item in items if "exhaustive" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "exhaustive" in item.keywords])
    items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    assert sitecustomize.__file__ and Path(sitecustomize.__file__).parent == _OFFLINE


@pytest.fixture(scope="session")
def is_exhaustive(pytestconfig: pytest.Config) -> bool:
    return pytestconfig.getoption("--run-exhaustive")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real Tiny ImageNet images, the published clips and the published results."""
    folder = Path(os.environ.get("PVA_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data are not at {folder}; set PVA_DATA")
    return folder


def fork(function: Callable[[], None]) -> int:
    """Run a function in a forked child and return its exit code: 0 done, 1 an exception, else what it exited with.

    The parent must not have done torch work before (its thread pools do not survive a fork).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_in_child(function: Callable[..., None], *args: object) -> int:
    """Run a module-level function in a child forked from a clean server process, and return its exit code.

    For work with torch: the server has only done the imports, so its children start in milliseconds and whole.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "torch", "torchvision", *_PRELOADED])
    process = context.Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode


_PRELOADED = (
    "Baseline_VGG.training",
    "Data_Augmentation_SVD.svd",
    "Inflated_3D_VGG.training",
    "Inflated_3D_VGG.vgg_inflated",
    "Inflated_3D_VGG.video_dataset",
    "Model_Evaluation.evaluation",
    "Model_Evaluation.figures",
    "accelerate",
    "sklearn.metrics",
)


def exit_at_call(target: object, name: str, call: int, *, after: bool = False) -> None:
    """Make the n-th call (from 1) of `target.name` end the process as `kill -9` would, before or after it works."""
    original = getattr(target, name)
    state = {"calls": 0}

    def wrapper(*args, **kwargs):
        state["calls"] += 1
        if state["calls"] == call and not after:
            os._exit(KILLED)
        result = original(*args, **kwargs)
        if state["calls"] == call:
            os._exit(KILLED)
        return result

    setattr(target, name, wrapper)
