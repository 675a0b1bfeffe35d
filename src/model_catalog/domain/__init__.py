"""What a model is: names, fields, validation, plain values. No SQLAlchemy."""
