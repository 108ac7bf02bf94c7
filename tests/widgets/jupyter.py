"""jupyter: a real JupyterLab in a folder of its own, and a headless Chromium that sees nothing but this machine.

``Server`` starts and stops JupyterLab; ``Notebook`` opens cells in it, runs them, restarts the kernel. Every wait is
long, because the machine may be busy; nothing sleeps. Start flags: a Chromium without them asks hosts of its vendor.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat

WAIT_MS = 120_000
SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
_TOKEN = "for-tests"


def chromium() -> str:
    """Path of a Chromium; raises ``RuntimeError``: a browser test that cannot run has failed."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise RuntimeError("no Chromium found, expected one for the browser tests: apt-get install chromium")
    return found


def _die_with_parent() -> None:
    """Linux: a server must not outlive tests that were killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Server:
    """JupyterLab on a free port of 127.0.0.1, with all its folders within ``folder``."""

    def __init__(self, folder: Path):
        self.folder, self.notebooks = folder, folder / "notebooks"
        self.notebooks.mkdir(parents=True)
        self._write_setting("notification", {"fetchNews": "false", "checkForUpdates": False})
        places = {
            "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
        }  # fmt: skip
        environment = os.environ | {name: str(folder / place) for name, place in places.items()}
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0",
            "--port-retries=50", f"--IdentityProvider.token={_TOKEN}", f"--ServerApp.root_dir={self.notebooks}",
            "--LabApp.news_url=None",
        ]  # fmt: skip
        self.log = (folder / "server.log").open("w")
        self.process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=self.log, stderr=self.log, preexec_fn=_die_with_parent
        )
        self.url = self._wait(folder / "runtime")

    def _write_setting(self, plugin: str, values: dict[str, Any]) -> None:
        path = self.folder / "settings" / "@jupyterlab" / "apputils-extension" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    def _wait(self, runtime: Path) -> str:
        ends = time.monotonic() + 4 * WAIT_MS / 1000  # a cold start on a busy machine
        while time.monotonic() < ends and self.process.poll() is None:
            for file in runtime.glob("jpserver-*.json"):
                try:
                    url = json.loads(file.read_text())["url"].rstrip("/")
                    urllib.request.urlopen(f"{url}/api/status?token={_TOKEN}", timeout=5).close()
                    return url
                except (OSError, ValueError):
                    continue  # not up yet
            time.sleep(0.1)
        raise RuntimeError(f"JupyterLab did not start:\n{(self.folder / 'server.log').read_text()[-3000:]}")

    def use_theme(self, theme: str) -> None:
        """``light`` or ``dark``, for pages opened from now on."""
        self._write_setting("themes", {"theme": THEMES[theme]})

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the server's REST interface."""
        request = urllib.request.Request(
            f"{self.url}/{path}", method=method, data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {_TOKEN}", "Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


class Notebook:
    """One notebook of ``cells`` in a page of its own, with a running kernel."""

    def __init__(self, server: Server, browser: Any, name: str, cells: list[str], theme: str = "light"):
        self.server, self.name, self.theme = server, name, theme
        server.use_theme(theme)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
        nbformat.write(notebook, server.notebooks / f"{name}.ipynb")
        # The session first: Run All would race the dialog that asks for a kernel.
        self.session = server.ask(
            "POST", "api/sessions",
            {"path": f"{name}.ipynb", "name": name, "type": "notebook", "kernel": {"name": "python3"}},
        )  # fmt: skip
        self.context = browser.new_context(viewport={"width": 1500, "height": 1300})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{server.url}/lab/workspaces/{name}/tree/{name}.ipynb?token={_TOKEN}&reset")
        self._idle()

    def _idle(self) -> None:
        self.page.get_by_text("Python 3 (ipykernel) | Idle").first.wait_for()

    def run_all(self) -> None:
        """Run all cells; raises ``AssertionError`` with the traceback where one fails."""
        self.begin_all()
        last = self.page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
        self.page.wait_for_function("e => /\\[\\d+\\]/.test(e.textContent)", arg=last.element_handle())
        self._idle()
        failed = self.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
        assert failed.count() == 0, failed.first.inner_text()

    def begin_all(self) -> None:
        """Run all cells and do not wait for them."""
        self._menu("Run", "Run All Cells")

    def restart(self) -> None:
        """Restart the kernel and clear all outputs, as the menu does it."""
        self._menu("Kernel", "Restart Kernel and Clear Outputs of All Cells…")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.locator(".jp-Dialog").wait_for(state="detached")
        self.page.locator(".moelab").first.wait_for(state="detached")
        self._idle()

    def change_theme(self, theme: str) -> None:
        """By the menu, while everything is on the page."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text="Settings").first.click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text("Theme", exact=True).hover()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(THEMES[theme], exact=True).click()
        light = "true" if theme == "light" else "false"
        self.page.locator(f"body[data-jp-theme-light='{light}']").wait_for(state="attached")
        self.theme = theme

    def _menu(self, menu: str, entry: str) -> None:
        self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook").first.wait_for()
        self.page.locator(".lm-MenuBar-itemLabel", has_text=menu).first.click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).click()

    def python(self, expression: str) -> Any:
        """Value of ``expression`` in the kernel, by way of JSON and a new last cell."""
        return self._execute(f"import json as _json; print('<<' + _json.dumps({expression}) + '>>')")

    def _client(self) -> Any:
        from jupyter_client import BlockingKernelClient

        file = self.server.folder / "runtime" / f"kernel-{self.session['kernel']['id']}.json"
        client = BlockingKernelClient()
        client.load_connection_file(str(file))
        client.start_channels()
        return client

    def _execute(self, code: str) -> Any:
        """Through the kernel's own channels, so that the notebook stays as it is."""
        client = self._client()
        out: list[str] = []

        def keep(message: Any) -> None:
            content = message["content"]
            out.append(content.get("text", "\n".join(content.get("traceback", []))))

        try:
            reply = client.execute_interactive(
                code, store_history=False, timeout=WAIT_MS / 1000,
                output_hook=keep,
            )  # fmt: skip
        finally:
            client.stop_channels()
        assert reply["content"]["status"] == "ok", "".join(out)
        text = "".join(out)
        return json.loads(text[text.index("<<") + 2 : text.rindex(">>")])

    def keep_busy(self, code: str) -> Callable[[], None]:
        """Run ``print("begun")`` and ``code`` beside the page; returns once it has begun, what waits for its end."""
        client = self._client()
        heard = False
        while not heard:  # else what it prints may come before we listen; wait_for_ready waits for a silent kernel
            client.kernel_info()
            with suppress(queue.Empty):
                client.get_iopub_msg(timeout=1)
                heard = True
        asked = client.execute(f"print('begun', flush=True)\n{code}", store_history=False)

        def is_mine(message: Any, kind: str) -> bool:
            return message["parent_header"].get("msg_id") == asked and message["msg_type"] == kind

        while not is_mine(client.get_iopub_msg(timeout=WAIT_MS / 1000), "stream"):
            pass

        def wait() -> None:
            try:
                while not is_mine(client.get_shell_msg(timeout=WAIT_MS / 1000), "execute_reply"):
                    pass
            finally:
                client.stop_channels()

        return wait

    def interrupt(self) -> None:
        """As the stop button of the notebook: Ctrl-C for the kernel."""
        self.server.ask("POST", f"api/kernels/{self.session['kernel']['id']}/interrupt")

    def save(self) -> Path:
        """Save by the menu; the path of the file."""
        self._menu("File", "Save Notebook")
        path = self.server.notebooks / f"{self.name}.ipynb"
        self.page.locator(".jp-mod-dirty").first.wait_for(state="detached")
        return path

    def picture(self, locator: Any, name: str) -> Path:
        """A screenshot kept in ``build/screenshots`` (ignored by git), to be looked at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}_{self.theme}.png"
        locator.screenshot(path=path)
        return path

    def check_quiet(self) -> None:
        """Nothing left this machine and no script failed."""
        away = [url for url in self.requests if "://127.0.0.1" not in url and not url.startswith(("data:", "blob:"))]
        assert self.requests
        assert not away, away
        assert not self.errors, self.errors

    def close(self) -> None:
        self.context.close()
        self.server.ask("DELETE", f"api/sessions/{self.session['id']}")
