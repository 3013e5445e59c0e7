"""Remove what a policy no longer keeps, and stay able to answer for it.  docs/retention.md says what that means."""
