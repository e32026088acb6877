"""A user of the installed Python wheel: the library inside it loads and normalizes."""

from pathlib import Path

import batchnorm
import numpy as np

# The library of the wheel, not one that lies about elsewhere on the machine.
mapped = {
    Path(line.split()[-1])
    for line in Path("/proc/self/maps").read_text().splitlines()
    if "/libbatchnorm.so" in line
}
folder = Path(batchnorm.__file__).parent
assert mapped and all(path.parent == folder for path in mapped), (mapped, folder)

layer = batchnorm.BatchNorm2d(3)
images = np.random.default_rng(0).normal(5, 2, (8, 3, 6, 6)).astype(np.float32)
output = layer(images)
assert np.allclose(output.mean(axis=(0, 2, 3)), 0, atol=1e-5), output.mean(axis=(0, 2, 3))
assert np.allclose(output.std(axis=(0, 2, 3)), 1, atol=1e-3), output.std(axis=(0, 2, 3))
print(f"batchnorm {batchnorm.version()} from {folder}")
