"""The file system: slow sources, their union, and the routing of reads."""
