"""The loop: pick, label, fine-tune, measure, repeat, with a state on disk that survives a kill at any moment."""
