"""Build the packages: ``./dev package``."""
