"""Other implementations of an expert layer, to run beside ours in one process. Floor 6.

``PEERS`` maps the name in the table to a class (see ``peer.Peer``). Importing this package imports no peer: each class
imports its library in ``available`` and in its constructor, and a missing one says ``not installed``. What to
install: ``pip install ggml-python gguf`` (ggml builds in a minute; ``CMAKE_ARGS=-DGGML_NATIVE=ON``) and
``pip install --no-deps kt-kernel==0.7.2``, which pins a torch that it does not need for this.
"""

from __future__ import annotations

from moelab.bench.peers.ggml import GgmlQ4K, GgmlQ4KRepacked, GgmlQ40, GgmlQ40Repacked
from moelab.bench.peers.kt_kernel import KtKernelInt4
from moelab.bench.peers.peer import Peer
from moelab.bench.peers.torch_linear import TorchBf16, TorchBf16Prepacked, TorchInt4

PEERS: dict[str, type[Peer]] = {
    TorchBf16.name: TorchBf16,
    TorchBf16Prepacked.name: TorchBf16Prepacked,
    TorchInt4.name: TorchInt4,
    GgmlQ40.name: GgmlQ40,
    GgmlQ40Repacked.name: GgmlQ40Repacked,
    GgmlQ4K.name: GgmlQ4K,
    GgmlQ4KRepacked.name: GgmlQ4KRepacked,
    KtKernelInt4.name: KtKernelInt4,
}
