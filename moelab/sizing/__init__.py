"""Floor 2. What a model needs, how fast a machine runs it, and what that costs, from sizes alone; no torch."""
