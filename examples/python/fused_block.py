"""A residual block, forward and backward: normalization, activation and addition in one sweep.

    y = relu(bn2(linear(relu(bn1(linear(x))))) + x)

Against the same block made of single operations. Run it where the package batchnorm is installed,
with `python examples/python/fused_block.py`.
"""

import batchnorm
import numpy as np

rng = np.random.default_rng(0)
CHANNELS = 32
into = rng.normal(0, 0.2, (CHANNELS, CHANNELS)).astype(np.float32)
onto = rng.normal(0, 0.2, (CHANNELS, CHANNELS)).astype(np.float32)


class Block:
    """Images (N, H, W, C); the linear maps are 1x1 convolutions."""

    def __init__(self) -> None:
        self.bn1 = batchnorm.BatchNorm2d(CHANNELS, channel_axis=-1)
        self.bn2 = batchnorm.BatchNorm2d(CHANNELS, channel_axis=-1)


class Fused(Block):
    def forward(self, x: np.ndarray) -> np.ndarray:
        self.hidden = self.bn1(x @ into, activation="relu")
        return self.bn2(self.hidden @ onto, residual=x, activation="relu")

    def backward(self, grad: np.ndarray) -> np.ndarray:
        # Which values the ReLUs let pass, the layers have kept: a bit for each.
        grad_hidden = self.bn2.backward(grad) @ onto.T
        return self.bn1.backward(grad_hidden) @ into.T + self.bn2.grad_residual


class Single(Block):
    def forward(self, x: np.ndarray) -> np.ndarray:
        self.hidden = np.maximum(self.bn1(x @ into), 0)
        self.output = np.maximum(self.bn2(self.hidden @ onto) + x, 0)
        return self.output

    def backward(self, grad: np.ndarray) -> np.ndarray:
        grad_sum = grad * (self.output > 0)
        grad_hidden = self.bn2.backward(grad_sum) @ onto.T * (self.hidden > 0)
        return self.bn1.backward(grad_hidden) @ into.T + grad_sum


fused, single = Fused(), Single()
for step in range(3):
    x = rng.normal(0, 1, (8, 14, 14, CHANNELS)).astype(np.float32)
    grad = rng.normal(0, 1, x.shape).astype(np.float32)
    outputs = fused.forward(x), single.forward(x)
    gradients = fused.backward(grad), single.backward(grad)
    for block in (fused, single):
        for bn in (block.bn1, block.bn2):
            bn.weight -= 0.01 * bn.grad_weight
            bn.bias -= 0.01 * bn.grad_bias
    print(
        f"step {step}  largest difference: output {np.abs(outputs[0] - outputs[1]).max():.1e}",
        f"gradient {np.abs(gradients[0] - gradients[1]).max():.1e}",
    )

# Activation checkpointing: the output is thrown away and, before the backward, computed once more,
# to the bit. The running statistics take the batch in once.
x = rng.normal(0, 1, (8, 14, 14, CHANNELS)).astype(np.float32)
output = fused.bn1(x, activation="relu")
again = fused.bn1.recompute(x, activation="relu")
print("recomputed to the bit:", output.tobytes() == again.tobytes())
print("batches tracked      :", fused.bn1.num_batches_tracked)
