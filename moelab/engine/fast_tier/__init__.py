"""The engine's fast tier: experts in slots of a torch device, moved by a policy while the model runs.  Floor 2.

`fast_tier.FastTier` is what the engine holds; `slot_memory` and `matrices` are the slots, `slot_table` says what lies
in them, `copy_thread` and `payload` fill them, `report` says what happened.
"""
