"""Kimi K2.5 and K2.6: the text model is DeepSeek-V3 inside a wrapper with a vision tower.

The config is nested (`text_config`, read by `moelab.domain`), names begin with `language_model.`, and
the vision tower and projector are skipped: this engine reads text only. Floor 2.
"""

from moelab.engine.models.deepseek_v3 import NAME_FORMS as TEXT_NAME_FORMS
from moelab.engine.models.deepseek_v3 import Model

# The released form, the form in memory of transformers 5, and a text model saved on its own.
NAME_FORMS = (
    ("language_model.model.", "language_model.lm_head."),
    ("model.language_model.", "lm_head."),
    *TEXT_NAME_FORMS,
)
SKIPPED_PREFIXES = tuple(
    f"{outer}{part}."
    for outer in ("", "model.")
    for part in ("vision_tower", "mm_projector", "multi_modal_projector", "vision_model")
)

__all__ = ["NAME_FORMS", "SKIPPED_PREFIXES", "Model"]
