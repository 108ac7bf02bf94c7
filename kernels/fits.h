/* Is a struct of the caller's the one that this library knows? Every struct of the ABI begins with its size and
 * version. */
#ifndef MOELAB_FITS_H
#define MOELAB_FITS_H

#include "moelab_kernels.h"

template <class S>
static inline bool fits(const S *of) {
    return of->struct_bytes == sizeof(S) && of->abi_version == MOELAB_ABI_VERSION;
}

#endif
