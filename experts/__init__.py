"""Runs in the ExpertActor: SwiGLU kernels, batching, the actor."""
