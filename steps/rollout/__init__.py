"""How a version comes to serve: one module a target of the setting `deploy_target`.  Called by `steps.deploy`."""
