"""Commands for the hosts of a fleet and for the models of all hosts."""
