"""The table of known architectures."""

import json

import pytest

from mint_compress.checkpoints import fingerprints
from mint_compress.checkpoints.building import outline
from mint_compress.checkpoints.registry import known_builders


def test_the_table_knows_the_installed_builders():
    table = json.loads(fingerprints.TABLE.read_text())
    named = {n for family in table["families"].values() for n in family["builders"]}
    wanted = {n for n in known_builders() if not n.startswith("timm:")}
    assert wanted <= named
    assert fingerprints.TABLE.stat().st_size < 600_000


@pytest.mark.parametrize(
    "name", ["zoo:vgg16_cifar", "torchvision:squeezenet1_1", "torchvision:regnet_x_400mf"]
)
def test_the_table_is_up_to_date(name):
    fresh = fingerprints.generate([name])["families"]
    stored = json.loads(fingerprints.TABLE.read_text())["families"]
    ((key, family),) = fresh.items()
    assert stored[key]["sketch"] == family["sketch"]
    assert set(stored[key]["head"]) >= set(family["head"])
    assert stored[key]["builders"][name][1] == list(family["builders"][name][1])


def test_similarity_estimates_the_shared_share():
    one = [f"a{i}" for i in range(4000)]
    other = [f"a{i}" for i in range(2000)] + [f"b{i}" for i in range(2000)]
    # a third is shared; with 32 draws two standard deviations are 0.17
    assert fingerprints.similarity(fingerprints.sketch(one), fingerprints.sketch(other)) == pytest.approx(
        1 / 3, abs=0.17
    )
    few = fingerprints.similarity(fingerprints.sketch(["a", "b", "c"]), fingerprints.sketch(["b", "c", "d"]))
    assert few == 0.5
    assert fingerprints.similarity([], []) == 0


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 4}])
def test_builders_that_have_a_head_only_when_asked(kwargs):
    pytest.importorskip("timm")
    name = "timm:vit_small_patch14_dinov2"
    assert fingerprints.candidates(outline(name, kwargs)) == [name]
    assert fingerprints.input_shape(name) == (3, 518, 518)
