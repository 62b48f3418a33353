"""The code that the notebooks share, one topic a module; config.py is the first to read."""

import os

# Before torch is imported: while its threads wait they burn the processor, unless told to give up soon. Beside another
# busy program a training step took 2.4 s instead of 3.3 s on 2 cores; on an idle machine it makes no difference.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
