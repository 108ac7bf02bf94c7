"""One JupyterLab and one Chromium for all browser tests; without either they fail, they do not skip."""

from __future__ import annotations

import pytest

from tests.widgets.jupyter import FLAGS, Notebook, Server, chromium


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("lab"))
    yield server
    server.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.has_failed = report.failed
    return report


@pytest.fixture
def open_notebook(lab_server, browser, request):
    """Call it with (name, cells, theme); every notebook must have been quiet at the end. A failure leaves a picture."""
    opened: list[Notebook] = []

    def open_one(name: str, cells: list[str], theme: str = "light") -> Notebook:
        opened.append(Notebook(lab_server, browser, f"{name}_{theme}", cells, theme))
        return opened[-1]

    yield open_one
    if getattr(request.node, "has_failed", False):
        for notebook in opened:
            notebook.picture(notebook.page, f"failed_{notebook.name}")
    for notebook in opened:
        notebook.close()
    for notebook in opened:
        notebook.check_quiet()
