"""Ship a network without its batch normalization: fold it into the convolution before it.

Run it with `python examples/python/fold_convolution.py` where the package batchnorm is installed.
"""

import batchnorm
import numpy as np


def convolution(images: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A plain convolution without padding: images (N, I, H, W), weight (O, I, K, K)."""
    kernel = weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(images, kernel, axis=(2, 3))
    output = np.einsum("nihwkl,oikl->nohw", windows, weight, optimize=True)
    return np.ascontiguousarray(output + bias[:, None, None], dtype=np.float32)


rng = np.random.default_rng(0)
weight = rng.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32)
bias = rng.normal(0, 1, 8).astype(np.float32)
bn = batchnorm.BatchNorm2d(8)

for _ in range(100):  # the running statistics get to know the data
    images = rng.normal(2, 3, (4, 3, 16, 16)).astype(np.float32)
    bn(convolution(images, weight, bias))
bn.eval()

folded = bn.fold_into(weight, bias)  # PyTorch's (O, I, H, W); layout= knows the others
expected = bn(convolution(images, weight, bias))
actual = convolution(images, folded.weight, folded.bias)
print("largest difference     ", np.abs(actual - expected).max())
print("rounding of the weights", folded.weight_error)
print("rounding of the biases ", folded.bias_error)

# Without a convolution before it, it is one multiplication and addition per value.
pair = bn.fold_affine()
x = convolution(images, weight, bias)
y = x * pair.weight[:, None, None] + pair.bias[:, None, None]
print("as an affine pair      ", np.abs(y - expected).max())
