"""The families of clip classifiers: what each one wants to see, without importing torch.

Where a configuration changes what a network can take (the patch of a transformer), its backbone's own rules hold; those
here are the published architecture's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from utils.settings import IMAGENET_MEAN, IMAGENET_STD
from Video_Models.input_rules import FrameRule, SizeRule

Channels = tuple[float, float, float]

PRETRAINED = "pretrained"  # the value of `weights` that takes them
_HALF: Channels = (0.5, 0.5, 0.5)
_SLOWFAST_MEAN: Channels = (0.45, 0.45, 0.45)
_SLOWFAST_STD: Channels = (0.225, 0.225, 0.225)
_KINETICS_MEAN: Channels = (0.43216, 0.394666, 0.37645)
_KINETICS_STD: Channels = (0.22803, 0.22145, 0.216989)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of a family before its network is built.

    Attributes:
        mean, std: normalisation of its published weights, per RGB channel, of values in 0..1.
        num_frames, image_size: a clip's, where nothing else is asked for: as published, but 16 frames where the
            published 32 or 64 are halved within the network and ours are not, or cost too much for a default.
        pretrained: published weights: a hub id `owner/name`, or the name of torchvision's `Weights`; "" if there are
            none.
        frame_rule, size_rule: what the published architecture takes.
        hidden_width: of the hidden layer in a head of two fully connected layers; 0 is a head of one.
        config_keys: names in `config`, which replace values of the architecture; of the transformers, those of the
            library's own configuration that the encoder reads, spelled out so that a typo is found without importing
            it.
    """

    mean: Channels
    std: Channels
    num_frames: int
    image_size: int
    pretrained: str = ""
    frame_rule: FrameRule = field(default_factory=FrameRule)
    size_rule: SizeRule = field(default_factory=SizeRule)
    hidden_width: int = 0
    config_keys: tuple[str, ...] = ()

    @property
    def is_on_hub(self) -> bool:
        """Whether the network is one of transformers, with weights on the model hub."""
        return "/" in self.pretrained

    def check_config(self, config: dict | None) -> None:
        """Refuse keys that the architecture does not know, where they are listed.

        Raises:
            ValueError: naming the first unknown key and the known ones.
        """
        if unknown := [key for key in config or {} if key not in self.config_keys]:
            known = ", ".join(sorted(self.config_keys)) or "none"
            raise ValueError(f"config: unknown key {unknown[0]!r}; this family knows: {known}")


_INFLATION_KEYS = ("init", "temporal_kernel", "temporal_padding")
_TRANSFORMER_KEYS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
)
_INFLATED_RESNET = {
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "num_frames": 16,
    "image_size": 224,
    "config_keys": (*_INFLATION_KEYS, "layers"),
}
_VIDEO_RESNET = {
    "mean": _KINETICS_MEAN,
    "std": _KINETICS_STD,
    "num_frames": 16,
    "image_size": 112,
    "config_keys": ("layers",),
}

FAMILIES: dict[str, Family] = {
    # Tong et al. 2022; frames are read in tubes of 2, and a last odd one would be dropped.
    "videomae": Family(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_frames=16,
        image_size=224,
        pretrained="MCG-NJU/videomae-base-finetuned-kinetics",
        frame_rule=FrameRule(multiple_of=2),
        size_rule=SizeRule(multiple_of=16),
        config_keys=(*_TRANSFORMER_KEYS, "patch_size", "qv_bias", "tubelet_size", "use_mean_pooling"),
    ),
    # Bertasius et al. 2021
    "timesformer": Family(
        mean=_SLOWFAST_MEAN,
        std=_SLOWFAST_STD,
        num_frames=8,
        image_size=224,
        pretrained="facebook/timesformer-base-finetuned-k400",
        size_rule=SizeRule(multiple_of=16),
        config_keys=(*_TRANSFORMER_KEYS, "attention_type", "drop_path_rate", "patch_size", "qkv_bias"),
    ),
    # Arnab et al. 2021, model 1 (joint attention): tubes of 2 frames, patches of 16 pixels
    "vivit": Family(
        mean=_HALF,
        std=_HALF,
        num_frames=32,
        image_size=224,
        pretrained="google/vivit-b-16x2-kinetics400",
        frame_rule=FrameRule(multiple_of=2),
        size_rule=SizeRule(multiple_of=16),
        config_keys=(*_TRANSFORMER_KEYS, "qkv_bias", "tubelet_size"),
    ),
    # Carreira & Zisserman 2017. GoogLeNet's published weights want values in -1..1: torchvision's network turns
    # ImageNet's normalisation into that first (`transform_input`), which is left out here for the right numbers.
    "i3d": Family(
        mean=_HALF,
        std=_HALF,
        num_frames=16,
        image_size=224,
        pretrained="GoogLeNet_Weights.IMAGENET1K_V1",
        size_rule=SizeRule(minimum=15),
        config_keys=(*_INFLATION_KEYS, "width_multiplier"),
    ),
    # Inflated ResNets, as in Wang et al. 2018 (Non-local Neural Networks), there with strides in time
    "resnet18_3d": Family(pretrained="ResNet18_Weights.IMAGENET1K_V1", **_INFLATED_RESNET),
    "resnet50_3d": Family(pretrained="ResNet50_Weights.IMAGENET1K_V2", **_INFLATED_RESNET),
    # Tran et al. 2015; its weights were published for Caffe only
    "c3d": Family(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_frames=16,
        image_size=112,
        config_keys=("dropout", "width_multiplier"),
    ),
    # He et al. 2016, on frames
    "resnet18": Family(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_frames=16,
        image_size=224,
        pretrained="ResNet18_Weights.IMAGENET1K_V1",
        hidden_width=512,
        config_keys=("layers",),
    ),
    # Tran et al. 2018
    "r3d_18": Family(pretrained="R3D_18_Weights.KINETICS400_V1", **_VIDEO_RESNET),
    "r2plus1d_18": Family(pretrained="R2Plus1D_18_Weights.KINETICS400_V1", **_VIDEO_RESNET),
    # Li et al. 2022; patches of 4 pixels every 2 frames, three further halvings of the size
    "mvit_v2_s": Family(
        mean=_SLOWFAST_MEAN,
        std=_SLOWFAST_STD,
        num_frames=16,
        image_size=224,
        pretrained="MViT_V2_S_Weights.KINETICS400_V1",
        frame_rule=FrameRule(multiple_of=2),
        size_rule=SizeRule(minimum=32, multiple_of=4),
        config_keys=("depths", "embed_dim", "num_heads", "stochastic_depth_prob"),
    ),
    # Liu et al. 2022; torchvision would fill an odd last tube of 2 with a blank frame
    "swin3d_t": Family(
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_frames=32,
        image_size=224,
        pretrained="Swin3D_T_Weights.KINETICS400_V1",
        frame_rule=FrameRule(multiple_of=2),
        config_keys=("depths", "embed_dim", "num_heads", "stochastic_depth_prob", "window_size"),
    ),
    # Xie et al. 2018; five halvings of the size and three of the frames, the last of them without padding, would need 5
    # frames. With 5 to 7, oneDNN's weight gradient of the first convolution over time (kernel 7, stride 2, padding 3)
    # is wrong by up to 30 orders of magnitude or ends the process: measured on a CPU with torch 2.14.
    "s3d": Family(
        mean=_KINETICS_MEAN,
        std=_KINETICS_STD,
        num_frames=16,
        image_size=224,
        pretrained="S3D_Weights.KINETICS400_V1",
        frame_rule=FrameRule(minimum=8),
        size_rule=SizeRule(minimum=17),
        config_keys=("batch_norm_momentum",),
    ),
}


def require_family(family: str) -> Family:
    """The family of a name.

    Raises:
        ValueError: naming the known ones.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[family]
