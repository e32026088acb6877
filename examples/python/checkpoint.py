"""Activation checkpointing: what a block computed is thrown away and computed again in backward.

    y = relu(bn(x @ into)) @ onto

The batch must not enter the running statistics twice, nor must they be needed to be the batch's
own: `recompute` normalizes by what the forward has saved, which costs one sweep and gives the
same bits. Run it where the package batchnorm is installed, with
`python examples/python/checkpoint.py`.
"""

import batchnorm
import numpy as np

rng = np.random.default_rng(0)
into = rng.normal(0, 0.1, (64, 256)).astype(np.float32)
onto = rng.normal(0, 0.1, (256, 64)).astype(np.float32)
bn = batchnorm.BatchNorm1d(256)

for step in range(3):
    x = rng.normal(1, 2, (512, 64)).astype(np.float32)
    grad = rng.normal(0, 1, x.shape).astype(np.float32)

    hidden = bn(x @ into, activation="relu")
    y = hidden @ onto
    forgotten = hidden
    del hidden  # 256 features a row, which a network of many blocks would have to keep

    mean = bn.running_mean.copy()
    before = x @ into
    hidden = bn.recompute(before, activation="relu")
    grad_onto = hidden.T @ grad
    grad_x = bn.backward(grad @ onto.T) @ into.T
    print(
        f"step {step}  batches tracked {bn.num_batches_tracked}"
        f"  same bits {np.array_equal(hidden, forgotten)}"
        f"  running mean untouched {np.array_equal(mean, bn.running_mean)}"
        f"  |grad_x| {np.abs(grad_x).mean():.4f}"
    )
    assert np.array_equal(hidden, forgotten)
    assert bn.num_batches_tracked == step + 1
