"""Runs in the AttentionNode: attention, rolling cache, scheduler, engine, sampling."""
