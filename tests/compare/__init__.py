"""Compares restante's collector with others in the same failures: ``./dev compare``."""
