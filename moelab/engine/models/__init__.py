"""Model architectures that the engine runs: the file name is the `model_type`.  Floor 2.

A model file has
- `NAME_FORMS`: pairs (prefix of the body, prefix of the head) under which checkpoints write the
  canonical names `model.` and `lm_head.`; the first pair that fits is taken;
- `SKIPPED_PREFIXES`: tensors that belong to no text model (vision), skipped and counted;
- `Model(spec, text_config, read, routed, device)` with `dense_shapes(spec)`, `check(text_config)`,
  `cache_width`, and `forward(token_ids, at, cache, routing, want)`.
A new model is one file here, one row in tests/engine, and its family in `moelab.domain`.
"""
