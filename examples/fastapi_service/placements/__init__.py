"""A service that knows which host serves which model."""
