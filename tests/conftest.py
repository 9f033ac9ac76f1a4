"""Two workers share two cores: each computes on one thread, and so do the commands it starts."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is first imported
