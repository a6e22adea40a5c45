"""Runs in Ray Train workers: mesh, MoE layer, losses, data, loop, export, extraction."""
