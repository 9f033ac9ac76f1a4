"""Two workers share two cores: each computes on one thread, and so do the commands it starts.

Our own faults come out where they happen, in the tests and in the commands that they start.
"""

import os

import pytest

os.environ["MINT_COMPRESS_STRICT"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is first imported

LONGEST = (
    "test_processes.py", "test_end_to_end.py", "test_examples_jobs.py", "test_examples.py", "test_mint.py",
    "test_fuzz_loading.py", "test_int8.py", "test_resuming.py", "test_speed.py",
)  # fmt: skip
"""Files that take longest come first, lest one worker be left with them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
