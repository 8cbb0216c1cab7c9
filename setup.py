from setuptools import find_packages, setup

EXTRAS = {
    # mmdet 3.3 accepts mmcv < 2.2 only; mmcv-lite is a wheel, its compiled operators are replaced by torchvision's
    "mmdet": ["mmdet>=3.3,<3.4", "mmengine>=0.10.5", "mmcv-lite>=2.1,<2.2", "setuptools<82"],
    "onnx": ["onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18"],
    "cluster": ["submitit>=1.5"],
    "test": ["pytest>=8", "pytest-xdist>=3.5", "ruff>=0.6", "faiss-cpu>=1.8"],
}

setup(
    name="sslight",
    version="0.1.0",
    description="Pre-train small vision backbones without labels, and measure what they are worth downstream",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["sslight*", "pretrain*", "convert*", "benchmarks*", "configs"]),
    package_data={
        "benchmarks.classification": ["data/*"],
        "benchmarks.report": ["templates/*"],
        "convert": ["data/*"],
        "configs": ["**/*.yaml", "**/*.py"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "timm>=1.0.15",
        "fvcore>=0.1.5.post20221221",
        "pycocotools>=2.0.8",
        "faster-coco-eval>=1.6",
        "numpy>=1.26",
        "pyyaml>=6",
        "safetensors>=0.4",
        "h5py>=3.10",
        "webdataset>=0.2.86",
        "fsspec>=2024.2",
        "opencv-python-headless>=4.11",
        "pillow>=10",
        "scikit-learn>=1.4",
        "scipy>=1.12",
        "tqdm>=4.66",
        "rich>=13",
        "tensorboard>=2.16",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "argcomplete>=3.5",
    ],
    extras_require={**EXTRAS, "all": sorted({name for extra in EXTRAS.values() for name in extra})},
    entry_points={"console_scripts": ["sslight=sslight.cli:main"]},
)
