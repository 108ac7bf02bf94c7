"""Numba kernels: the twin of kernels/generic, one file per kernel format.

Every function takes the address of a ``MOE_JOB`` record (see ``moelab.kernels.job``), as the C ABI does.
The dot products are emitted as LLVM vector code (``dot_*`` intrinsics), everything else is ordinary Numba.
Numba's on-disk cache watches only the file of a function itself: after editing ``memory.py``,
``quantise.py`` or ``ir.py`` delete ``__pycache__/*.nb?``. Floor 1.
"""
