"""Imports go from left to right: `utils` knows no stage, a stage no later stage and no other stage's script."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT

STAGES = (
    "Data_Sourcing",
    "Data_Augmentation_SVD",
    "Baseline_VGG",
    "Inflated_3D_VGG",
    "Video_Models",
    "Model_Evaluation",
)


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Every module an `import` may load, at any depth of nesting; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (item.value for item in node.args[:1] if isinstance(item, ast.Constant))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *filter(None, [node.module])])


def is_script(source: str) -> bool:
    """Whether a module has the main guard of a stage script."""
    return any(
        isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) and "run_script(main)" in ast.unparse(node)
        for node in ast.parse(source).body
    )


def violations(module: str, source: str, scripts: set[str]) -> list[str]:
    """What a module must not import, as sentences."""
    own = module.split(".")[0]
    found = []
    for imported in dict.fromkeys(imported_modules(source, module.rpartition(".")[0])):
        top = imported.split(".")[0]
        if own == "utils" and top in STAGES:
            found.append(f"{module} imports the stage module {imported}")
        elif own in STAGES and top in STAGES[STAGES.index(own) + 1 :]:
            found.append(f"{module} imports {imported} of a later stage")
        elif own in STAGES and top != own and imported in scripts:
            found.append(f"{module} imports the script {imported}")
    return found


def project_sources() -> dict[str, str]:
    """Source by module name, of `utils` and all stages."""
    files = [path for folder in ("utils", *STAGES) for path in sorted((PROJECT / folder).rglob("*.py"))]
    return {_module_name(path): path.read_text(encoding="utf-8") for path in files}


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def project_scripts() -> set[str]:
    return {module for module, source in project_sources().items() if is_script(source)}


def test_imports_go_from_left_to_right():
    scripts = project_scripts()
    found = [line for module, source in project_sources().items() for line in violations(module, source, scripts)]
    assert found == []


def test_every_package_is_a_known_stage():
    packages = {path.parent.name for path in PROJECT.glob("*/__init__.py")}
    assert packages - set(STAGES) == {"utils"}


def test_scripts_are_recognised():
    scripts = project_scripts()
    assert {"Data_Sourcing.filter", "Baseline_VGG.train", "Model_Evaluation.evaluate"} <= scripts
    assert not {"Baseline_VGG.training", "utils.errors", "Data_Sourcing.sourcing"} & scripts


PLANTED = {
    "utils imports a stage": ("utils.clips", "import Baseline_VGG.training"),
    "utils imports a stage by from": ("utils.clips", "from Data_Sourcing import sourcing"),
    "later stage": ("Baseline_VGG.training", "from Inflated_3D_VGG.vgg_inflated import inflate"),
    "later stage as a package": ("Data_Sourcing.sourcing", "import Model_Evaluation"),
    "inside a function": ("Baseline_VGG.training", "def f():\n    from Video_Models import x"),
    "inside a method and an if": (
        "Data_Sourcing.sourcing",
        "class A:\n    def f(self):\n        if 1:\n            import Baseline_VGG.tiny_imagenet as t",
    ),
    "under TYPE_CHECKING": ("utils.clips", "if TYPE_CHECKING:\n    from Data_Sourcing.image_set import read_image_set"),
    "inside try": ("utils.clips", "try:\n    import Video_Models\nexcept ImportError:\n    pass"),
    "by name": ("utils.clips", "import importlib\nimportlib.import_module('Baseline_VGG.train')"),
    "another stage's script": ("Inflated_3D_VGG.training", "import Baseline_VGG.train"),
    "another stage's script by from": ("Model_Evaluation.inputs", "from Baseline_VGG import train"),
    "a name of another stage's script": ("Model_Evaluation.inputs", "from Data_Sourcing.filter import main"),
    "relative to the root": ("Baseline_VGG.training", "from ..Model_Evaluation import costs"),
}


@pytest.mark.parametrize(("module", "source"), PLANTED.values(), ids=PLANTED)
def test_planted_violation_is_caught(module, source):
    assert violations(module, source, {"Baseline_VGG.train", "Data_Sourcing.filter"})


ALLOWED = {
    "utils imports utils": ("utils.clips", "from utils.files import write_with"),
    "earlier stage": ("Inflated_3D_VGG.vgg_inflated", "from Baseline_VGG.vgg_baseline import build_vgg11"),
    "own script": ("Baseline_VGG.training", "from Baseline_VGG.train import main"),
    "own stage, relative": ("Baseline_VGG.training", "from . import settings\nfrom .tiny_imagenet import TinyImageNet"),
    "a library": ("utils.clips", "import torch.utils.data\nfrom torchvision import models"),
    "a name in a text": ("utils.clips", "text = 'import Baseline_VGG'  # import Baseline_VGG"),
}


@pytest.mark.parametrize(("module", "source"), ALLOWED.values(), ids=ALLOWED)
def test_allowed_import_is_no_violation(module, source):
    assert violations(module, source, {"Baseline_VGG.train", "Data_Sourcing.filter"}) == []
