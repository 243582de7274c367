"""The package as others see it: light to import, and what it says of itself is so."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import space_warps

ROOT = Path(__file__).resolve().parent.parent
STUBS = sorted((ROOT / "space_warps").rglob("__init__.pyi"))
PACKAGES = [".".join(path.parent.relative_to(ROOT).parts) for path in STUBS]


def settings() -> configparser.SectionProxy:
    """The facts in settings.ini."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_importing_loads_nothing_heavy() -> None:
    code = f"import {', '.join(PACKAGES)}, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert {"space_warps", *PACKAGES} <= set(loaded.split())
    assert not {"torch", "numpy", "pandas", "astropy", "matplotlib"} & set(loaded.split())


def test_a_script_beside_the_clone_imports_the_package(tmp_path: Path) -> None:
    (tmp_path / "space_warps").symlink_to(ROOT)  # a clone's folder often has the package's name
    script = tmp_path / "script.py"
    script.write_text("import space_warps; print(space_warps.__version__)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == space_warps.__version__, done.stderr


def test_every_sub_package_lists_its_names() -> None:
    folders = {path.parent for path in (ROOT / "space_warps").rglob("[a-z]*.py")}
    assert folders == {path.parent for path in STUBS}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_the_stub_is_there(package: str) -> None:
    folder = ROOT / package.replace(".", "/")
    tree = ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8"))
    promised = {
        alias.asname: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    offering = import_module(package)
    assert promised
    assert set(promised) <= set(dir(offering))
    assert not promised.keys() & {path.stem for path in folder.iterdir()}  # a module would hide it
    for name, module in promised.items():
        assert getattr(offering, name) is getattr(import_module(f"{package}.{module}"), name)


def test_an_installed_package_is_whole(tmp_path: Path) -> None:
    """Sub-packages, `.pyi` files and `py.typed` among its files."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.py", "settings.ini", "README.md"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "space_warps", copy / "space_warps")
    (copy / "space_warps/deep").mkdir()
    for name in ("__init__.py", "__init__.pyi", "module.py"):
        (copy / f"space_warps/deep/{name}").touch()
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", tmp_path / "built"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sources(tmp_path / "built") == sources(copy) - {"setup.py"}
    assert "space_warps/deep/__init__.pyi" in sources(tmp_path / "built")


def sources(folder: Path) -> set[str]:
    """Files of Python and `py.typed` below a folder."""
    paths = (path for ending in ("*.py", "*.pyi", "py.typed") for path in folder.rglob(ending))
    return {path.relative_to(folder).as_posix() for path in paths}


def test_one_version_everywhere() -> None:
    version = settings()["version"]
    assert space_warps.__version__ == version
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_readme_names_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`make ([a-z]+)`|^make ([a-z]+)", readme, re.M))
    assert {"demo", "test"} <= {one or other for one, other in named} <= targets


def test_nothing_names_a_folder_of_a_machine() -> None:
    for path in (ROOT / "space_warps").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"[\"'](/home|/Users|/root|/work|/tmp|C:\\\\)", text), path.name
