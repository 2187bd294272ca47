"""A double of Qdrant: the program, and the archive in which it is published."""
