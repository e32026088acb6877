"""A step of training with the stateless functions: forward, backward, update; then inference.

The caller owns every array: parameters, running statistics, and what backward needs. Run it with
`python examples/python/functional_step.py` where the package batchnorm is installed.
"""

import numpy as np
from batchnorm import functional as F

rng = np.random.default_rng(0)
images = rng.normal(10, 3, (32, 8, 16, 16)).astype(np.float32)  # (N, C, H, W)
target = rng.normal(0, 1, images.shape).astype(np.float32)

weight, bias = np.ones(8, np.float32), np.zeros(8, np.float32)
running_mean, running_var = np.zeros(8, np.float32), np.ones(8, np.float32)
output = np.empty_like(images)  # written again in every step: no new memory

for step in range(50):
    forward = F.forward_training(images, running_mean, running_var, weight, bias, out=output)
    error = forward.output - target
    gradients = F.backward(
        error * (2 / error.size),  # of the loss, the mean of the squared errors
        images,
        weight,
        saved_mean=forward.saved_mean,
        saved_invstd=forward.saved_invstd,
        output_mask=(False, True, True),  # nothing lies before this layer: no gradient for images
    )
    weight -= 0.5 * gradients.grad_weight
    bias -= 0.5 * gradients.grad_bias
    if step % 10 == 0:
        print(f"step {step:2}  loss {np.mean(error * error):.4f}")

# Inference normalizes by the running statistics; a single image will do.
single = F.batch_norm(images[:1], running_mean, running_var, weight, bias)
print("running mean ", running_mean.round(2))
print("one image    ", single.shape, "mean", single.mean().round(3))

# Channels innermost, (N, H, W, C): the same function on the same memory, nothing is copied.
nhwc = np.ascontiguousarray(np.moveaxis(images, 1, -1))
last = F.batch_norm(nhwc, running_mean, running_var, weight, bias, channel_axis=-1)
first = F.batch_norm(images, running_mean, running_var, weight, bias)
print("both layouts agree:", np.allclose(np.moveaxis(last, -1, 1), first, atol=1e-6))
