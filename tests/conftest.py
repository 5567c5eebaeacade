"""One thread: the models are tiny, and threads waiting for each other cost more than they save."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the commands that tests run
