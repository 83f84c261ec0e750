"""Settings of the whole suite: strict JAX, eight fake CPU devices, a shared compilation cache."""

import os
import pathlib
import resource
import subprocess
import sys

import compiler

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# Read by XLA when the first device is touched, so set before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if not os.environ.get("TEST_OPTIMIZED"):
    os.environ["XLA_FLAGS"] = compiler.quick_flags()
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {compiler.EIGHT_DEVICES}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / "jax"))
# The processes of the suite share what they compile, however small.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import gc
import importlib

import hypothesis
import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Real images and weights, too large for the repository.
SHARED = pathlib.Path(os.environ.get("KERNSYM_TEST_DATA", _ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Real data and weights beside the checkout; a test that needs them skips without."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data and weights in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the checkout."""
    return _ROOT


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """One small network in every format of weights: format -> a file or folder."""
    import writers

    return writers.write_all(tmp_path_factory.mktemp("formats"))


@pytest.fixture(scope="session")
def fixtures():
    """The folder of weights that other frameworks have written, see support/make_fixtures.py."""
    import writers

    return writers.FIXTURES


@pytest.fixture(scope="session")
def traced(tmp_path_factory):
    """``traced(name, **fields)`` gives a network and the shapes of a training pass."""
    import traces

    base = tmp_path_factory.getbasetemp()
    # All processes of the suite share the folder above their own.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
    folder.mkdir(exist_ok=True)
    return traces.Traces(folder)


def pytest_configure(config):
    """Ends the suite if a worker dies: xdist would start another one and wait for it for ever."""
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"


# The files that take longest start first, so that no process works alone in the end.
_LONGEST = ("test_gradients.py", "test_registry.py", "test_documents.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def pytest_collection_finish():
    """Spares the tests the collector's walks over all that is imported by now."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


_SELF = pathlib.Path("/proc/self")
_MOST_PAGES = (6 << 30) // resource.getpagesize()
_MOST_MAPS = 40_000  # Linux gives a process 65,530, and each compiled program takes some


def pytest_runtest_teardown(item, nextitem):
    """Drops what JAX has compiled, between two files, before the process is too large."""
    file_ends = nextitem is not None and nextitem.path != item.path
    if file_ends and (_SELF / "statm").exists():
        pages = int((_SELF / "statm").read_text().split()[1])
        maps = (_SELF / "maps").read_bytes().count(b"\n")
        if pages > _MOST_PAGES or maps > _MOST_MAPS:
            jax.clear_caches()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs a test marked ``optimized`` in a process of its own, with all optimisations of XLA."""
    if os.environ.get("TEST_OPTIMIZED") or not pyfuncitem.get_closest_marker("optimized"):
        return None
    environment = os.environ | {"TEST_OPTIMIZED": "1", "XLA_FLAGS": ""}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", pyfuncitem.nodeid],
        cwd=_ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    return True


hypothesis.settings.register_profile(
    # The same examples every time, so that a failure in one run is a failure in the next; no
    # deadline, because the first example of a shape compiles.
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=30,
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def run_binary(monkeypatch, capsys):
    """Runs a binary in this process: name, arguments -> exit status, output, errors."""

    def run(name, *arguments):
        # Binaries share flags' names, which can be defined only once in a process.
        defined = flags.FLAGS.flags_by_module_dict().items()
        ours = [flag.name for module, of in defined if "kernsym_jax." in module for flag in of]
        # Overrides such as --config.epochs become flags of absl's own while they are parsed.
        ours += [name for name in flags.FLAGS if name.startswith("config.")]
        for flag in set(ours) & set(flags.FLAGS):
            delattr(flags.FLAGS, flag)
        sys.modules.pop(f"kernsym_jax.{name}", None)
        module = importlib.import_module(f"kernsym_jax.{name}")
        monkeypatch.setattr(sys, "argv", [f"kernsym-{name}", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            module.run()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    yield run
    flags.FLAGS.unparse_flags()


@pytest.fixture
def within_a_gigabyte():
    """The test needs less than one GiB more memory than the suite before it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # in KiB
