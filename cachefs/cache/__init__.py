"""The SSD side: index, files, copies. Imports neither plex nor fs."""
