"""The code that the notebooks share, one topic a module; config.py is the first to read."""

import os

# Before torch is imported: its threads wait actively, so that the next operation finds them awake, but give up after
# about 0.2 ms. On 2 idle cores giving up at once (1,000) made a training step 5 % longer; beside a busy program the
# default (300,000) made it a third longer.
os.environ.setdefault("GOMP_SPINCOUNT", "100000")
