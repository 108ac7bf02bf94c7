"""Small words for emitting vector code: typed loads at byte offsets, broadcasts, bf16 scales.

Everything is portable LLVM vector IR except ``multiply_add_bytes``, which uses the AVX2 instruction where
the target has it. No fast-math flags: LLVM may not contract or reorder. Floor 1: llvmlite.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
V8F, V8I, V8H, V16H, V32B = (
    ir.VectorType(F32, 8),
    ir.VectorType(I32, 8),
    ir.VectorType(I16, 8),
    ir.VectorType(I16, 16),
    ir.VectorType(I8, 32),
)


def constant(vector_type, value):
    return ir.Constant(vector_type, [value] * vector_type.count)


def at(builder, base, offset):
    """Byte pointer ``base + offset``; ``offset`` is a Python int or an i64 value."""
    return builder.gep(base, [I64(offset) if isinstance(offset, int) else offset], source_etype=I8)


def byte_pointer(builder, address):
    return builder.inttoptr(address, I8.as_pointer())


def load(builder, base, offset, value_type, align):
    source = builder.bitcast(at(builder, base, offset), value_type.as_pointer())
    return builder.load(source, align=align)


def store(builder, value, base, offset, align):
    builder.store(value, builder.bitcast(at(builder, base, offset), value.type.as_pointer()), align=align)


def broadcast(builder, value, count):
    vector_type = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(vector_type, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, ir.Constant(vector_type, ir.Undefined), constant(ir.VectorType(I32, count), 0))


def load_bf16_scales(builder, base, offset):
    """8 bf16 -> 8 float32."""
    halves = load(builder, base, offset, V8H, 16)
    return builder.bitcast(builder.shl(builder.zext(halves, V8I), constant(V8I, 16)), V8F)


def has_feature(context, name):
    """Does the target of this compilation have a CPU feature (``avx2``, ``fma``)?"""
    return f"+{name}" in getattr(context.codegen(), "_tm_features", "").split(",")


def multiply_add_bytes(context, builder, unsigned, signed):
    """32 unsigned x 32 signed bytes -> 16 sums of two neighbouring products, int16 (must fit)."""
    if has_feature(context, "avx2"):
        function = builder.module.declare_intrinsic(
            "llvm.x86.avx2.pmadd.ub.sw", (), ir.FunctionType(V16H, [V32B, V32B])
        )
        return builder.call(function, [unsigned, signed])
    wide = ir.VectorType(I16, 32)
    products = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    return _add_neighbours(builder, products)


def add_pairs(context, builder, halves):
    """16 int16 -> 8 int32, sums of two neighbours."""
    if has_feature(context, "avx2"):
        function = builder.module.declare_intrinsic("llvm.x86.avx2.pmadd.wd", (), ir.FunctionType(V8I, [V16H, V16H]))
        return builder.call(function, [halves, constant(V16H, 1)])
    return _add_neighbours(builder, builder.sext(halves, ir.VectorType(I32, 16)))


def _add_neighbours(builder, vector):
    count = vector.type.count // 2
    index = ir.VectorType(I32, count)
    even = ir.Constant(index, [2 * i for i in range(count)])
    odd = ir.Constant(index, [2 * i + 1 for i in range(count)])
    return builder.add(builder.shuffle_vector(vector, vector, even), builder.shuffle_vector(vector, vector, odd))


def multiply_add(context, builder, a, b, c):
    """8 x float32: a * b + c, fused where the target has FMA, else two roundings."""
    if has_feature(context, "fma") or has_feature(context, "neon"):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(V8F, [V8F] * 3), "llvm.fma.v8f32")
        return builder.call(function, [a, b, c])
    return builder.fadd(builder.fmul(a, b), c)


class TileLoop:
    """``for k in range(num_tiles)`` (at least 1) with vectors carried in registers."""

    def __init__(self, builder, num_tiles, initial):
        self.builder, self.num_tiles = builder, num_tiles
        before = builder.block
        self.block = builder.append_basic_block("tile")
        self.done = builder.append_basic_block("done")
        builder.branch(self.block)
        builder.position_at_end(self.block)
        self.k = builder.phi(I64)
        self.k.add_incoming(I64(0), before)
        self.carried = []
        for value in initial:
            phi = builder.phi(value.type)
            phi.add_incoming(value, before)
            self.carried.append(phi)

    def close(self, values):
        following = self.builder.add(self.k, I64(1))
        self.k.add_incoming(following, self.block)
        for phi, value in zip(self.carried, values, strict=True):
            phi.add_incoming(value, self.block)
        more = self.builder.icmp_signed("<", following, self.num_tiles)
        self.builder.cbranch(more, self.block, self.done)
        self.builder.position_at_end(self.done)
