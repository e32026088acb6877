"""A PyTorch model, unchanged but for one line: its batch norms done by libbatchnorm, and back.

Trains a small residual network twice from the same parameters on the same batches, as PyTorch has
it and converted, and compares losses, parameters and running statistics. Run it where the packages
batchnorm and torch are installed, with `python examples/python/torch_drop_in.py`.
"""

import copy

import batchnorm.torch
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions around which the input goes, as in a ResNet."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))  # one sweep over memory once converted
        y = self.bn2(self.conv2(y))
        return F.relu(y + x)  # ... and this addition and ReLU are another one, with bn2


def train(model, steps=10):
    """Teaches the model which quarter of an image is the bright one; returns the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        quarter = torch.randint(4, (32,), generator=generator)
        bright = F.one_hot(quarter, 4).view(32, 1, 2, 2).float()
        images = F.interpolate(bright, scale_factor=8) + torch.randn(
            32, 3, 16, 16, generator=generator
        )
        loss = F.cross_entropy(model(images), quarter)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


torch.manual_seed(0)
stock = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    Block(16),
    nn.AdaptiveAvgPool2d(2),
    nn.Flatten(),
    nn.Linear(64, 4),
)
converted = batchnorm.torch.convert(copy.deepcopy(stock))  # the one line

for step, losses in enumerate(zip(train(stock), train(converted), strict=True)):
    print(f"step {step}  loss of the stock model {losses[0]:.6f}  converted {losses[1]:.6f}")
    assert abs(losses[0] - losses[1]) < 1e-3

# The same keys and, but for rounding, the same values: checkpoints go either way.
for name, value in stock.state_dict().items():
    torch.testing.assert_close(converted.state_dict()[name], value, rtol=1e-2, atol=1e-3)
stock.load_state_dict(converted.state_dict())

reverted = batchnorm.torch.revert(converted)
images = torch.randn(2, 3, 16, 16)
assert torch.equal(reverted.eval()(images), stock.eval()(images))
print(f"reverted: {type(reverted[1]).__module__}.{type(reverted[1]).__name__} again")
