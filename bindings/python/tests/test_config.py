"""What show_config says, and what threadpoolctl does to the runtime that calls use."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import threadpoolctl

import batchnorm
from batchnorm import _lowlevel, config
from batchnorm import functional as F
from test_threads import in_a_process


def test_says_what_the_single_questions_say() -> None:
    found = batchnorm.show_config(mode="dicts")
    assert found["versions"]["batchnorm"] == batchnorm.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert found["package"] == str(Path(batchnorm.__file__).parent)
    assert Path(found["library"]).samefile(_lowlevel._library._name)
    assert found["isa"] == batchnorm.get_isa()
    assert found["num_threads"] == batchnorm.get_num_threads()
    assert found["threading"] == batchnorm.get_threading()
    assert found["thread_runtime"] == batchnorm.get_thread_runtime()


@pytest.mark.usefixtures("machine")
def test_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_SCHEDULE", "static")
    monkeypatch.setenv("UNRELATED", "1")
    batchnorm.set_max_isa("generic")
    batchnorm.set_num_threads(3)
    batchnorm.set_threading("own")
    found = batchnorm.show_config(mode="dicts")
    assert (found["isa"], found["num_threads"], found["threading"]) == ("generic", 3, "own")
    assert found["environment"]["OMP_SCHEDULE"] == "static"
    assert "UNRELATED" not in found["environment"]


def test_prints_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = batchnorm.show_config(mode="dicts")
    batchnorm.show_config()
    printed = capsys.readouterr().out
    expected = [*found["versions"].values(), found["library"], found["isa"], found["threading"]]
    expected += [found["package"], found["thread_runtime"]]
    expected += [runtime["path"] for runtime in found["openmp"]]
    assert [word for word in expected if word not in printed] == []


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode is 'json', expected 'stdout' or 'dicts'"):
        batchnorm.show_config(mode=cast(Any, "json"))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("libomp.so.5", True),
        ("libomp-3bc5b92b.so.5", True),  # as auditwheel renames it
        ("libomp-14.so.5", True),
        ("libomp5.so", True),
        ("libiomp5.so", True),
        ("libgomp.so.1.0.0", True),
        ("libgomp-24e2ab19.so.1.0.0", True),
        ("libomptarget.so.14", False),
        ("libompd.so", False),
        ("libgompy.so", False),
    ],
)
def test_runtimes_are_known_by_their_names(name: str, is_one: bool) -> None:
    assert bool(config._RUNTIME.match(name)) is is_one


def test_torch_is_named_only_if_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert "torch" not in batchnorm.show_config(mode="dicts")["versions"]
    stand_in = type(sys)("torch")
    stand_in.__version__ = "9.9"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    assert batchnorm.show_config(mode="dicts")["versions"]["torch"] == "9.9"


def test_tells_which_runtime_is_in_use() -> None:
    in_a_process("""
import batchnorm
from pathlib import Path

def runtimes():
    found = batchnorm.show_config(mode="dicts")["openmp"]
    return {Path(r["path"]).name.split(".")[0].split("-")[0]: r["in_use"] for r in found}

normalize()
assert runtimes() == {"libomp": True}, runtimes()
bring_libgomp()
assert runtimes() == {"libomp": False, "libgomp": True}, runtimes()
batchnorm.set_threading("own")
assert runtimes() == {"libomp": True, "libgomp": False}, runtimes()
""")


def test_memory_is_told() -> None:
    told = batchnorm.show_config(mode="dicts")["memory"]
    assert told["limit"] == batchnorm.memory.get_limit()
    assert told.keys() - {"limit"} == set(batchnorm.memory.Stats._fields)


# threadpoolctl, which scikit-learn and joblib use to limit threads.


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("threading", ["own", "auto"])
def test_threadpoolctl_sees_and_steers_the_runtime(threading: Any) -> None:
    batchnorm.set_threading(threading)
    batchnorm.set_num_threads(0)
    x = np.random.default_rng(0).standard_normal((8, 8, 64, 64)).astype(np.float32)
    expected = F.forward_training(x).output.tobytes()
    used = [r["path"] for r in batchnorm.show_config(mode="dicts")["openmp"] if r["in_use"]]
    seen = [pool["filepath"] for pool in threadpoolctl.threadpool_info()]
    assert len(used) == 1
    assert any(Path(file).samefile(used[0]) for file in seen), (used, seen)

    before = batchnorm.get_num_threads()
    for limit in (1, 3):
        with threadpoolctl.threadpool_limits(limit, user_api="openmp"):
            assert batchnorm.get_num_threads() == limit
            assert F.forward_training(x).output.tobytes() == expected
    assert batchnorm.get_num_threads() == before


@pytest.mark.usefixtures("machine")
def test_set_num_threads_goes_before_threadpoolctl() -> None:
    batchnorm.set_num_threads(2)
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert batchnorm.get_num_threads() == 2
