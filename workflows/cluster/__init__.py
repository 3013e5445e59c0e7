"""A cluster as the command line sees it: runs that are submitted, followed and asked about from outside."""
