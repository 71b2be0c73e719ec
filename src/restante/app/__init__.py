"""Build and run what the configuration describes: the server, its upkeep, and collecting."""
