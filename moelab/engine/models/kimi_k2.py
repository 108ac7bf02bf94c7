"""Kimi K2 and K2-Thinking: the architecture and the names of DeepSeek-V3.  Floor 2."""

from moelab.engine.models.deepseek_v3 import NAME_FORMS, SKIPPED_PREFIXES, Model

__all__ = ["NAME_FORMS", "SKIPPED_PREFIXES", "Model"]
