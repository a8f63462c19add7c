"""The planner: what an adapter will cost, from a model's architecture alone; no weights are read."""
