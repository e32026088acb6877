"""One contender of network.py: a network, stock or converted, that does a step when it is told to.

    network_worker.py NETWORK --format FORMAT --images N --contender stock|converted

A process of its own, so that its memory is its own: peak and page faults are what a program with
this network has. Speaks the protocol of Worker in run.py:

    differences            of the converted network from the stock one, before anything is timed
    training | inference   does one pass: seconds, page faults, seconds in the kernel
    profile PASS           where its time goes: milliseconds of each of PARTS
    memory                 the most bytes it has had so far
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from models import NETWORKS, build
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

PARTS = (
    "convolution",
    "batch_norm_forward",
    "batch_norm_backward",
    "activation_add",
    "optimizer",
    "rest",
)
PROFILED = 3  # passes
BATCH_NORM = "batch norm module"
ACTIVATIONS = ("relu", "clamp_min", "hardtanh", "threshold")
ADDITIONS = ("aten::add", "aten::add_")  # residuals, and the sums of gradients where paths meet
EXACT = 1e-8  # of float64 results: what the order of sums may change


# ---- a step --------------------------------------------------------------------------------------


class Step:
    """A network in training, with its data."""

    def __init__(self, model: nn.Module, options: argparse.Namespace) -> None:
        self.model = model
        self.input, self.target = data(options, torch.float32)
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
        )

    def training(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.model(self.input), self.target).backward()
        self.optimizer.step()

    def inference(self) -> None:
        self.model.eval()
        with torch.no_grad():
            self.model(self.input)


def data(
    options: argparse.Namespace, dtype: torch.dtype, images: int = 0, image: int = 0
) -> tuple[Tensor, Tensor]:
    network = NETWORKS[options.network]
    images, image = images or options.images, image or network.image
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(images, 3, image, image, generator=generator, dtype=dtype)
    target = torch.randint(network.classes, (images,), generator=generator)
    return input.contiguous(memory_format=options.format), target


def network(options: argparse.Namespace, contender: str) -> nn.Module:
    model = build(options.network).to(memory_format=options.format)
    return converted(model) if contender == "converted" else model


def converted(model: nn.Module) -> nn.Module:
    import batchnorm.torch  # here only: the stock contender's process is without it

    return batchnorm.torch.convert(model)


def timed(call: Callable[[], None], least: float) -> list[float]:
    """Of one call: seconds, page faults, seconds in the kernel. Repeats it for `least` seconds."""
    before, start, calls = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < least or not calls:
        call()
        calls += 1
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt - before.ru_minflt
    return [value / calls for value in (seconds, faults, after.ru_stime - before.ru_stime)]


def peak_bytes() -> int:
    """Of this process since it began; ru_maxrss would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


# ---- do both compute the same? -------------------------------------------------------------------


def results(model: nn.Module, input: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What a training step and an inference after it give, each kind as one vector."""
    torch.manual_seed(2)  # dropout
    model.train()
    output = model(input)
    nn.functional.cross_entropy(output, target).backward()
    model.eval()
    with torch.no_grad():
        inference = model(input)
    kinds = {
        "output": [output.detach()],
        "gradient": [parameter.grad for parameter in model.parameters()],
        "statistics": [buffer.to(input.dtype) for buffer in model.buffers()],
        "inference": [inference],
    }
    return {kind: torch.cat([t.flatten() for t in tensors]) for kind, tensors in kinds.items()}


def differences(options: argparse.Namespace) -> Iterator[str]:
    """Relative (L2) differences of the converted network from the stock one.

    In float64, on few and small images, they must be those of rounding. In float32, on what is
    timed, rounding decides at kinks (ReLU) and grows from layer to layer: told, not judged.
    """
    few = {"images": 4, "image": min(NETWORKS[options.network].image, 64)}
    for dtype, size in ((torch.float64, few), (torch.float32, {})):
        stock = build(options.network).to(dtype=dtype, memory_format=options.format)
        input, target = data(options, dtype, **size)
        other = results(converted(copy.deepcopy(stock)), input, target)
        for name, expected in results(stock, input, target).items():
            norm = torch.linalg.vector_norm
            found = float(norm(other[name] - expected) / norm(expected))
            if dtype == torch.float64 and not found <= EXACT:
                raise AssertionError(
                    f"{name} of the converted network differs from the stock one's by {found:.1e} "
                    f"in float64, expected at most {EXACT:.0e}"
                )
            yield f"{name}_{str(dtype).removeprefix('torch.')}={found:.1e}"


# ---- where does the time go? ---------------------------------------------------------------------


def ancestors(event) -> Iterator[str]:
    """Names of the event and of what called it, the nearest first."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def part(event, derivatives: set[str]) -> str:
    """Which of PARTS an event's own time belongs to: by the nearest name that is known."""
    names = list(ancestors(event))
    if any(name.startswith("Optimizer.") for name in names):
        return "optimizer"
    for name in names:
        if name in derivatives:
            return "batch_norm_backward"
        if name == BATCH_NORM:
            return "batch_norm_forward"
        if name in ADDITIONS or any(word in name for word in ACTIVATIONS):
            return "activation_add"
        if "conv" in name.lower():
            return "convolution"
    return "rest"


@contextlib.contextmanager
def batch_norm_marked(model: nn.Module) -> Iterator[set[str]]:
    """Makes each batch norm module an event of the profile, called BATCH_NORM, whatever runs in it,
    and collects the names of the nodes of its backward: a converted module has operators of its
    own, or none. Not by hooks: before a batch norm with hooks nothing is fused.
    """
    derivatives: set[str] = set()

    def marked(forward):
        def run(*args, **kwargs):
            with record_function(BATCH_NORM):
                output = forward(*args, **kwargs)
            if output.grad_fn is not None:
                derivatives.add(f"autograd::engine::evaluate_function: {output.grad_fn.name()}")
            return output

        return run

    kinds = {type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(mock.patch.object(kind, "forward", marked(kind.forward)))
        yield derivatives


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what PyTorch's profiler writes to the standard error at each start and stop."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def profiled(model: nn.Module, call: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of a call by part, of the fastest of several. What no operator accounts for is
    in the rest.
    """
    call()
    fastest = None
    for _ in range(PROFILED):
        with batch_norm_marked(model) as derivatives, quiet():
            with profile(activities=[ProfilerActivity.CPU]) as found:
                start = time.perf_counter()
                call()
                wall = 1e3 * (time.perf_counter() - start)
        if fastest is None or wall < fastest[0]:
            fastest = wall, found.events(), derivatives
    wall, events, derivatives = fastest
    parts = dict.fromkeys(PARTS, 0.0)
    for event in events:
        parts[part(event, derivatives)] += 1e-3 * event.self_cpu_time_total
    parts["rest"] = wall - sum(value for name, value in parts.items() if name != "rest")
    return parts


# ---- protocol ------------------------------------------------------------------------------------


def serve(options: argparse.Namespace) -> None:
    answer = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer

    def say(*words: object) -> None:
        answer.write(" ".join(str(word) for word in words) + "\n")
        answer.flush()

    try:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        versions = [f"PyTorch={torch.__version__}"]
        step = None
        if options.contender == "converted":
            import batchnorm

            versions.append(f"batchnorm={batchnorm.__version__}")
        say("ready", *versions)
        for line in sys.stdin:
            command, *words = line.split()
            if command == "differences":
                say("ok", *differences(options))
                continue
            if command == "memory":
                say("ok", peak_bytes())
                continue
            step = step or Step(network(options, options.contender), options)
            if command == "profile":
                parts = profiled(step.model, getattr(step, words[0]))
                say("ok", *(f"{name}={value:.3f}" for name, value in parts.items()))
            elif command in ("training", "inference"):
                say("ok", *(f"{value:.9g}" for value in timed(getattr(step, command), 0.2)))
            else:
                raise ValueError(f"unknown command {command!r}")
    except Exception as error:  # whatever it is, the coordinator must hear of it
        say("error", f"{type(error).__name__}: {error}".replace("\n", " "))
        raise SystemExit(2) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    parser.add_argument("--format", choices=formats, default="contiguous")
    parser.add_argument("--images", type=int)
    parser.add_argument("--contender", choices=("stock", "converted"), default="converted")
    options = parser.parse_args()
    options.format = formats[options.format]
    options.images = options.images or NETWORKS[options.network].images
    serve(options)


if __name__ == "__main__":
    main()
