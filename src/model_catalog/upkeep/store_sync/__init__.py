"""Record what other programs' stores contain."""
