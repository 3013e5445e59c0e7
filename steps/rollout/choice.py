"""Which target a deploy releases to: the one place that chooses.  Called by `steps.deploy`."""

from __future__ import annotations

from steps.rollout.target import Target
from steps.world import World


def target(world: World) -> Target:
    """Return the target of the settings.

    Raises
    ------
    ConfigError
        The settings lack what that target needs.
    """
    if world.settings.deploy_target == "process":
        from steps.rollout.desk import Desk
        from steps.rollout.process import Server

        return Desk(world, Server.of(world.settings, world.pipeline.name))
    from steps.rollout.gradual import Gradual
    from steps.rollout.kubernetes import Kubernetes

    return (Gradual if world.pipeline.release.gradual else Kubernetes).of(world)
