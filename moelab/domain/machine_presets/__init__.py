"""Machine presets: one JSON file each, from published figures; a preset says that it was never measured here."""
