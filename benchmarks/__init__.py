"""How fast it is, beside what else there is: contenders in turns in one run, and their ratios."""
