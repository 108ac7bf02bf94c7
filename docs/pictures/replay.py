"""Makes replay.png, the picture of the README, from the captures that ship and this machine.

    python docs/pictures/replay.py

Replays as `moelab replay` does, puts three pictures on a page and lets a headless Chromium take it (`apt-get install
chromium`; another browser of the family: --browser PATH). About a minute.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import tempfile
from pathlib import Path

import moelab
from moelab import plots
from moelab.execution.planned import plan_for

WIDTH, HEIGHT = 1150, 1300
PAGE = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0; background: white }}
p {{ font: 13px system-ui, sans-serif; color: #555; text-align: center; margin: 0 }}</style>
{pictures}<p>{caption}</p>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browser", help="path of a Chromium (default: the first of the usual names)")
    browser = parser.parse_args().browser or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        raise SystemExit("no Chromium found: apt-get install chromium, or give --browser PATH")
    trace = moelab.open_trace(moelab.shipped("nano/capture")).load()
    plan = plan_for(trace, default_to_shipped=True)
    result = moelab.replay(trace, plan, phase="decode")
    figures = [plots.replay_times(result), plots.bandwidth(result), plots.load_map(trace, plan)]
    pictures = "".join(
        figure.to_html(full_html=False, include_plotlyjs=(n == 0), default_height="425px", default_width=f"{WIDTH}px",
                       config={"displayModeBar": False})
        for n, figure in enumerate(figures)
    )  # fmt: skip
    row = result.rows[-1]
    caption = (
        f"{result.machine['cpu']}, {row.isa} kernels, {row.activation} activations, {row.num_workers} workers, "
        f"{datetime.date.today().isoformat()}"
    )
    target = Path(__file__).with_suffix(".png")
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "page.html", Path(folder) / target.name
        page.write_text(PAGE.format(pictures=pictures, caption=caption), encoding="utf-8")
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000",
             f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", page.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        shutil.move(picture, target)
    print(target)


if __name__ == "__main__":
    main()
