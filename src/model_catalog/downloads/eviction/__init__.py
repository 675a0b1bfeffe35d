"""Plan which models may be deleted to free disk space, and delete them."""
