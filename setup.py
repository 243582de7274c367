"""Install the package; settings.ini holds its metadata and dependencies."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
metadata = parser["DEFAULT"]

setup(
    name=metadata["lib_name"],
    version=metadata["version"],
    description=metadata["description"],
    keywords=metadata["keywords"],
    author=metadata["author"],
    author_email=metadata["author_email"],
    license="Apache-2.0",
    url=metadata["git_url"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=[metadata["lib_path"], f"{metadata['lib_path']}.*"]),
    package_data={"": ["*.pyi", "*.html"], metadata["lib_path"]: ["py.typed"]},
    python_requires=f">={metadata['min_python']},<3.14",
    install_requires=metadata["requirements"].split(),
    extras_require={
        "lab": metadata["lab_requirements"].split(),
        "tensorboard": metadata["tensorboard_requirements"].split(),
        "wandb": metadata["wandb_requirements"].split(),
        "hdf5": metadata["hdf5_requirements"].split(),
        "parquet": metadata["parquet_requirements"].split(),
        "tiff": metadata["tiff_requirements"].split(),
        "export": metadata["export_requirements"].split(),
        "serve": metadata["serve_requirements"].split(),
        "docs": metadata["docs_requirements"].split(),
        "dev": metadata["dev_requirements"].split(),
    },
    entry_points={
        "console_scripts": metadata["console_scripts"].split(),
        "nbdev": [f"{metadata['lib_path']}={metadata['lib_path']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Astronomy",
    ],
)
