"""The package as others see it: light to import, and what it says of itself is so."""

import ast
import configparser
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import space_warps

ROOT = Path(__file__).resolve().parent.parent


def settings() -> configparser.SectionProxy:
    """The facts in settings.ini."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_importing_loads_nothing_heavy() -> None:
    code = "import space_warps, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "space_warps" in loaded.split()
    assert not {"torch", "numpy", "pandas", "astropy", "matplotlib"} & set(loaded.split())


def test_a_script_beside_the_clone_imports_the_package(tmp_path: Path) -> None:
    (tmp_path / "space_warps").symlink_to(ROOT)  # a clone's folder often has the package's name
    script = tmp_path / "script.py"
    script.write_text("import space_warps; print(space_warps.__version__)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == space_warps.__version__, done.stderr


def test_every_name_of_the_stub_is_there() -> None:
    tree = ast.parse((ROOT / "space_warps/__init__.pyi").read_text(encoding="utf-8"))
    promised = {
        alias.asname: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(promised) <= set(dir(space_warps))
    for name, module in promised.items():
        assert getattr(space_warps, name) is getattr(import_module(f"space_warps.{module}"), name)
        assert name not in {path.stem for path in (ROOT / "space_warps").glob("*.py")}


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
    for path in (ROOT / "space_warps").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"[\"'](/home|/Users|/root|/work|/tmp|C:\\\\)", text), path.name
