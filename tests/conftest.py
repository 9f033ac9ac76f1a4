"""Two workers share two cores: each computes on one thread, and so do the commands it starts.

Our own faults come out where they happen, in the tests and in the commands that they start.
"""

import os

os.environ["MINT_COMPRESS_STRICT"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is first imported
