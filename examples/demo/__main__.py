"""`python examples/demo` runs the demo; scripts/demo sets everything up for it."""

import os

# Several BLAS threads make products of such small matrices slower. NumPy reads this when it loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from bndemo.cli import main  # noqa: E402

raise SystemExit(main())
