"""Internals: validation of arguments, random numbers, digests, files and progress bars."""
