"""Eight virtual CPU devices for every test, no silent rank promotion, and no program compiled twice by one worker."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

# Programs here run for milliseconds: LLVM's optimisation and fused kernels cost more to compile than they save, a third
# of the suite's time. An empty XLA_FLAGS turns them on again.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
# Of scikit-learn, of which no test has work for two: threads of several workers wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import pytest

pytest.register_assert_rewrite("planted", "smoke", "study_tests")
MOST_MAPS = 20_000  # every program takes some of the 65,530 memory maps of a process; beyond them it crashes
# In the order of their seconds.
LONG_FILES = ("test_smoke_d3m", "test_smoke_datamodels", "test_smoke_bias", "test_smoke_diagnosis", "test_hosts")

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Of each worker its own: entries are not written atomically. Processes that tests start find it in the environment.
_CACHE = tempfile.mkdtemp(prefix="d3mjax-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
for _name, _value in {
    "jax_compilation_cache_dir": _CACHE,
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}.items():
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)


@pytest.fixture
def doubles():
    """Float64, for comparisons with exact solutions."""
    with jax.enable_x64(True):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: workers take whole files, and one that begins last is waited for."""
    items.sort(key=lambda item: LONG_FILES.index(item.path.stem) if item.path.stem in LONG_FILES else len(LONG_FILES))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Between files, drop compiled programs if there are many; the cache on disk keeps them."""
    maps = Path("/proc/self/maps")
    another = nextitem is not None and nextitem.path != item.path
    if another and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
