"""How much of the calibration data a layer is fitted to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mint_compress.nn.moments import MAX_COLUMNS
from mint_compress.repair.layer_fit import _sample_size  # how much is drawn does not show in what comes of it
from mint_compress.repair.layers_to_repair import LayerToRepair


@pytest.mark.parametrize(
    ("calls", "places", "batches", "positions", "rows"),
    [
        (1, 100, 16, 33, 33 * 1000),  # 32,768 rows of 1,000 images: 33 of the places each
        (1, 20, 16, 33, 20 * 1000),  # there are no more
        (2, 100, 4, 64, 64 * 256 * 2),  # 164 images have enough places: the least, which is 4 batches of 64
        (2, 4, 16, 17, 4 * 1000 * 2),  # 4,096 images would be needed, so all are used
    ],
)
def test_rows_enough_for_a_small_layer(
    calls: int, places: int, batches: int, positions: int, rows: int
) -> None:
    module = nn.Linear(8, 3)
    layer = LayerToRepair("fc", module, None, torch.arange(3), None, calls)
    size = _sample_size(layer, places, [64] * 15 + [40])
    assert (size.batches, size.positions, size.rows) == (batches, positions, rows)


def test_a_layer_with_more_columns_than_products_are_formed_of_gets_few_rows() -> None:
    module = nn.Linear(MAX_COLUMNS + 1, 3)
    layer = LayerToRepair("fc", module, None, torch.arange(3), None, 1)
    assert _sample_size(layer, 1000, [64] * 2).rows == 4096
