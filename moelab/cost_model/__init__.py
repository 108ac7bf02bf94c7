"""Floor 1. Bytes and bandwidth become time; every prediction can be written down before measuring."""
