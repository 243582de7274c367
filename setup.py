"""Installs the package; every fact about it stands in settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
facts = parser["DEFAULT"]

setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    keywords=facts["keywords"],
    author=facts["author"],
    author_email=facts["author_email"],
    license="Apache-2.0",
    url=facts["git_url"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=[facts["lib_path"], f"{facts['lib_path']}.*"]),
    package_data={"": ["*.pyi"], facts["lib_path"]: ["py.typed"]},
    python_requires=f">={facts['min_python']},<3.14",
    install_requires=facts["requirements"].split(),
    extras_require={
        "lab": facts["lab_requirements"].split(),
        "tensorboard": facts["tensorboard_requirements"].split(),
        "wandb": facts["wandb_requirements"].split(),
        "docs": facts["docs_requirements"].split(),
        "dev": facts["dev_requirements"].split(),
    },
    entry_points={
        "console_scripts": facts["console_scripts"].split(),
        "nbdev": [f"{facts['lib_path']}={facts['lib_path']}._modidx:d"],
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
