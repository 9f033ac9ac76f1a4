"""What a report says about sizes, against counts made by hand."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from networks import Chain

from mint_compress import find_groups, prune_
from mint_compress.errors import CheckFailed
from mint_compress.exporting.sizes import SPARED, Sizes, sizes_of
from mint_compress.planning.choices import make_plan
from mint_compress.reporting import Report
from mint_compress.reporting.records import Counts, LayerChange, LeftAlone, Share

EXAMPLE = torch.zeros(1, 3, 6, 6)


def test_a_chain_that_loses_two_channels_of_its_first_layer() -> None:
    original, pruned = Chain().eval(), Chain().eval()
    groups = find_groups(original, EXAMPLE)
    plan = make_plan(
        groups, {"conv1": np.arange(6) >= 4, "conv2": np.zeros(5, bool)}, asked=0.1, asked_macs=0.2
    )
    sizes = sizes_of(original, prune_(pruned, plan), plan, groups, EXAMPLE)
    # conv1 has 27 weights a channel, conv2 9 a pair, fc 5 x 4; bn1 2 a channel, biases of conv2 and fc
    before, after = 6 * 27 + 6 * 5 * 9 + 20 + 12 + 5 + 4, 4 * 27 + 4 * 5 * 9 + 20 + 8 + 5 + 4
    # 6 x 6 places; the head sees one
    macs = Counts(*(36 * (27 * width + 45 * width) + 20 for width in (6, 4)))
    assert sizes == Sizes(
        ratio=Share(0.1, 1 - after / before),
        parameters=Counts(before, after),
        macs=macs,
        macs_ratio=macs.before / macs.after,
        layers=(
            LayerChange("input - conv1", 6 * 27, 4 * 27),
            LayerChange("conv1 - conv2", 6 * 45, 4 * 45),
            LayerChange("conv2 - fc", 20, 20),
            LayerChange("biases and normalisation", 12 + 9, 8 + 9),
        ),
        left_alone=(
            LeftAlone("fc", "head: its channels are the network's outputs"),
            LeftAlone("conv2", SPARED),
        ),
    )
    wrong = replace(plan, macs=(plan.macs[0], plan.macs[1] + 1))
    with pytest.raises(CheckFailed, match=f"does {macs.after:,} MACs; the plan, of MACs, predicted"):
        sizes_of(original, pruned, wrong, groups, EXAMPLE)


def test_they_are_fields_of_the_report() -> None:
    assert {field.name for field in fields(Sizes)} <= {field.name for field in fields(Report)}
