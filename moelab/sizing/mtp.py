"""The multi-token-prediction layer that DeepSeek-V3's checkpoints carry beside the model.  Floor 2.

`ModelSpec` leaves it out: engines skip it unless they draft tokens with it. On disk it is one more MoE layer, two
norms of its inputs, a projection [H, 2 H], a norm before the head, and second copies of embedding and head: 684.5 B
parameters in all where the model has 671.0 (DeepSeek-V3 technical report, section 2.2; the file sizes agree).
Known for the deepseek_v3 and deepseek_v32 families only; others are refused by name.
"""

from __future__ import annotations

from moelab.domain.model import ModelSpec

_KNOWN = ("deepseek_v3", "deepseek_v32")


def mtp_params(spec: ModelSpec) -> int:
    """Parameters of all MTP layers on disk, 0 where the config has none. ValueError for families not known here."""
    num = spec.num_nextn_predict_layers
    if not num:
        return 0
    if spec.family not in _KNOWN:
        raise ValueError(
            f"num_nextn_predict_layers of {spec.name or spec.label}: expected a family among {', '.join(_KNOWN)}, got "
            f"{spec.family}, whose MTP tensors are not known here; count the checkpoint without them"
        )
    params, num_layers, num_moe = spec.params_of_part, spec.num_hidden_layers, spec.num_moe_layers
    layer = params["attention"] // num_layers + params.get("indexer", 0) // max(spec.num_indexer_layers, 1)
    layer += (params["routed_experts"] + params["router"] + params.get("shared_experts", 0)) // num_moe
    hidden, vocab = spec.hidden_size, spec.vocab_size
    norms = (2 + 2 + 1) * hidden  # of the layer, of both inputs, before the head
    return num * (layer + norms + 2 * hidden * hidden + 2 * vocab * hidden)
