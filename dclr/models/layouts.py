"""What other codebases call the tensors of the encoders that are here too: from their names to ours."""

from __future__ import annotations

import re
from collections.abc import Callable

#: Where an encoder stands in a checkpoint; the first that fits is taken, so those that learn by gradient come first.
PREFIXES = ("", "encoder.", "encoder_q.", "encoder_q.0.", "backbone.", "model.", "base_encoder.")

Rules = tuple[tuple[str, str], ...]

# A (2+1)D unit is conv, norm, ReLU, conv; R3D's unit is its convolution alone.
_UNIT: Rules = (
    (r"\.spatial_conv\.", ".0."),
    (r"\.bn\.", ".1."),
    (r"\.temporal_conv\.", ".3."),
    (r"\.temporal_spatial_conv\.", "."),
)

#: VCOP's R(2+1)D and R3D, which DualVar's code uses.
VCOP: Rules = (
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^conv2\.block1\.", "layer1.0."),
    (r"^conv3\.block1\.", "layer2.0."),
    (r"^conv4\.block1\.", "layer3.0."),
    (r"^conv5\.block1\.", "layer4.0."),
    (r"^(layer\d\.0)\.conv([12])\.", r"\1.conv\2.0."),
    (r"^(layer\d\.0)\.bn([12])\.", r"\1.conv\2.1."),
    (r"^(layer\d\.0)\.downsampleconv\.", r"\1.downsample.0."),
    (r"^(layer\d\.0)\.downsamplebn\.", r"\1.downsample.1."),
    *_UNIT,
)

#: ResNets of plain blocks: Hara et al.'s 3D ResNets and DualVar's r2d3d18.
RESNET: Rules = (
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^(layer\d\.\d)\.conv([12])\.", r"\1.conv\2.0."),
    (r"^(layer\d\.\d)\.bn([12])\.", r"\1.conv\2.1."),
)

#: FAME's I3D, of which a unit is padding, conv, norm.
I3D: Rules = (
    (r"^conv3d_(1a|2b|2c)_\dx\d(x\d)?\.", r"conv_\1."),
    (r"\.branch_0\.", ".branches.0.0."),
    (r"\.branch_([123])\.", r".branches.\1."),
    (r"\.conv3d\.", ".1."),
    (r"\.batch3d\.", ".2."),
)

#: DualVar's S3D and S3D-G; it holds every tensor a second time below `block1` to `block5`.
S3D: Rules = (
    (r"^Conv_(1a|2b|2c)\.", r"conv_\1."),
    (r"^Mixed_", "mixed_"),
    (r"\.gating_b0\.fc\.", ".branches.0.1.linear."),
    (r"\.gating_b([123])\.fc\.", r".branches.\1.2.linear."),
    (r"\.branch([0123])\.", r".branches.\1."),
    (r"\.conv1?\.", ".0."),
    (r"\.bn1?\.", ".1."),
    (r"\.conv2\.", ".3."),
    (r"\.bn2\.", ".4."),
)

_C3D_PLACES = {"1": 0, "2": 4, "3a": 8, "3b": 11, "4a": 15, "4b": 18, "5a": 22, "5b": 25}

#: VCOP's C3D, which DualVar's code uses.
C3D: Rules = tuple(
    rule
    for name, place in _C3D_PLACES.items()
    for rule in ((rf"^conv{name}\.", f"{place}."), (rf"^bn{name}\.", f"{place + 1}."))
)

LAYOUTS: dict[str, Rules] = {"": (), "VCOP": VCOP, "ResNet": RESNET, "I3D": I3D, "S3D": S3D, "C3D": C3D}


def renaming(rules: Rules) -> Callable[[str], str]:
    """The function from another codebase's name of a tensor to ours."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str) -> str:
        for pattern, replacement in compiled:
            name = pattern.sub(replacement, name)
        return name

    return rename
