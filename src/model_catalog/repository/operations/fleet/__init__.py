"""Operations on the hosts of a fleet and on the models of all hosts."""
