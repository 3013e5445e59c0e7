"""What knows Argo: graph, retry policies, schedules, sensors, compiler; the local runner; the command line."""
