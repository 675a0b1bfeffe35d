"""The hosts of a fleet, and the models of all of them."""
