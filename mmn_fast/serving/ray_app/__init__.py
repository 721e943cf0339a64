"""The service on a Ray cluster: `serve run mmn_fast.serving.ray_app:app index=films parts=4 replicas=2`."""

from mmn_fast.serving.ray_app.deployments import Layout, app

__all__ = ["Layout", "app"]
