"""What the configuration asks for, built and run: the server, its upkeep, and collecting."""
