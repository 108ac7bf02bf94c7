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
CONDA_NAME = {"xxhash": "python-xxhash", "torch": "pytorch", "duckdb": "python-duckdb"}


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


def test_ci_runs_the_lines_of_the_readme():
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    lines = [line.strip() for line in readme.splitlines() if line.startswith("    pip install -c constraints.txt")]
    assert len(lines) == 2
    commands = script.replace("pip install -q", "pip install").splitlines()
    for part in (part for line in lines for part in line.split(" && ")):
        assert part in commands, f".ci/run lacks `{part}`"


def test_import_is_quick_and_lazy():
    """Under half a second, the best of five: a busy machine may be slow once, not every time."""
    heavy = {"torch", "numba", "plotly", "pandas", "scipy", "pyarrow", "ipywidgets", "transformers"}
    program = (
        "import sys, time; started = time.perf_counter(); import moelab; seconds = time.perf_counter() - started;"
        f"print(seconds, sorted({heavy} & set(sys.modules)), moelab.__version__)"
    )
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        taken, loaded = done.stdout.split()[:2]
        assert loaded == "[]", done.stdout
        seconds.append(float(taken))
    assert min(seconds) < 0.5, seconds


def test_kernels_import_without_numba():
    program = "import sys, moelab.kernels; print(sorted({'torch', 'numba', 'scipy', 'pandas'} & set(sys.modules)))"
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


@pytest.mark.build
def test_wheel_carries_captures_and_nano(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.endswith("libmoelab_kernels.so") for n in names) or sys.platform != "linux"
    for wanted in ("config.json", "tokenizer.json", "model.safetensors"):
        assert f"moelab/shipped/nano/model/{wanted}" in names
    assert any(n.startswith("moelab/shipped/nano/capture/") and n.endswith(".parquet") for n in names)
    for name in ("theme.js", "expert_map.js", "expert_map_widget.js", "widgets.css"):
        assert f"moelab/widgets/js/{name}" in names
    assert not any("/training/" in n for n in names), "the training scripts stay in the source tree"


@pytest.mark.build
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
        "import moelab; p = moelab.shipped('nano/capture'); t = moelab.open_trace(p);"
        "print(moelab.__file__); print(p); print(len(t.tokens));"
        "print(len(moelab.load(moelab.shipped('nano/model')).generate('The king', 4).token_ids))"
    )
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    module, data, tokens, new_tokens = done.stdout.split()
    assert int(new_tokens) == 4
    assert str(environment) in module, "the installed package must be the one that runs"
    assert str(environment) in data
    assert int(tokens) > 20_000


@pytest.mark.build
def test_install_without_a_compiler_runs_on_numba(tmp_path):
    """The install succeeds without a C++ compiler, builds nothing native, and what runs is Numba and says why."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    environment = os.environ | {"CXX": str(tmp_path / "no-such-compiler")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".dll", ".dylib"))]
        archive.extractall(tmp_path / "installed")
    program = (
        "import sys; sys.path.insert(0, 'installed'); sys.meta_path[:] = [f for f in sys.meta_path"
        " if 'editable' not in type(f).__module__ and 'ScikitBuild' not in type(f).__name__];"
        "import moelab; assert 'installed' in moelab.__file__, moelab.__file__;"
        "from moelab.kernels import choose_isa, isa_table;"
        "print(choose_isa().isa); print(next(row.why for row in isa_table() if row.isa == 'generic'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    isa, why = done.stdout.strip().splitlines()
    assert isa == "numba"
    assert why, "the reason is said"
