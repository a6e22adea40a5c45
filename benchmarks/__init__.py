"""Each figure that the README quotes, re-runnable."""
