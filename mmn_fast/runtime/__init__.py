"""What runs kernels over time: captured graphs, plans, sessions, and the copies that they keep."""
