"""Training in bfloat16 and float16: half the memory traffic, parameters and sums as wide as ever.

Tensors are halves; weight, bias and running statistics float32. bfloat16 arrays are those of the
package ml_dtypes (raw 16-bit words become one by `words.view(ml_dtypes.bfloat16)`, without a copy).
Run it where the package batchnorm is installed, with `python examples/python/half_precision.py`.
"""

import batchnorm
import numpy as np

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

rng = np.random.default_rng(0)
images = rng.normal(1, 2, (16, 8, 28, 28)).astype(np.float32)
single = batchnorm.BatchNorm2d(8)
reference = single(images)

for kind in filter(None, (np.float16, bfloat16)):
    bn = batchnorm.BatchNorm2d(8, dtype=kind)
    y = bn(images.astype(kind), activation="relu")
    grad = bn.backward(np.ones_like(y))
    error = np.abs(y.astype(np.float32) - np.maximum(reference, 0)).max()
    drift = np.abs(bn.running_mean - single.running_mean).max()
    print(
        f"{y.dtype!s:9} {y.nbytes / images.nbytes:.1f} of the memory"
        f"  largest difference {error:.4f}  running mean ({bn.running_mean.dtype}) {drift:.6f}"
    )
    assert y.dtype == grad.dtype == np.dtype(kind)
    assert bn.running_mean.dtype == bn.weight.dtype == np.float32
