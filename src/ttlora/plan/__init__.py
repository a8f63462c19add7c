"""What an adapter will cost, from an architecture alone: no weights are read or held."""

from ttlora.plan.matrices import MatrixPlan
from ttlora.plan.plan import Plan, plan_adapter

__all__ = ["MatrixPlan", "Plan", "plan_adapter"]
