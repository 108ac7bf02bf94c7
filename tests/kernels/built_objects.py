"""Objects of the library as it was built in this tree: the newest build that has all of them, if there is one."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def objects_in(build: Path) -> dict[Path, Path]:
    """Where CMake puts the object of each source of kernels/."""
    sources = sorted((ROOT / "kernels").rglob("*.cpp"))
    return {source: build / f"CMakeFiles/moelab_kernels.dir/{source.relative_to(ROOT)}.o" for source in sources}


def objects_of_tree() -> dict[Path, Path]:
    """Of a build in build/ whose objects are all there and newer than every file of kernels/; {} without one."""
    changed = max(path.stat().st_mtime for path in (ROOT / "kernels").rglob("*") if path.is_file())
    for build in ROOT.glob("build/*"):
        objects = objects_in(build)
        if all(path.is_file() and path.stat().st_mtime > changed for path in objects.values()):
            return objects
    return {}
