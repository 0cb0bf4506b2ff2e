"""The arms of the study: what each is trained on, what it is scored on, and what it asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Protocol values that an arm may be about; what only one of the two networks has cannot be equal anyway.
SUBJECT_KEYS = frozenset({"train_input", "mix_probability", "num_frames"})
SUBJECT_ROW = "subject"  # the key in `protocol_values.csv` that lists what else a comparison is about


def is_subject(key: str, subject: Iterable[str]) -> bool:
    """Whether a protocol's key, or a section that it is in, is what a comparison is about."""
    return any(key == name or key.startswith(f"{name}.") for name in subject)


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        asks: its question.
        network: `baseline` (2-D) or `inflated` (3-D).
        train_input: of the 2-D network (see `Baseline_VGG.settings`); the 3-D one is trained on clips.
        clips: the kind of clips it needs; None where it needs none.
        tests: kinds of input it is scored on (see `Model_Evaluation.settings.InputKind`); its own first.
        test_clips: what the later tests' clips are, where it is trained on none.
        trained_as: another arm whose weights it uses.
        is_paper: follows the paper's protocol, and is compared with the paper's other network only.
    """

    asks: str
    network: str
    train_input: str = "clip"
    clips: str | None = None
    tests: tuple[str, ...] = ("clip",)
    test_clips: str | None = None
    trained_as: str | None = None
    is_paper: bool = False

    @property
    def all_clips(self) -> tuple[str, ...]:
        """Kinds of clips that it is trained or scored on."""
        return tuple(dict.fromkeys(kind for kind in (self.clips, self.test_clips) if kind))


ARMS: dict[str, Arm] = {
    "2d_original": Arm(
        "the baseline; and what the paper's geometry and the generator cost it",
        "baseline",
        "original",
        tests=("original", "original_paper_geometry", "first_frame"),
        test_clips="svd",
    ),
    "2d_first_frame": Arm("is it the domain?", "baseline", "first_frame", "svd", ("first_frame",)),
    "2d_all_frames": Arm("is it the domain, or more looks?", "baseline", "all_frames", "svd", ("all_frames",)),
    "2d_mix": Arm("does SVD help as augmentation?", "baseline", "mix", "svd", ("original",)),
    "2d_tta": Arm("is it just three looks?", "baseline", "original", tests=("tta:3",), trained_as="2d_original"),
    "3d_static": Arm("is it the bigger network?", "inflated", clips="static"),
    "3d_camera": Arm("is any motion enough?", "inflated", clips="camera_motion"),
    "3d_svd": Arm("the claim", "inflated", clips="svd", tests=("clip", "shuffled", "reversed", "static")),
    "3d_svd_flat": Arm("is it the guidance ramp?", "inflated", clips="svd_flat"),
    "paper_2d": Arm(
        "the published comparison, 2-D",
        "baseline",
        "original",
        tests=("first_frame",),
        test_clips="svd",
        is_paper=True,
    ),
    "paper_3d": Arm("the published comparison, 3-D", "inflated", clips="svd", is_paper=True),
}
CLAIM_ARM = "3d_svd"
PAPER_ARMS = tuple(name for name, arm in ARMS.items() if arm.is_paper)
CONTROL_ARMS = tuple(name for name, arm in ARMS.items() if not arm.is_paper and name != CLAIM_ARM)
