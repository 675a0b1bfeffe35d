"""Values of a fleet: hosts, their states, and where models are."""
