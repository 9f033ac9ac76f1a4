"""The learning rate over a training."""

import pytest

from mint_compress.training.schedule import one_cycle


def test_one_cycle_rises_then_falls_to_nothing() -> None:
    shares = [one_cycle(step, 200) for step in range(200)]
    top = shares.index(max(shares))
    assert max(shares) == pytest.approx(1, abs=0.02)
    assert 28 <= top <= 31
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert shares[-1] < 1e-4
    assert 0 < one_cycle(0, 1) < 1
