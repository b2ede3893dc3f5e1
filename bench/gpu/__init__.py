"""Everything that is measured on a GPU: in sections, resumable, one JSON row per reading."""
