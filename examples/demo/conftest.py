"""Its being here puts this folder on sys.path, so that the tests find the package `bndemo`."""

import os

# As in __main__.py: the tests' matrices are too small for several BLAS threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
