"""One batch on two "devices": each normalizes its part by the statistics of both.

This is synchronized batch normalization. What travels between devices is small: a count and three
numbers per channel forward, a count and two backward; here they only pass through variables. Run it
with `python examples/python/split_batch.py` where the package batchnorm is installed.
"""

import batchnorm
import numpy as np
from batchnorm import functional as F

rng = np.random.default_rng(0)
images = rng.normal(10, 3, (24, 8, 16, 16)).astype(np.float32)  # (N, C, H, W)
grad_output = rng.normal(0, 1, images.shape).astype(np.float32)
weight, bias = np.ones(8, np.float32), np.zeros(8, np.float32)
running_mean, running_var = np.zeros(8, np.float32), np.ones(8, np.float32)

parts = images[:16], images[16:]  # devices need not have the same number of images
grads = grad_output[:16], grad_output[16:]

# Forward: every device computes its moments, all merge all of them in the same order.
moments = batchnorm.Moments.none(8)
for part in parts:
    moments.merge(batchnorm.Moments.of(part))
moments.update_running(running_mean, running_var)  # in each device's copy of the layer
forward = [batchnorm.normalize(part, moments, weight=weight, bias=bias) for part in parts]
saved_mean, saved_invstd = forward[0].saved_mean, forward[0].saved_invstd  # the same on all

# Backward: every device computes its sums, and an all-reduce adds them up.
own = [
    batchnorm.backward_reduce(dy, part, saved_mean=saved_mean)
    for dy, part in zip(grads, parts, strict=True)
]
total = own[0] + own[1]
backward = [
    batchnorm.backward_apply(
        dy, part, total, weight, saved_mean=saved_mean, saved_invstd=saved_invstd
    )
    for dy, part in zip(grads, parts, strict=True)
]

# The whole batch in one place gives the same.
whole = F.forward_training(images, weight=weight, bias=bias)
gradients = F.backward(
    grad_output, images, weight, saved_mean=whole.saved_mean, saved_invstd=whole.saved_invstd
)
output = np.concatenate([each.output for each in forward])
grad_input = np.concatenate([each.grad_input for each in backward])
print("values per channel:", moments.count)
print("running mean      :", running_mean.round(2))
print("same output       :", np.allclose(output, whole.output, atol=1e-6))
print("same gradients    :", np.allclose(grad_input, gradients.grad_input, atol=1e-6))
print("same grad_weight  :", np.allclose(backward[0].grad_weight, gradients.grad_weight, rtol=1e-6))
