"""The engine: steps, what decides about them, where their results are kept, and how they are run.

It knows nothing of checkpoints, formats or runtimes; `edgekiln.pipelines.graph` says what the steps of a build are.
"""
