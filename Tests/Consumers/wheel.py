"""A user of the installed wheel, on a machine that has nothing of this project.

The library and libomp inside it are the ones that load, threadpoolctl knows that libomp, and layers
normalize. To be run isolated (-I), in an environment with NumPy and threadpoolctl.
"""

import sys
from pathlib import Path

import batchnorm
import numpy as np
import threadpoolctl

layer = batchnorm.BatchNorm2d(3)
images = np.random.default_rng(0).normal(5, 2, (64, 3, 56, 56)).astype(np.float32)
output = layer(images)
assert np.allclose(output.mean(axis=(0, 2, 3)), 0, atol=1e-5), output.mean(axis=(0, 2, 3))
assert np.allclose(output.std(axis=(0, 2, 3)), 1, atol=1e-3), output.std(axis=(0, 2, 3))

# What is loaded is the wheel's, whatever else lies about on the machine.
mapped = {
    Path(line.split(maxsplit=5)[5].rstrip())
    for line in Path("/proc/self/maps").read_text().splitlines()
    if "/lib" in line and ".so" in line
}
package = Path(batchnorm.__file__).parent
ours = {path for path in mapped if path.name.startswith(("libbatchnorm", "libomp", "libiomp"))}
assert package.is_relative_to(sys.prefix), (package, sys.prefix)
assert sorted(path.parent.name for path in ours) == ["batchnorm", "batchnorm.libs"], ours
assert all(path.parent.parent == package.parent for path in ours), (ours, package)

config = batchnorm.show_config(mode="dicts")
(runtime,) = config["openmp"]
assert runtime["in_use"] and Path(runtime["path"]) in ours, (config, ours)
assert Path(config["library"]) in ours, (config, ours)

# Renamed, it is still one that threadpoolctl can limit, and with it scikit-learn and joblib.
pools = [Path(pool["filepath"]) for pool in threadpoolctl.threadpool_info()]
assert Path(runtime["path"]) in pools, (runtime, pools)
evaluated = layer.eval()(images)
with threadpoolctl.threadpool_limits(1, user_api="openmp"):
    assert batchnorm.get_num_threads() == 1, batchnorm.get_num_threads()
    assert layer(images).tobytes() == evaluated.tobytes()

batchnorm.show_config()
