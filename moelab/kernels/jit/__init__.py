"""Numba kernels: the twin of kernels/generic, one file per kernel format.

Every function takes the address of a ``MOE_JOB`` record (see ``moelab.kernels.job``), as the C ABI does.
The dot products are emitted as LLVM vector code (``dot_*`` intrinsics), everything else is ordinary Numba.
Every cached function is ``stamped`` with the sources of the whole room, because Numba's on-disk cache
watches only the file of the function itself, not ``ir.py``, ``memory.py`` or the struct layout. Floor 1.
"""
