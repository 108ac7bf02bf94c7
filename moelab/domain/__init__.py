"""Floor 0: the documents and sizes that everything else speaks in (NumPy and pydantic only)."""
