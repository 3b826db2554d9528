"""In which order segments of time run, and what that costs. No arrays in here.

>>> from bptt_array import schedules
>>> costs = schedules.Costs(fixed=0, checkpoint=100, kept=100, work=200)
>>> schedules.plan(1000, "15 kB", costs=costs, longest=200).forward_steps
1961
"""

from .plans import Costs, Plan, plan

__all__ = ["Costs", "Plan", "plan"]
