"""Installs tfkd: TensorFlow/Keras Knowledge Distillation."""

import pathlib
import runpy

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

# The repository's address. README.md, the notebooks, CITATION.cff and the templates of issues write
# it out; tests/test_packaging.py reports any other.
REPOSITORY = "https://github.com/tfkd/tfkd"

# Keras makes the files with the first two; the third checks them.
ONNX = ["tf2onnx>=1.16", "onnx>=1.17", "onnxruntime>=1.20"]

setup(
    name="tfkd",
    version=runpy.run_path(str(HERE / "tfkd_cli.py"))["VERSION"],
    description="TensorFlow/Keras Knowledge Distillation: train small models under large ones.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url=REPOSITORY,
    project_urls={
        "Source": REPOSITORY,
        "Issues": f"{REPOSITORY}/issues",
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
    },
    license="Apache-2.0",
    # configs/ is installed within the package, where --config=digits finds it.
    packages=[
        *find_packages(include=["tfkd", "tfkd.*"]),
        "tfkd.configs",
        "tfkd.configs.studies",
    ],
    package_dir={"tfkd.configs": "configs", "tfkd.configs.studies": "configs/studies"},
    py_modules=["tfkd_cli"],
    package_data={"tfkd.report": ["templates/*"]},
    python_requires=">=3.11",
    entry_points={"console_scripts": ["tfkd=tfkd_cli:main"]},
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.15,<3.16",
        "tensorboard>=2.20",
        "tensorflow-datasets>=4.9.9",
        "keras-tuner>=1.4.7",
        "absl-py>=2.1",
        "ml_collections>=1.0",
        "numpy>=1.26",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        # TFDS imports it to download some data sets, and does not ask for it.
        "importlib_resources>=6",
        "matplotlib>=3.8",
        "pillow>=10",
        "jinja2>=3.1",
    ],
    extras_require={
        # Earlier ones can be made to run code by the files that they load.
        "torch": ["torch>=2.10", "safetensors>=0.4"],
        "hub": ["keras-hub>=0.32"],
        "docs": ["zensical==0.0.73", "mkdocstrings[python]>=1.0"],
        "onnx": ONNX,
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.5",
            "safetensors>=0.4",
            # The tutorials, as tests run them.
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "nbformat>=5.10",
            *ONNX,
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
