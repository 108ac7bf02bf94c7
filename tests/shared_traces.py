"""Where the third-party captures lie beside the project; tests that read them skip visibly where they are absent."""

from pathlib import Path

import pytest

SHARED_TRACES = Path(__file__).resolve().parents[1].parent / "shared" / "traces"

needs_shared_traces = pytest.mark.skipif(not SHARED_TRACES.is_dir(), reason="shared folder absent")
