"""What the Plex server knows, as values of ours. Imports neither cache nor fs."""
