"""Models that other programs keep on this machine, as they lie there; nothing is written."""
