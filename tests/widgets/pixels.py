"""pixels: where a cell of the map lies on its canvas, and what colour it has there. Margins as in ``expert_map.js``."""

from __future__ import annotations

from typing import Any

LEFT, TOP, ACROSS, DOWN = 46, 4, 50, 34
_PIXEL = """(canvas, [x, y]) => {
  const ratio = window.devicePixelRatio, context = canvas.getContext("2d");
  return Array.from(context.getImageData(Math.round(x * ratio), Math.round(y * ratio), 1, 1).data);
}"""


def drawn(page: Any) -> Any:
    """The canvas, once something was drawn on it."""
    canvas = page.locator(".moelab canvas")
    canvas.wait_for()
    page.wait_for_function("c => Number(c.dataset.frames) > 0", arg=canvas.element_handle())
    canvas.scroll_into_view_if_needed()
    return canvas


def centre(canvas: Any, row: int, column: int, shape: tuple[int, int]) -> dict[str, float]:
    """Offset of a cell within the canvas, CSS pixels, of the whole map."""
    box = canvas.bounding_box()
    across, down = (column + 0.5) / shape[1], (row + 0.5) / shape[0]
    return {"x": LEFT + across * (box["width"] - ACROSS), "y": TOP + down * (box["height"] - DOWN)}


def colour_at(canvas: Any, row: int, column: int, shape: tuple[int, int]) -> list[int]:
    """Red, green, blue of the middle of a cell."""
    at = centre(canvas, row, column, shape)
    return canvas.evaluate(_PIXEL, [at["x"], at["y"]])[:3]


def drag_box(page: Any, canvas: Any, begin: tuple[int, int], end: tuple[int, int], shape: tuple[int, int]) -> None:
    """A box by mouse from one cell to another."""
    corner = canvas.bounding_box()
    first, last = centre(canvas, *begin, shape), centre(canvas, *end, shape)
    page.mouse.move(corner["x"] + first["x"], corner["y"] + first["y"])
    page.mouse.down()
    page.mouse.move(corner["x"] + last["x"], corner["y"] + last["y"], steps=4)
    page.mouse.up()
