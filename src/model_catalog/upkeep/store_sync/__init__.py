"""Record the models in other programs' stores."""
