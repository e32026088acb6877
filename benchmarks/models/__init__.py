"""The networks that benchmarks/network.py trains, with what is published of their size."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from .mobilenetv2 import mobilenet_v2
from .resnet import resnet18, resnet50


class Network(NamedTuple):
    make: Callable[[], nn.Module]
    parameters: int  # as published: torchvision's documentation; for CIFAR kuangliu/pytorch-cifar
    image: int
    classes: int
    images: int  # a batch of which a training step takes a second or two on two cores


NETWORKS = {
    "resnet18-cifar": Network(lambda: resnet18(10, cifar=True), 11_173_962, 32, 10, 32),
    "resnet50-cifar": Network(lambda: resnet50(10, cifar=True), 23_520_842, 32, 10, 32),
    "resnet18": Network(resnet18, 11_689_512, 224, 1000, 8),
    "resnet50": Network(resnet50, 25_557_032, 224, 1000, 8),
    "mobilenetv2": Network(mobilenet_v2, 3_504_872, 224, 1000, 16),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The network, with the same parameters for the same seed."""
    torch.manual_seed(seed)
    network = NETWORKS[name]
    model = network.make()
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != network.parameters:
        raise AssertionError(f"{name}: {found} parameters, expected {network.parameters}")
    return model
