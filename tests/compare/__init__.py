"""restante's collector and those of others through the same troubles: ``./dev compare``."""
