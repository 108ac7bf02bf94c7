"""Repacked weights on disk: `moelab pack` writes them once, `moelab.load(.., packed=..)` reads them without repacking.

A folder of `experts-000.bin` .. (the bytes of one layer's arena), `linears.bin` (packed linear layers, if asked for)
and `manifest.json`, which holds a CRC-32 of every 2 MB, a stamp of the checkpoint and a checksum of itself. Every ISA
reads the same bytes. The folder appears whole or not at all. `manifest` says what is where, `source` knows whether the
checkpoint is still the one, `write` and `read` are the two users. Floor 2.
"""
