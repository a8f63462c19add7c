"""Base models: where one is, what its config says, its modules without weights, and how it is loaded."""
