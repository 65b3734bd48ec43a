"""Adapters to other libraries, one module each; each imports its third party only when it is imported itself.

``infotorch.integrations.trl``: a GRPO trainer that takes a recipe. ``infotorch.integrations.verl``: every loss and
advantage in verl's registries. ``infotorch.integrations.diffusers``: EVODiff as a scheduler of any pipeline.
"""
