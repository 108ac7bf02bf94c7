"""browser: figures and widgets as pictures, drawn by a headless Chromium that asks nobody for anything.

WebP, because it is a third of a PNG; text stays sharp at twice the pixels. Does not know what it draws.
"""

from __future__ import annotations

import base64
import json
import shutil
from typing import Any

from plotly.offline import get_plotlyjs

WIDTH = 860
"""Of a picture on the page, CSS pixels; height follows the figure."""

SCALE, QUALITY = 1.5, 0.85

_DRAW = """async ([figure, width, scale]) => {
  const height = figure.layout.height || 450;
  figure.layout.width = width;
  return Plotly.toImage(figure, {format: "png", width, height, scale});
}"""
_AS_WEBP = """async ([source, quality]) => {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/webp", quality);
}"""
_PAGE = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; padding: 8px; background: white; color: black; font: 14px system-ui, sans-serif; width: 844px }
table { border-collapse: collapse } th, td { padding: 2px 8px; vertical-align: top }
</style>"""


class Browser:
    """One Chromium for all pictures; raises ``RuntimeError`` where there is none."""

    def __enter__(self) -> Browser:
        from playwright.sync_api import sync_playwright

        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if path is None:
            raise RuntimeError("no Chromium found, expected one to draw pictures: apt-get install chromium")
        self._playwright = sync_playwright().start()
        self._chromium = self._playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        context = self._chromium.new_context(
            viewport={"width": WIDTH, "height": 400}, device_scale_factor=SCALE, color_scheme="light", offline=True
        )
        self._plotly, self._html = context.new_page(), context.new_page()
        self._plotly.add_script_tag(content=get_plotlyjs())
        return self

    def __exit__(self, *error: Any) -> None:
        self._chromium.close()
        self._playwright.stop()

    def figure(self, figure: dict[str, Any]) -> bytes:
        """A plotly figure, as JSON holds it."""
        figure = json.loads(json.dumps({"data": figure["data"], "layout": figure["layout"]}))
        return self._webp(self._plotly.evaluate(_DRAW, [figure, WIDTH, SCALE]))

    def html(self, markup: str) -> bytes:
        """HTML without scripts, ``WIDTH`` wide, as high as it is."""
        self._html.set_content(_PAGE + markup)
        picture = self._html.locator("body").screenshot(type="png")
        return self._webp("data:image/png;base64," + base64.b64encode(picture).decode())

    def _webp(self, source: str) -> bytes:
        url = self._plotly.evaluate(_AS_WEBP, [source, QUALITY])
        kind, data = url.split(",", 1)
        if not kind.startswith("data:image/webp"):
            raise RuntimeError(f"this Chromium wrote {kind}, expected WebP: install a newer one")
        return base64.b64decode(data)
