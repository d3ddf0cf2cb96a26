"""What the package stands on and its readers need not see: checks, random numbers, digests, files, progress."""
