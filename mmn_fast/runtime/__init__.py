"""Runs kernels over time: captured graphs, plans, sessions, and the device copies that they keep."""
