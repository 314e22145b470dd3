"""Packaging. `kernels/` installs as `dclr.kernels`, never as a top-level module of its own."""

from pathlib import Path

from setuptools import find_packages, setup

test = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "pytest-benchmark>=5",
    "ruff>=0.6",
    "setuptools>=69",
    "wheel",
]

setup(
    name="dclr",
    version="0.1.0",
    description="Self-supervised video pretraining that learns motion as well as scene, on Triton kernels",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    package_dir={"dclr": "dclr", "dclr.kernels": "kernels"},
    packages=[
        *find_packages(include=["dclr", "dclr.*"]),
        "dclr.kernels",
        *(f"dclr.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_data={"dclr": ["py.typed"]},
    install_requires=[
        "torch>=2.11",
        "triton>=3.6; platform_system == 'Linux'",
        "numpy>=1.26",
        "av>=17",
        "kornia>=0.8",
        "nvtx>=0.2.10",
        "tyro>=0.9",
        "pyyaml>=6",
        "tqdm>=4.66",
        "tensorboard>=2.16",
        "matplotlib>=3.8",
        "safetensors>=0.4",
    ],
    extras_require={
        "test": test,
        "bench": ["pytest-benchmark>=5", "torchcodec>=0.13; platform_system == 'Linux'"],
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
        "hub": ["huggingface_hub>=0.30"],
        "wandb": ["wandb>=0.17"],
        "mlflow": ["mlflow-skinny>=2.14"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
    },
    entry_points={"console_scripts": ["dclr = dclr.cli:main"]},
)
