"""What a newcomer installs: the same packages by pip and conda, a wheel that carries its data, quick imports."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAME = {"torch": "pytorch", "duckdb": "python-duckdb"}


def requirement(text: str) -> tuple[str, str]:
    name, bound = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(.*)", text).groups()
    return name.lower(), bound


def test_environment_yml_names_the_same_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["test"])
    wanted = {CONDA_NAME.get(name, name): bound for name, bound in wanted.items()}
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    got = dict(requirement(e) for e in [e for e in listed if isinstance(e, str)] + by_pip if not e.startswith("-e"))
    assert got.pop("python") == project["requires-python"]
    for tool in ("pip", "cxx-compiler"):
        got.pop(tool)
    assert got == wanted


def test_constraints_pin_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {requirement(r)[0] for r in project["dependencies"] + project["optional-dependencies"]["test"]}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if line and not line.startswith("#")}
    assert wanted <= pinned, f"constraints.txt lacks {sorted(wanted - pinned)}"
    assert "torch==2.13.0" in lines


def test_import_is_quick_and_lazy():
    program = "import sys, moelab; print(sorted({'torch', 'numba', 'plotly', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built by the environment's own pip (isolated build, as a user would)."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return next(folder.glob("*.whl"))


def test_wheel_carries_captures_and_nano(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("config.json", "tokenizer.json", "model.safetensors"):
        assert f"moelab/shipped/nano/model/{wanted}" in names
    assert any(n.startswith("moelab/shipped/nano/capture/") and n.endswith(".parquet") for n in names)
    assert not any("/training/" in n for n in names), "the training scripts stay in the source tree"


def test_wheel_runs_outside_the_tree(wheel, tmp_path):
    """Installed into an empty environment that borrows only the dependencies, moelab finds its own data."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True, timeout=300)
    ours = [p for p in sys.path if p.endswith("site-packages")]
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # A plain path file borrows the dependencies without running the editable install's hooks.
    (Path(site) / "borrowed.pth").write_text("\n".join(ours) + "\n")
    program = (
        "import moelab, sys; from moelab.kernels import isa; p = moelab.shipped('nano/capture');"
        "t = moelab.open_trace(p); print(moelab.__file__); print(p); print(len(t.tokens))"
    )
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    module, data, tokens = done.stdout.split()
    assert str(environment) in module, "the installed package must be the one that runs"
    assert str(environment) in data
    assert int(tokens) > 20_000


def test_install_without_a_compiler(tmp_path):
    """CMake finds no C++ compiler: the configure step succeeds, says so, and builds nothing native."""
    build = tmp_path / "build"
    cmake = Path(sys.executable).parent / "cmake"
    command = [str(cmake) if cmake.exists() else "cmake", "-S", str(ROOT), "-B", str(build)]
    empty = tmp_path / "nothing"
    empty.mkdir()
    make = subprocess.run(["sh", "-c", "command -v make || command -v ninja"], capture_output=True, text=True).stdout
    import shutil

    path = os.pathsep.join([str(Path(shutil.which(command[0]) or command[0]).parent), str(empty)])
    if not make.strip():
        pytest.skip("neither make nor ninja is installed")
    (empty / Path(make.strip()).name).symlink_to(make.strip())
    environment = {k: v for k, v in os.environ.items() if k not in {"CXX", "CC"}} | {
        "PATH": path, "CXX": str(empty / "no-such-compiler"),
    }  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler found" in done.stderr
    assert not list(build.rglob("*.so"))
