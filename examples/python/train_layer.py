"""A layer in a small network: training mode, gradients, evaluation mode, saving and loading.

Two classes of points, one hidden layer: linear, BatchNorm1d, ReLU, linear. All but the batch
normalization is plain NumPy. Run it with `python examples/python/train_layer.py`.
"""

import tempfile
from pathlib import Path

import batchnorm
import numpy as np

rng = np.random.default_rng(0)
RATE = 0.5


def circles(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points inside (0) and outside (1) of a circle, far from the origin."""
    points = rng.normal(0, 1, (count, 2))
    labels = (np.hypot(*points.T) > 1.2).astype(int)
    return (points * 5 + [200, -70]).astype(np.float32), labels


into = rng.normal(0, 1, (2, 32)).astype(np.float32)
onto = rng.normal(0, 0.2, (32, 2)).astype(np.float32)
norm = batchnorm.BatchNorm1d(32)


def forward(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(norm(points @ into), 0)
    scores = hidden @ onto
    scores -= scores.max(axis=1, keepdims=True)
    return hidden, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


for step in range(300):
    points, labels = circles(128)
    hidden, chances = forward(points)
    loss = -np.log(chances[np.arange(len(labels)), labels]).mean()

    error = chances.copy()
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    grad_hidden = (error @ onto.T) * (hidden > 0)
    onto -= RATE * hidden.T @ error
    norm.backward(grad_hidden, out=grad_hidden)  # of the last forward; in place
    into -= 0.02 * points.T @ grad_hidden
    norm.weight -= RATE * norm.grad_weight  # the layer's own memory
    norm.bias -= RATE * norm.grad_bias
    if step % 50 == 0:
        print(f"step {step:3}  loss {loss:.3f}")

norm.eval()  # from now on the running statistics: the result for a point is its own
points, labels = circles(1000)
accuracy = (forward(points)[1].argmax(axis=1) == labels).mean()
print(f"{norm} after {norm.num_batches_tracked} batches: accuracy {accuracy:.1%}")

with tempfile.TemporaryDirectory() as folder:
    np.savez(Path(folder) / "norm.npz", **norm.state_dict())  # PyTorch's names
    (Path(folder) / "norm.bin").write_bytes(norm.to_bytes())  # or all of it, checksummed

    loaded = batchnorm.BatchNorm1d(32).eval()
    loaded.load_state_dict(np.load(Path(folder) / "norm.npz"))
    again = batchnorm.BatchNorm1d.from_bytes((Path(folder) / "norm.bin").read_bytes())

hidden = points @ into
assert np.array_equal(loaded(hidden), norm(hidden))
assert np.array_equal(again(hidden), norm(hidden))
print("both copies give the same bits")
