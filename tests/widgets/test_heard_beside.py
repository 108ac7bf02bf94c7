"""The route of a comm within the context and after it; in a real JupyterLab: test_placement_explorer_browser."""

from __future__ import annotations

import pytest
from ipykernel.comm.comm import BaseComm

from moelab.widgets.heard_beside import heard_beside


class Comm(BaseComm):
    """As ipykernel makes them, without a kernel to write to."""

    def publish_msg(self, *_, **__):
        self._reply_subshell_id = None  # what a cell that writes leaves behind


def test_messages_go_where_the_page_addressed_them():
    comm = Comm("jupyter.widget")
    comm.send({})
    if not hasattr(comm, "_reply_subshell_for"):
        pytest.fail("ipykernel routes otherwise now: see whether heard_beside is still needed")
    assert comm._reply_subshell_for({}, "beside") is None, "ipykernel's own way"
    with heard_beside(comm):
        comm.send({})
        assert comm._reply_subshell_for({}, "beside") == "beside"
        with heard_beside(comm):
            assert comm._reply_subshell_for({}, "beside") == "beside"
        assert comm._reply_subshell_for({}, "beside") == "beside", "the outer one still waits"
    assert comm._reply_subshell_for({}, "beside") is None
    with pytest.raises(KeyboardInterrupt), heard_beside(comm):
        raise KeyboardInterrupt
    assert comm._reply_subshell_for({}, "beside") is None


def test_without_a_comm_nothing_happens():
    with heard_beside(None):
        pass
