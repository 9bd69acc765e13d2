"""Feature maps: from a batch of structures to feature rows."""
