"""Processes as PyTorch starts them: DataLoader workers, DistributedDataParallel; and threads."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from batchnorm.torch import BatchNorm2d


class Normalized(Dataset[Tensor]):
    """Items that a worker process computes with the drop-in."""

    def __init__(self) -> None:
        self.layer = BatchNorm2d(16)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        x = torch.randn(4, 16, 64, 64, generator=torch.Generator().manual_seed(index))
        result: Tensor = copy.deepcopy(self.layer)(x).detach()
        return result


@pytest.mark.filterwarnings("ignore")  # of Python, about forks of processes with threads
def test_dataloader_workers() -> None:
    data = Normalized()
    expected = [data[index] for index in range(len(data))]  # the parent has had its threads
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for ours, theirs in zip(loader, expected, strict=True):
        assert torch.equal(ours, theirs)


_DDP = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from batchnorm.torch import BatchNorm2d
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
kind = nn.BatchNorm2d if out.endswith("stock") else BatchNorm2d
model = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
torch.manual_seed(1)
data = torch.randn(2, 8, 3, 6, 6)
model(data[0].double().float())
parallel = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
for _ in range(3):
    optimizer.zero_grad()
    parallel(data[rank]).square().mean().backward()
    optimizer.step()
if rank == 0:
    torch.save(model.state_dict(), out)
dist.destroy_process_group()
"""


def test_distributed_data_parallel(tmp_path: Path) -> None:
    states = []
    for kind in ("ours", "stock"):
        out = tmp_path / kind
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _DDP, str(rank), str(tmp_path / f"store-{kind}"), str(out)],
                env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            )
            for rank in range(2)
        ]
        assert [process.wait(120) for process in processes] == [0, 0]
        states.append(torch.load(out))
    for key, value in states[1].items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5)


def test_threads_at_once() -> None:
    layer = BatchNorm2d(16).eval()
    x = torch.randn(4, 16, 96, 96)
    expected = layer(x)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            own = x.clone().requires_grad_()
            y = layer(own)
            y.sum().backward()
            if not torch.equal(y, expected) or own.grad is None:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_pytorch_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import batchnorm, batchnorm.torch"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "batchnorm.torch needs PyTorch" in result.stderr
    assert "pip install torch" in result.stderr
